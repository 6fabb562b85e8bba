"""Costs of splits: the planner's own numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.cost import CostModel
from planner.errors import UnknownName
from planner.profile import PowerProfile
from planner.types import LayerRange, Route, Stage
from planner.workload import Workload
from rl.split_costs import SplitCosts
from tests.fakes.random_profiles import plain_device, plain_link, plain_profile


def model(powered: bool = True) -> CostModel:
    power = PowerProfile(idle_w=5.0, prefill_w=20.0, decode_w=15.0, source="made up")
    source = plain_device("phone", layer_ms=3.0, **({"power": power} if powered else {}))
    profile = replace(
        plain_profile(source, plain_device("edge", layer_ms=1.0)),
        links=(plain_link("phone", "edge", bandwidth=1e6), plain_link("edge", "phone", bandwidth=1e6)),
    )
    return CostModel(profile, Workload(quantization=profile.quantization, context=256), source="phone")


def test_a_token_takes_what_the_planner_predicts() -> None:
    costs = SplitCosts.of(model(), "phone", "edge", (1, 3, 5))
    for place, split in enumerate((1, 3, 5)):
        times = model().times(Route((Stage("phone", LayerRange(0, split)), Stage("edge", LayerRange(split, 6)))))
        token_ms = costs.token_ms(np.array([place]), np.array([1e6]))[0]
        # A token's way back takes its four bytes' time as well, a microsecond's worth here.
        assert token_ms == pytest.approx(
            sum((*times.compute_ms, *times.transfer_ms, *times.latency_ms, times.return_ms)), abs=0.01
        )


def test_energy_is_the_sources_above_idle() -> None:
    costs = SplitCosts.of(model(), "phone", "edge", (1, 5))
    assert costs.source_j is not None
    compute_ms = model().decode_ms("phone", LayerRange(0, 5))
    assert costs.source_j[1] == pytest.approx(1e-3 * compute_ms * 10.0)
    assert SplitCosts.of(model(powered=False), "phone", "edge", (1, 5)).source_j is None


def test_a_move_sends_the_keys_and_values_of_its_layers() -> None:
    costs = SplitCosts.of(model(), "phone", "edge", (1, 5))
    spec = model().spec
    per_layer = 100 * 2 * spec.kv_size * 4
    np.testing.assert_allclose(costs.move_bytes(np.array([-4.0, 0.0, 2.0]), 100), [4 * per_layer, 0, 2 * per_layer])


def test_what_is_no_split_or_no_device_is_refused() -> None:
    for splits in ((0, 1), (1, 6)):
        with pytest.raises(ValueError, match="leave layers on both"):
            SplitCosts.of(model(), "phone", "edge", splits)
    with pytest.raises(ValueError, match="ascending"):
        SplitCosts.of(model(), "phone", "edge", (3, 1))
    with pytest.raises(UnknownName):
        SplitCosts.of(model(), "phone", "moon", (1,))


def test_a_missing_link_is_refused() -> None:
    profile = replace(model().profile, links=())
    lone = CostModel(profile, model().workload, source="phone")
    with pytest.raises(ValueError, match="is there a link"):
        SplitCosts.of(lone, "phone", "edge", (1,))


def test_edgeshards_testbed_has_the_papers_times() -> None:
    costs = SplitCosts.of_edgeshard((1, 31))
    assert costs.device_ms[1] - costs.device_ms[0] == pytest.approx(30 * (4.299 - 1.652))
    assert costs.kv_bytes_per_token_layer == 2 * 4096 * 4
