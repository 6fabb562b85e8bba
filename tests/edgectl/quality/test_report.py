"""Perplexities as a table and as JSON, those that are no numbers among them."""

from __future__ import annotations

import json
import math

from edgectl.quality.collect import CollectSettings
from edgectl.quality.points import ChannelKind, Runs
from edgectl.quality.report import describe_collected, found_as_json
from tests.fakes.collected import collected, record

SETTINGS = CollectSettings(model="m", points=(), channel=ChannelKind(protection="int8"), runs=Runs(count=3))
FOUND = collected(
    record(4, 0.0, 40.0, 40.0, 40.0),
    record(4, 0.10879, 50.0, 52.0, math.nan, m=1.5),
    record(4, 0.3, math.inf, math.nan, math.nan, snr_db=3.0),
    record(31, 0.3, 60.0, sigma=5.0),
)


def test_the_table() -> None:
    assert describe_collected(SETTINGS, FOUND).splitlines() == [
        "m: 256 tokens in windows of 64, 3 runs, element loss, zero+int8, fp16 on the wire",
        "split    loss    m  noise    PPL  ±95 %  no number",
        "    4       0    -      0  40.00   0.00          -",
        "    4  0.1088  1.5      0  51.00  12.71          1",
        "    4     0.3    -   3 dB      -      -          3",
        "   31     0.3    -      5  60.00      -          -",
    ]


def test_the_json_has_what_the_issue_names_and_is_json() -> None:
    found = json.loads(json.dumps(found_as_json(SETTINGS, FOUND), allow_nan=False))
    assert (found["model"], found["tokens"], found["window"]) == ("m", 256, 64)
    first, second, third, _ = found["records"]
    assert {"split", "loss", "granularity", "mitigation", "codec", "runs", "ppl_mean", "ppl_ci95"} <= set(first)
    assert (first["runs"], first["ppl_mean"], first["ppl_ci95"]) == ([40.0] * 3, 40.0, 0.0)
    assert (second["runs"], second["ppl_mean"]) == ([50.0, 52.0, "nan"], 51.0)
    assert (third["runs"], third["ppl_mean"], third["ppl_ci95"]) == (["inf", "nan", "nan"], None, None)
    assert third["mitigation"] == "zero+int8"
