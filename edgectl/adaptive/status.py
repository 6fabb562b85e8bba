"""What `edgectl status` says of splits: where they are, what is proposed, why it is not done, and schedules. Pure."""

from __future__ import annotations

from dataclasses import replace

from edgectl.adaptive.adapt import Adapter
from edgectl.adaptive.report import OUTCOMES
from edgectl.cluster import Cluster
from edgectl.routes import BatchState, MicroBatchRecord, RouteRecord
from planner.types import Plan


def adaptive_of(cluster: Cluster) -> dict[str, object] | None:
    """None where nobody moves splits."""
    adapter = cluster.adapter
    if adapter is None:
        return None
    settings, report = adapter.settings, adapter.report()
    mean_s = report.decisions.mean_s
    return {
        "controller": settings.controller.name,
        "policy": settings.origin,
        "shadow": settings.limits.is_shadow,
        "splits": list(settings.controller.splits),
        "interval_tokens": settings.limits.interval_tokens,
        "dwell_tokens": settings.limits.dwell_tokens,
        "decisions": report.decisions.count,
        "decision_ms": None if mean_s is None else round(1e3 * mean_s, 4),
        "moves": {outcome: report.moves[outcome] for outcome in OUTCOMES},
        "held": dict(sorted(report.held.items())),
        "moved_bytes": report.moved_bytes,
        "micro_batches": [
            _batch(cluster, adapter, route, batch)
            for route in cluster.deployment.routes
            if route.split_points
            for batch in route.micro_batches
        ],
    }


def schedules_of(cluster: Cluster) -> list[dict[str, object]]:
    """Of the sessions that ended last, the newest at the end: where each was split from which position on."""
    return [
        {
            "session": ended.session,
            "route": ended.route,
            "micro_batch": ended.micro_batch,
            "prompt_tokens": ended.prompt_tokens,
            "tokens": ended.tokens,
            "schedule": [list(entry) for entry in ended.entries],
        }
        for ended in cluster.sessions.schedules
    ]


def present_plan(cluster: Cluster) -> Plan | None:
    """The plan with every route cut where its first open micro-batch is split now; what it predicted is of its own."""
    plan = cluster.deployment.plan
    if plan is None:
        return None
    routes = tuple(record.at(_first(record)) for record in cluster.deployment.routes)
    if routes[:1] == plan.routes[:1]:
        return replace(plan, routes=routes)
    return replace(plan, routes=routes, costs=())


def _first(route: RouteRecord) -> MicroBatchRecord:
    opened = [batch for batch in route.micro_batches if batch.state is BatchState.OPEN]
    return (opened or list(route.micro_batches))[0]


def _batch(cluster: Cluster, adapter: Adapter, route: RouteRecord, batch: MicroBatchRecord) -> dict[str, object]:
    state = adapter.state_of(batch)
    view = adapter.around.view(route, cluster.sessions.seated(batch.number))
    return {
        "route": route.index,
        "number": batch.number,
        "split": batch.split,
        "split_points": list(route.split_points),
        "proposal": state.proposal,
        "gain": None if state.gain is None else round(state.gain, 6),
        "moving_to": state.target,
        "guard": state.guard,
        "reason": state.reason if len(route.split_points) > 1 else "there is no other split",
        "last_kept": state.kept_because,
        "link": view.as_json(),
    }
