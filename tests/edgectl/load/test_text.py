"""A load's report as text: it says what its JSON does, and what to make of it."""

from __future__ import annotations

from edgectl.load.report import NO_POWER, document
from edgectl.load.target import View
from edgectl.load.text import describe
from tests.edgectl.load.test_report import NOW, measured, ran, twelve
from tests.edgectl.load.test_summary import session


def test_the_text_says_it_all() -> None:
    text = describe(measured())
    for part in (
        "m at http://a: open loop, 1 sessions/s (poisson), seed 0",
        "10 sessions in 9.6 s after 2 of warm-up: 10 completed",
        "goodput 1.04 sessions/s, 100.0% met first token ≤ 300 ms and each token ≤ 150 ms",
        "a step of 20.00 ms = 10.00 compute + 3.00 waiting for a device + 3.00 wires",
        "4 tokens per step",
        f"J per token: None ({NO_POWER})",
        "p99 of 10 samples",
    ):
        assert part in text
    rows = [tuple(filter(None, line.split("  "))) for line in text.replace("   ", "  ").splitlines()]
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    assert ("ms to the first token", *["200.00"] * 5, "10") in cells
    assert ("ms per token", *["100.00"] * 5, "10") in cells
    assert ("ms per token", "80.00", "100.00", "+25.0%") in cells


def test_problems_keys_and_a_late_generator_are_told() -> None:
    outcomes = twelve()
    outcomes[5].end, outcomes[5].problem = "refused", "HTTP 429 queue_full"
    outcomes[6].sent_s += 1.0
    outcomes[7].max_tokens = 9
    text = describe(document(ran(outcomes, keys=2), [], NOW))
    for part in ("1 refused", "1 × HTTP 429 queue_full", "the generator was late", "1 answers ended before", "key  "):
        assert part in text


def test_a_server_that_falls_behind_is_told() -> None:
    text = "sessions came faster than they were served"
    # Due every second, served every two.
    slow = [session(number, float(number), 2.0 * number + 0.2, 5, 0.1) for number in range(60)]
    assert text in describe(document(ran(slow), [], NOW))
    quick = [session(number, float(number), number + 5.0, 5, 0.1) for number in range(60)]
    assert text not in describe(document(ran(quick), [], NOW))


def test_unknown_devices_are_said_to_be_unknown() -> None:
    text = describe(document(ran(twelve(), before=View("m", unknown="it has no /edge/v1/status")), [], NOW))
    assert "what the devices did is not known: it has no /edge/v1/status" in text
    assert "J per token: None (it has no /edge/v1/status)" in text
