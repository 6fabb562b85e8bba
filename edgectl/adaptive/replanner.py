"""`--controller planner`: plans a route's split anew at every decision, by times that its devices take now. Pure.

Of two devices in a given order the exact planner's search is over the split alone. It knows nothing of perplexity: what
`bench adaptive` holds policies against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgectl.adaptive.layer_pace import LayerPace
from rl.controller import Observation, Proposal

LEAST_SHARE = 0.02
"""Of a step's time that a split has to spare before it is moved."""
UNKNOWN = "what the devices take is not measured yet"


@dataclass(frozen=True, slots=True)
class Replanner:
    """Knows which splits there are; `planned` makes the choice for a route."""

    splits: tuple[int, ...]
    hidden_bytes: int
    """Of one token over the link."""
    kv_bytes_per_token_layer: int
    name: str = "planner"

    def propose(self, observation: Observation) -> Proposal:
        """Without a route nothing is known."""
        return Proposal(observation.split, None, UNKNOWN)

    def planned(
        self, observation: Observation, points: Sequence[int], stop: int, source: LayerPace, peer: LayerPace
    ) -> Proposal:
        """For a route whose second device ends at layer `stop`. Raises ValueError for a split it does not know."""
        # Here, and loaded by who makes a replanner: who serves with a policy alone needs no cost model.
        from rl.controllers import PlannerController
        from rl.split_costs import SplitCosts

        ms: list[float] = []
        for split in points:
            here, there = source.step_ms(split), peer.step_ms(stop - split)
            if here is None or there is None:
                return Proposal(observation.split, None, UNKNOWN)
            ms.append(here + there)
        costs = SplitCosts(
            splits=tuple(points),
            device_ms=tuple(ms),
            source_j=None,
            hop_ms=observation.rtt_ms or 0.0,
            hidden_bytes=self.hidden_bytes,
            kv_bytes_per_token_layer=self.kv_bytes_per_token_layer,
        )
        proposal = PlannerController(costs).propose(observation)
        if proposal.split == observation.split:
            return proposal
        present, planned = (ms[list(points).index(split)] for split in (observation.split, proposal.split))
        if planned > (1.0 - LEAST_SHARE) * present:
            # What two measurements differ by anyway would move the split to and fro.
            return Proposal(observation.split, None, f"{proposal.reason}: less than {100 * LEAST_SHARE:.0f} % better")
        return proposal
