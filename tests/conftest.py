"""Test settings for the whole tree: hypothesis is deterministic here and random, with more examples, in a campaign."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile(
    "campaign",
    deadline=None,
    max_examples=int(os.environ.get("EDGE_CAMPAIGN_EXAMPLES", "3000")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("EDGE_HYPOTHESIS_PROFILE", "suite"))
