"""A load's report as text for a terminal."""

from __future__ import annotations

from typing import Any

from edgectl.load.summary import PERCENTS
from edgectl.output import table

LATE_MS = 10.0
BUSY_SHARE = 0.5
"""A generator that is later or busier than this may measure itself."""
KEEPS_UP_SHARE = 0.9
LEAST_TO_JUDGE = 50
"""Of fewer sessions the last ones under way are too large a part to say that a server falls behind."""

Json = dict[str, Any]


def describe(report: Json) -> str:
    """The document of `report` as text."""
    parts = (
        _headline(report),
        _latencies(report),
        _rates(report),
        _prediction(report),
        _keys(report),
        _stages(report),
        _token_time(report),
        "\n".join(_notes(report)),
    )
    return "\n\n".join(part for part in parts if part)


def _headline(report: Json) -> str:
    load, sessions = report["load"], report["sessions"]
    how = (
        f"open loop, {load['rate_per_s']:g} sessions/s ({load['arrivals']})"
        if load["loop"] == "open"
        else f"closed loop, {load['concurrency']} at a time"
    )
    ends = [f"{sessions[end]} {end}" for end in ("completed", "cancelled", "refused", "failed") if sessions[end]]
    lines = [
        f"{report['model']} at {report['url']}: {how}, seed {load['seed']}",
        f"prompts of {load['prompt_tokens']} tokens, answers of {load['output_tokens']}",
        f"{sessions['offered']} sessions in {report['seconds']:.1f} s after {sessions['warm_up']} of warm-up: "
        + ", ".join(ends),
    ]
    lines += [f"  {count} × {problem}" for problem, count in report["problems"].items()]
    return "\n".join(lines)


def _latencies(report: Json) -> str:
    names = {
        "time_to_first_token_ms": "ms to the first token",
        "ms_per_token": "ms per token",
        "ms_between_tokens": "ms between tokens",
        "end_to_end_ms": "ms end to end",
    }
    columns = ("mean", *(f"p{percent}" for percent in PERCENTS), "max")
    rows = []
    for name, label in names.items():
        found = report[name]
        cells = ["-"] * 6 if found is None else [*(f"{found[c]:,.2f}" for c in columns), str(found["samples"])]
        rows.append((label, *cells))
    return table(("", *columns, "samples"), rows)


def _rates(report: Json) -> str:
    goodput = report["goodput"]
    wanted = [
        f"{what} ≤ {goodput[name]:g} ms"
        for what, name in (("first token", "slo_ttft_ms"), ("each token", "slo_tpot_ms"))
        if goodput[name] is not None
    ]
    share = "-" if goodput["share"] is None else f"{goodput['share']:.1%}"
    good = f"goodput {_number(goodput['sessions_per_s'])} sessions/s, {share} met {' and '.join(wanted)}"
    rates = f"{_number(report['tokens_per_s'])} tokens/s, {_number(report['steady_tokens_per_s'])} while sessions came"
    return f"{rates}, {_number(report['sessions_per_s'])} sessions/s" + (f"\n{good}" if wanted else "")


def _prediction(report: Json) -> str:
    predicted = report["predicted"]
    if not predicted:
        return ""
    rows = []
    for name, label, measured in (
        ("ms_per_token", "ms per token", (report["ms_per_token"] or {}).get("p50")),
        ("time_to_first_token_ms", "ms to the first token", (report["time_to_first_token_ms"] or {}).get("p50")),
        ("tokens_per_s", "tokens/s", report["steady_tokens_per_s"] or report["tokens_per_s"]),
    ):
        expected = predicted.get(name)
        if isinstance(expected, (int, float)) and expected > 0 and measured is not None:
            rows.append((label, f"{expected:,.2f}", f"{measured:,.2f}", f"{measured / expected - 1:+.1%}"))
    return table(("", "predicted", "measured", "off by"), rows) if rows else ""


def _keys(report: Json) -> str:
    if len(report["by_key"]) < 2:
        return ""
    rows = [
        (
            str(each["key"]),
            *(str(each[name]) for name in ("offered", "completed", "refused", "failed")),
            _number(each["tokens_per_s"]),
            *(_number((each[name] or {}).get("p99")) for name in ("time_to_first_token_ms", "ms_per_token")),
        )
        for each in report["by_key"]
    ]
    header = ("key", "offered", "completed", "refused", "failed", "tokens/s", "p99 first token ms", "p99 ms per token")
    return table(header, rows)


def _stages(report: Json) -> str:
    if not report["stages"]:
        return f"what the devices did is not known: {report['stages_unknown'] or 'they counted nothing'}"
    rows = [
        (
            stage["device"],
            *(
                "-" if stage[name] is None else f"{100 * stage[name]:.1f}"
                for name in ("utilization", "decode_utilization", "prefill_utilization")
            ),
            *(_number(stage[name]) for name in ("compute_ms", "wait_ms", "prefill_compute_ms", "prefill_wait_ms")),
            _number(stage["bytes_per_frame"], 0),
        )
        for stage in report["stages"]
    ]
    header = (
        "device",
        "busy %",
        "decode",
        "prefill",
        "compute ms",
        "wait ms",
        "chunk ms",
        "chunk wait ms",
        "bytes/frame",
    )
    return table(header, rows)


def _token_time(report: Json) -> str:
    spent = report["token_time"]
    if spent is None:
        return ""
    parts = (
        ("compute", "compute_ms"),
        ("waiting for a device", "wait_ms"),
        ("wires", "wire_ms"),
        ("overhead behind the source", "overhead_ms"),
        ("at the source", "source_ms"),
    )
    words = " + ".join(f"{_number(spent[name])} {what}" for what, name in parts)
    return f"a step of {_number(spent['step_ms'])} ms = {words}; {spent['tokens_per_round']:g} tokens per step"


def _notes(report: Json) -> list[str]:
    notes = [f"J per token: None ({report['joules_per_token_unknown']})"]
    late, share = report["late_ms"], report["generator_cpu_share"]
    if share is not None and late is not None:
        notes.append(f"generator: {100 * share:.0f} % of a core, sessions sent {late['p99']:.1f} ms late (p99)")
        if late["p99"] > LATE_MS or share > BUSY_SHARE:
            notes.append("note: the generator was late or busy itself; its times contain that")
    if report["interrupted"]:
        notes.append("note: interrupted; sessions under way then are left out")
    if report["load"]["loop"] == "open" and _falls_behind(report):
        notes.append("note: sessions came faster than they were served; times grow with the length of the run")
    first = report["time_to_first_token_ms"]
    if first is not None and first["samples"] < 100:
        notes.append(f"note: p99 of {first['samples']} samples lies between the two slowest")
    if report["sessions"]["short"]:
        notes.append(f"note: {report['sessions']['short']} answers ended before their length")
    return notes


def _falls_behind(report: Json) -> bool:
    offered, over = report["offered_per_s"], report["over_while_offered_per_s"]
    enough = report["sessions"]["offered"] >= LEAST_TO_JUDGE
    return enough and offered is not None and over is not None and over < KEEPS_UP_SHARE * offered


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
