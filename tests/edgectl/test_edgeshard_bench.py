"""Rows of Table IV become plans, and plans become agents that run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgectl.edgeshard_bench import LEAST_TOKENS, plan_of, row_name, run_edgeshard, runnable, tokens_for
from planner.pipeline import no_bubbles_rate
from planner.reproduction import table_iv

TABLE = table_iv()
ROWS = runnable(TABLE)


def test_every_row_that_fits_runs_under_a_name_of_its_own() -> None:
    assert len(ROWS) == 17
    assert len({row_name(row) for row in ROWS}) == len(ROWS)
    left_out = [row for row in TABLE if row not in ROWS]
    assert all(row.ours is None or not row.fits for row in left_out)
    assert {row_name(row) for row in left_out if row.ours} == {
        "llama2-13b cloud-edge-even ms_per_token",
        "llama2-13b cloud-edge-even tokens_per_s m8 r1",
    }


@pytest.mark.parametrize(
    ("wanted", "count"),
    [((), 17), (("70b",), 3), (("7b edgeshard ms_per_token",), 1), (("70b", "13b"), 8), (("x",), 0)],
)
def test_rows_are_chosen_by_words(wanted: tuple[str, ...], count: int) -> None:
    assert len(runnable(TABLE, wanted)) == count


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_the_plan_is_expected_to_do_what_the_row_says(row: object) -> None:
    reproduced = next(each for each in ROWS if each is row)
    plan, model = plan_of(reproduced)
    route = plan.routes[0]
    times = model.times(route, route.rows)
    if reproduced.cell.quantity == "ms_per_token":
        assert (route.micro_batches, route.rows) == (1, 1)
        assert times.round_ms == pytest.approx(reproduced.ours)
    else:
        assert no_bubbles_rate(times, route.micro_batches, route.rows) == pytest.approx(reproduced.ours)
    assert all(each.slots == route.micro_batches * route.rows for each in plan.allotments)
    assert all(each.memory_bytes <= each.memory_available_bytes for each in plan.allotments)
    assert sum(cost.compute_ms + cost.hop_ms for cost in plan.costs) == pytest.approx(times.round_ms)


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_tokens_are_enough_and_fit_the_context(row: object) -> None:
    reproduced = next(each for each in ROWS if each is row)
    assert LEAST_TOKENS <= tokens_for(reproduced, 0.1, 128) <= tokens_for(reproduced, 1e6, 128) == 126


def test_a_row_without_a_plan_is_none() -> None:
    with pytest.raises(ValueError, match="no plan"):
        plan_of(next(row for row in TABLE if row.route is None))


@pytest.mark.cluster
def test_rows_run_on_agents_that_stay_up(tmp_path: Path) -> None:
    said: list[str] = []
    rows = runnable(TABLE, ("7b edge-solo ms_per_token", "7b edgeshard ms_per_token"))
    measured = run_edgeshard(tmp_path, rows, 0.1, said.append)
    assert [row.name for row in measured] == [row_name(row) for row in rows]
    # Slower by whatever this machine adds, never faster; agents count what they computed.
    for row in measured:
        assert -0.01 < row.difference < 2
        compute_ms = [stage.compute_ms for stage in row.stages]
        assert len(compute_ms) == len(row.plan.routes[0].stages)
        assert sum(each or 0.0 for each in compute_ms) >= 0.99 * sum(row.times.compute_ms)
    assert len(said) == 3
    assert "2 of 2: llama2-7b edgeshard ms_per_token: 75.09 predicted" in said[-1]
