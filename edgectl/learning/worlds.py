"""From a quality table to the world that a policy is trained or valued in, and from a world to a policy's card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgectl.given_file import UnreadableFile, read_given
from rl.authors_table import NUM_LAYERS, SPLITS, authors_gain
from rl.policy_card import BadPolicy, Feature, PolicyCard, WorldName
from rl.quality import BadQualityTable, Gain, QualityTable
from rl.reward import RewardWeights
from rl.split_world import ACTIONS_3, ACTIONS_5, ACTIONS_9, AuthorsWorld, ChannelWorld
from rl.surrogate import MOST_CHARACTERS, BadSurrogate, Surrogate, parse_surrogate

if TYPE_CHECKING:
    from rl.harder_world import HarderWorld
    from rl.train_settings import TrainSettings

    World = AuthorsWorld | ChannelWorld | HarderWorld

ACTIONS = {3: ACTIONS_3, 5: ACTIONS_5, 9: ACTIONS_9}
PUBLISHED = "Llama-2-7B, published surface"
"""In place of a model's name, where no table is given."""


@dataclass(frozen=True)
class Surface:
    """Where quality comes from: a model's table, or the authors' surface."""

    model: str
    digest: str
    num_layers: int
    splits: tuple[int, ...]
    sigmas: tuple[float, ...]
    gain: Gain
    table: QualityTable | None


def surface_of(table: QualityTable | None) -> Surface:
    """None: the surface that was published with the paper. Raises BadQualityTable."""
    if table is None:
        return Surface(PUBLISHED, "", NUM_LAYERS, SPLITS, (0.0,), authors_gain(), None)
    # Both devices keep a layer: a move to an end of the model would leave nothing to send.
    splits = tuple(split for split in table.splits if 0 < split < table.num_layers)
    if len(splits) < 2:
        raise BadQualityTable("records", f"splits {list(table.splits)}: at least two that leave both devices a layer")
    return Surface(table.model, table.digest, table.num_layers, splits, table.sigmas, table.gain, table)


def world_of(
    surface: Surface,
    name: WorldName,
    actions: tuple[int, ...] = ACTIONS_9,
    weights: RewardWeights | None = None,
    gain: Gain | None = None,
) -> World:
    """`gain` stands in for the surface's own, such as a surrogate of it. Raises BadPolicy for an unknown world."""
    used = surface.gain if gain is None else gain
    match name:
        case "channel":
            return ChannelWorld(used, sigmas=surface.sigmas, actions=actions, splits=surface.splits, weights=weights)
        case "drift":
            sigma = max(surface.sigmas)
            return AuthorsWorld(used, actions=actions, splits=surface.splits, weights=weights, sigma=sigma)
        case "harder":
            from rl.harder_world import HARDER_WEIGHTS, HarderWorld, Radio

            return HarderWorld(
                used,
                radio=Radio(sigma_at_0_db=max(surface.sigmas)),
                weights=HARDER_WEIGHTS if weights is None else weights,
                actions=actions,
                splits=surface.splits,
            )
    raise BadPolicy(f"policy: trained in a world called {name}, which is unknown here")


def card_of(surface: Surface, name: WorldName, world: World, settings: TrainSettings, trained_on: str) -> PolicyCard:
    """What a policy trained in this world says of itself. Raises BadPolicy."""
    observation = tuple(
        Feature(feature, low, high)  # type: ignore[arg-type]  # checked by `checked`
        for feature, low, high in zip(world.observed, world.observed_low, world.observed_high, strict=True)
    )
    return PolicyCard(
        model=surface.model,
        digest=surface.digest,
        num_layers=surface.num_layers,
        splits=world.splits,
        moves=world.actions,
        observation=observation,
        weights=world.weights,
        quality="" if surface.table is None else surface.table.to_json(),
        world=name,
        learner=settings.algorithm.upper(),
        trained_on=trained_on,
        steps=settings.steps,
        seed=settings.seed,
    ).checked()


def world_of_card(card: PolicyCard) -> tuple[Surface, World]:
    """The world whose rewards are those of the table that a policy carries. Raises BadPolicy and BadQualityTable."""
    if not card.quality and card.model != PUBLISHED:
        raise BadPolicy(f"the policy for {card.model} carries no quality table; name one with --quality")
    surface = surface_of(QualityTable.from_json(card.quality) if card.quality else None)
    return surface, world_of(surface, card.world, card.moves, card.weights)


def load_surrogate(path: Path, surface: Surface) -> Surrogate:
    """One of the surface's model. Raises BadSurrogate naming the file."""
    try:
        found = parse_surrogate(read_given(path, MOST_CHARACTERS))
        found.check_model(surface.model, surface.digest, surface.num_layers)
    except (BadSurrogate, UnreadableFile) as problem:
        raise BadSurrogate(f"{path}: {problem}") from problem
    return found
