"""Samples: nothing read is nothing claimed."""

from __future__ import annotations

from agent.device.sensors.sample import POWER, Sample, no_sample


def test_a_sample_of_nothing_has_reasons_and_no_values() -> None:
    sample = no_sample(3.0, "sysfs", "no power sensor in this machine")
    assert (sample.taken_s, sample.source, sample.rails_mw, sample.temperatures_c) == (3.0, "sysfs", (), {})
    assert {sample.missing[field] for field in (POWER, "gpu_load", "temperatures_c")} == {
        "no power sensor in this machine"
    }
    for field in sample.missing.keys() - {"temperatures_c"}:
        assert getattr(sample, field) is None


def test_the_hottest_zone_is_not_the_pmic_with_its_fixed_value() -> None:
    assert Sample(taken_s=0.0, source="sysfs", temperatures_c={"cpu": 51.5, "pmic": 100.0}).hottest_c == 51.5
    assert Sample(taken_s=0.0, source="sysfs", temperatures_c={"cpu": 51.5, "tj": 57.25}).hottest_c == 57.25
    assert Sample(taken_s=0.0, source="sysfs").hottest_c is None
