"""Total rails: every module of the table, and nothing for a board that is in none."""

from __future__ import annotations

import pytest

from agent.device.sensors.rails import MODULES_BY_NAME, MODULES_BY_PART, TOTAL_RAILS, module_of, total_power_w


@pytest.mark.parametrize(
    ("board", "module"),
    [
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "orin-nano"),
        ("NVIDIA Orin NX Developer Kit", "orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "agx-orin"),
        ("agx-orin-32gb", "agx-orin"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "thor"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "xavier-nx"),
        ("NVIDIA Jetson AGX Xavier Developer Kit", "agx-xavier"),
        ("Jetson-AGX", "agx-xavier"),
        ("NVIDIA Jetson TX2 NX Developer Kit", "tx2"),
        ("NVIDIA Jetson Nano Developer Kit", "nano"),
        ("quill nvidia,p2597-0000+p3310-1000 nvidia,tegra186", "tx2"),
        ("Some Carrier Board nvidia,p3509-0000+p3767-0001 nvidia,tegra234", "orin-nx"),
        ("Some Carrier Board nvidia,p3768-0000+p3767-0005-super nvidia,tegra234", "orin-nano"),
        ("NVIDIA Jetson TX1 Developer Kit nvidia,p2371-2180", None),
        ("Raspberry Pi 5 Model B", None),
        ("nanopi", None),
        ("", None),
    ],
)
def test_boards_and_their_modules(board: str, module: str | None) -> None:
    assert module_of(board) == module


def test_every_module_that_can_be_named_has_a_total() -> None:
    assert {*MODULES_BY_PART.values(), *dict(MODULES_BY_NAME).values()} == TOTAL_RAILS.keys()


@pytest.mark.parametrize("module", TOTAL_RAILS)
def test_the_total_is_the_sum_of_exactly_its_rails(module: str) -> None:
    board = {"nano": "jetson nano"}.get(module, module)
    for names in TOTAL_RAILS[module]:
        rails = [("NC", 5e6), *((name, 1000.0 * 2**at) for at, name in enumerate(names)), ("VDD_OTHER", 7e6)]
        assert total_power_w(board, rails) == (2.0 ** len(names) - 1, "")


def test_the_input_of_a_thor_is_not_counted_with_what_it_feeds() -> None:
    rails = [("VDD_GPU", 37528.0), ("VDD_CPU_SOC_MSS", 18961.0), ("VIN_SYS_5V0", 18331.0), ("VIN", 87426.0)]
    assert total_power_w("thor", rails)[0] == pytest.approx(87.426)
    assert total_power_w("thor", rails[:3])[0] == pytest.approx(74.820)


def test_negative_rails_take_part() -> None:
    rails = [("VDD_GPU", -392.0), ("VDD_CPU_SOC_MSS", 4000.0), ("VIN_SYS_5V0", 4000.0)]
    assert total_power_w("thor", rails)[0] == pytest.approx(7.608)


@pytest.mark.parametrize(
    ("board", "rails", "reason"),
    [
        ("agx-orin", [], "no power rail is readable"),
        ("Raspberry Pi 5", [("VDD_IN", 1.0)], "Raspberry Pi 5 is in no table of total rails; set board in agent.toml"),
        ("", [("VDD_IN", 1.0)], "this board is in no table"),
        ("orin nano", [("VDD_SOC", 1.0)], "the total of orin-nano is VDD_IN, but the rails are VDD_SOC"),
        ("thor", [("VDD_GPU", 1.0)], "VIN or VDD_GPU+VDD_CPU_SOC_MSS+VIN_SYS_5V0, but"),
    ],
)
def test_no_total_says_why(board: str, rails: list[tuple[str, float]], reason: str) -> None:
    power_w, said = total_power_w(board, rails)
    assert power_w is None
    assert reason in said
