"""What files choose splits, how, and which are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.adaptive.controller import MeasuredPrice, SubjectModel, load_chooser
from edgectl.adaptive.quality_lookup import QualityLookup
from planner.channel import Channel, ChannelState
from rl.controller import Observation
from rl.export import write_policy
from rl.policy_card import BadPolicy
from rl.quality import BadQualityTable
from rl.reward import RewardWeights
from tests.fakes.small_policy import SPLITS, deeper_when_lossy, small_card
from tests.fakes.small_quality import better_when_deep, small_table

DIGEST = "ab" * 32
MODEL = SubjectModel("tiny", DIGEST, 32)
TABLE = small_table(better_when_deep)


def policy_file(directory: Path, **changes: object) -> Path:
    path = directory / "policy.onnx"
    write_policy(path, deeper_when_lossy(), small_card(**changes))
    return path


def table_file(directory: Path, text: str | None = None) -> Path:
    path = directory / "quality.json"
    path.write_text(TABLE.to_json() if text is None else text)
    return path


def test_a_policy_proposes_and_its_table_says_what_that_is_worth(tmp_path: Path) -> None:
    chooser = load_chooser(policy_file(tmp_path, quality=TABLE.to_json()), None, MODEL)
    observation = Observation(4, loss=0.3)
    assert chooser.controller.splits == SPLITS
    assert chooser.controller.propose(observation).split == 8
    # 50 + 300/4 = 125 to 50 + 300/8 = 87.5: alpha 10 of the 0.3 gained, less beta of a quarter of the layers.
    assert chooser.price(observation, 8) == pytest.approx(10 * (125 - 87.5) / 125 - 4 / 16)
    assert chooser.price(Observation(4), 8) is None


def test_a_table_is_looked_into(tmp_path: Path) -> None:
    chooser = load_chooser(table_file(tmp_path), None, MODEL)
    lossy, clean = Observation(4, loss=0.3), Observation(4, loss=0.0)
    assert (chooser.controller.name, chooser.controller.splits) == ("table", SPLITS)
    assert chooser.controller.propose(lossy).split == 16
    assert chooser.controller.propose(clean).split == 1
    assert chooser.controller.propose(Observation(4)).split == 4
    carried = load_chooser(policy_file(tmp_path, quality=TABLE.to_json()), "table", MODEL)
    assert carried.controller.propose(lossy) == chooser.controller.propose(lossy)


def test_a_table_measured_under_another_kind_of_loss_says_so_for_each_link(tmp_path: Path) -> None:
    chooser = load_chooser(table_file(tmp_path), None, MODEL)
    (other,) = chooser.mismatches({("a", "b"): Channel((ChannelState(),), concealment="lmmse", granularity="packet")})
    assert "quality.json is about another channel than a to b: granularity element (measured) and packet" in other
    assert "concealment zero (measured) and lmmse (link)" in other
    assert chooser.mismatches({("a", "b"): Channel((ChannelState(),))}) == []
    assert load_chooser(policy_file(tmp_path), None, MODEL).mismatches({("a", "b"): Channel((ChannelState(),))}) == []


@pytest.mark.parametrize("name", ["policy.onnx", "quality.json"])
def test_a_planner_takes_its_splits_from_either_file_and_prices_nothing(tmp_path: Path, name: str) -> None:
    policy_file(tmp_path)
    table_file(tmp_path)
    chooser = load_chooser(tmp_path / name, "planner", MODEL)
    assert (chooser.controller.name, chooser.controller.splits) == ("planner", SPLITS)
    assert chooser.price(Observation(4, loss=0.3), 8) is None


def test_a_table_of_one_split_leaves_nothing_to_choose(tmp_path: Path) -> None:
    path = table_file(tmp_path, small_table(better_when_deep, splits=(8,)).to_json())
    assert load_chooser(path, "table", MODEL).controller.splits == (8,)


def test_a_policy_without_a_table_has_no_price(tmp_path: Path) -> None:
    chooser = load_chooser(policy_file(tmp_path), "policy", MODEL)
    assert chooser.price(Observation(4, loss=0.3), 8) is None
    with pytest.raises(ConfigError, match="carries no quality table"):
        load_chooser(policy_file(tmp_path), "table", MODEL)


@pytest.mark.parametrize("name", ["policy.onnx", "quality.json"])
def test_splits_that_stay_take_their_places_from_either_file(tmp_path: Path, name: str) -> None:
    policy_file(tmp_path)
    table_file(tmp_path)
    chooser = load_chooser(tmp_path / name, "static", MODEL)
    assert chooser.controller.splits == SPLITS
    assert chooser.controller.propose(Observation(2, loss=0.3)).split == 2


def test_a_policy_for_another_number_of_layers_or_another_model_is_refused_by_name(tmp_path: Path) -> None:
    path = policy_file(tmp_path)
    with pytest.raises(BadPolicy, match=r"policy.onnx: .*trained for 32 layers \(tiny\), big has 40"):
        load_chooser(path, None, SubjectModel("big", DIGEST, 40))
    with pytest.raises(BadPolicy, match=r"policy.onnx: .*digest abababababab, tiny has cdcdcdcdcdcd"):
        load_chooser(path, None, SubjectModel("tiny", "cd" * 32, 32))


def test_a_table_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    path = table_file(tmp_path)
    with pytest.raises(BadQualityTable, match=r"quality.json: num_layers: measured on tiny with 32, here 40"):
        load_chooser(path, None, SubjectModel("big", DIGEST, 40))
    with pytest.raises(BadQualityTable, match=r"quality.json: digest"):
        load_chooser(path, None, SubjectModel("tiny", "cd" * 32, 32))
    carried = policy_file(tmp_path, quality=small_table(better_when_deep, num_layers=40).to_json())
    with pytest.raises(BadQualityTable, match=r"policy.onnx: num_layers"):
        load_chooser(carried, None, MODEL)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("policy.onnx", None, "policy.onnx: No such file"),
        ("policy.onnx", b"", "policy.onnx: "),
        ("policy.onnx", b"\x08\x01nonsense" * 9, "policy.onnx: "),
        ("quality.json", None, "quality.json: No such file"),
        ("quality.json", b"\xff\xfe", "quality.json: no UTF-8 at byte 0"),
        ("quality.json", b"{}", "quality.json: "),
        ("quality.json", b"[1, 2]", "quality.json: "),
        ("quality.json", b"", "quality.json: "),
    ],
)
def test_files_that_are_nothing_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((BadPolicy, BadQualityTable), match=message):
        load_chooser(path, None, MODEL)


def test_a_table_without_a_split_between_two_devices_is_refused(tmp_path: Path) -> None:
    path = table_file(tmp_path, small_table(better_when_deep, splits=(32,)).to_json())
    with pytest.raises(BadQualityTable, match="without a layer"):
        load_chooser(path, None, MODEL)


def test_a_table_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--controller policy: .*quality.json is no .onnx file"):
        load_chooser(table_file(tmp_path), "policy", MODEL)


def test_where_no_perplexity_is_a_number_there_is_no_price() -> None:
    broken = small_table(lambda split, loss: float("nan") if split == 8 and loss == 0.3 else 60.0)
    price = MeasuredPrice(QualityLookup(broken), RewardWeights(), 16)
    assert price(Observation(4, loss=0.3), 8) is None
    assert price(Observation(4, loss=0.1), 8) == pytest.approx(-0.25)
    assert price(Observation(4, loss=0.1), 5) is None
    noisy = MeasuredPrice(QualityLookup(small_table(better_when_deep, sigmas=(0.0, 5.0))), RewardWeights(), 16)
    assert noisy(Observation(4, loss=0.1), 8) is None
    assert noisy(Observation(4, loss=0.1, sigma=5.0), 8) is not None
