"""What a cluster does when nothing is set."""

from __future__ import annotations

from edgectl.cluster_settings import MAX_QUEUED_SESSIONS, ClusterSettings
from edgectl.config import CoordinatorConfig


def test_nothing_is_emulated_and_nobody_is_limited_unless_it_is_asked_for() -> None:
    settings = ClusterSettings()
    assert (dict(settings.links), dict(settings.channels), settings.bulk) == ({}, {}, None)


def test_the_limits_without_a_file_are_those_of_an_empty_one() -> None:
    config, settings = CoordinatorConfig(), ClusterSettings()
    assert config.max_queued == settings.max_queued == MAX_QUEUED_SESSIONS
    assert config.max_sessions_per_key == settings.max_sessions_per_key
