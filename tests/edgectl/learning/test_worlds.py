"""Tables to worlds to cards and back: the world a policy is valued in is the one it was trained in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgectl.learning.worlds import (
    PUBLISHED,
    card_of,
    load_surrogate,
    surface_of,
    world_of,
    world_of_card,
)
from rl.policy_card import BadPolicy, WorldName
from rl.quality import BadQualityTable
from rl.reward import RewardWeights
from rl.rollout import Starts, at_random, play
from rl.split_world import ACTIONS_5
from rl.surrogate import BadSurrogate, dump_surrogate
from rl.surrogate_fit import SMOOTH_GAIN, fit, points_of
from rl.train_settings import TrainSettings
from tests.fakes.quality_tables import known_table
from tests.fakes.small_policy import small_card


@pytest.mark.parametrize("name", ["channel", "drift", "harder"])
def test_a_card_leads_back_to_its_world(name: WorldName) -> None:
    surface = surface_of(known_table())
    world = world_of(surface, name, ACTIONS_5, RewardWeights(quality=7.0, latency_per_ms=0.001))
    card = card_of(surface, name, world, TrainSettings(), "table")
    _, again = world_of_card(card)
    starts = Starts.drawn(world, 50, 0)
    earned = [play(each, at_random(np.random.default_rng(1)), starts).returns for each in (world, again)]
    np.testing.assert_array_equal(*earned)
    assert card.num_layers == 32
    assert [feature.name for feature in card.observation] == list(world.observed)


def test_the_published_surface_needs_no_table() -> None:
    surface = surface_of(None)
    card = card_of(surface, "drift", world_of(surface, "drift"), TrainSettings(), "published surface")
    assert (card.model, card.quality, card.splits) == (PUBLISHED, "", tuple(range(1, 11)))
    assert world_of_card(card)[1].splits == card.splits


def test_splits_that_leave_a_device_nothing_are_left_out() -> None:
    assert surface_of(known_table(splits=(0, 4, 8, 32))).splits == (4, 8)
    with pytest.raises(BadQualityTable, match="at least two"):
        surface_of(known_table(splits=(0, 4, 32)))


def test_a_policy_without_table_asks_for_one() -> None:
    with pytest.raises(BadPolicy, match="tiny carries no quality table; name one with --quality"):
        world_of_card(small_card())


def test_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    surface = surface_of(known_table())
    with pytest.raises(BadSurrogate, match=r"x\.json: No such file"):
        load_surrogate(path, surface)
    path.write_bytes(b"\xff")
    with pytest.raises(BadSurrogate, match=r"x\.json: no UTF-8"):
        load_surrogate(path, surface)
    path.write_text("{}")
    with pytest.raises(BadSurrogate, match=r"x\.json"):
        load_surrogate(path, surface)


def test_a_surrogate_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(dump_surrogate(fit(points_of(known_table(model="other", num_layers=40)), SMOOTH_GAIN)))
    with pytest.raises(BadSurrogate, match="fitted to other with 40 layers, here 32"):
        load_surrogate(path, surface_of(known_table()))
