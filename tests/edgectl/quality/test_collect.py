"""A grid measured here: what is kept is not measured again, and what comes out is a table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import ConfigError, ModelNotFound
from edgectl.quality.collect import CollectSettings, collect, collect_records, kept_in
from edgectl.quality.perplexity import MeasuredText, find_subject, load_meter
from edgectl.quality.points import ChannelKind, ModelKind, Runs, grid
from planner.channel import Channel, ChannelState, erasing
from rl.quality import BadQualityTable

WIKI = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"
SETTINGS = CollectSettings(
    model=str(WIKI),
    points=grid((31, 4), (0.0, 0.2)),
    text=MeasuredText(tokens=128, window=64),
    runs=Runs(count=2, seed=3),
)


def test_the_table_has_what_the_meter_measures() -> None:
    steps: list[tuple[int, int]] = []
    table = collect(SETTINGS, None, lambda done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(7)], "two clean points are measured once"
    assert (table.model, table.num_layers, table.window) == ("wiki-32l", 32, 64)
    assert (table.splits, table.losses) == ((4, 31), (0.0, 0.2))
    subject = find_subject(str(WIKI), ModelKind(), SETTINGS.text)
    meter = load_meter(subject, (4, 31))
    for record in table.records:
        clean = record.loss == 0.0
        seeds = [3 << 20] * 2 if clean else [3 << 20, (3 << 20) + 1]
        assert record.runs == tuple(meter.at(record.split, erasing(record.loss, seed)) for seed in seeds)
        assert record.tokens == 126, "scored"
        assert (record.ppl_ci95 == 0.0) == clean
    meter.executor.close()


def test_what_was_interrupted_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Interrupted

    out = tmp_path / "grid.jsonl"
    with pytest.raises(Interrupted):
        collect(SETTINGS, out, stop)
    assert len(out.read_bytes().splitlines()) == 4
    steps: list[tuple[int, int]] = []
    resumed = collect(SETTINGS, out, lambda done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(3, 7)]
    assert resumed == collect(SETTINGS, None, lambda done, total: None)
    # A larger grid measures what is new; a smaller one reads what it needs.
    larger = replace(SETTINGS, points=grid((4, 31), (0.0, 0.2, 0.3)))
    steps.clear()
    assert collect(larger, out, lambda done, total: steps.append((done, total))).losses == (0.0, 0.2, 0.3)
    assert steps[0] == (6, 10)
    smaller = replace(SETTINGS, points=grid((31,), (0.2,)), runs=Runs(count=1, seed=3))
    before = out.read_bytes()
    (record,) = collect_records(smaller, out, lambda done, total: None).records
    assert record.runs == (next(each for each in resumed.records if each.split == 31 and each.loss == 0.2).runs[0],)
    assert out.read_bytes() == before


def test_a_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "grid.jsonl"
    small = replace(SETTINGS, points=grid((4,), (0.0,)))
    collect_records(small, out, lambda done, total: None)
    for other, name in (
        (replace(small, kind=ModelKind(codec="int8")), "codec"),
        (replace(small, channel=ChannelKind(concealment="rescale")), "concealment"),
        (replace(small, runs=Runs(seed=4)), "seed"),
        (replace(small, text=MeasuredText(tokens=64, window=64)), "tokens"),
        (replace(small, text=MeasuredText(tokens=128, window=32)), "window"),
    ):
        with pytest.raises(ConfigError, match=f"made with {name} "):
            collect_records(other, out, lambda done, total: None)


def test_noise_snr_and_fading_are_measured_as_they_are_meant() -> None:
    subject = find_subject(str(WIKI), ModelKind(), SETTINGS.text)
    meter = load_meter(subject, (4,))
    runs = Runs(count=1)
    for points, channel in (
        (grid((4,), (0.1,), (2.0,)), Channel((ChannelState(loss=0.1, sigma=2.0),))),
        (grid((4,), (0.1,), snrs_db=(5.0,)), Channel((ChannelState(loss=0.1, snr_db=5.0),))),
    ):
        settings = replace(SETTINGS, points=points, runs=runs)
        (record,) = collect_records(settings, None, lambda done, total: None).records
        assert record.runs == (meter.at(4, channel),)
    faded = replace(SETTINGS, points=grid((4,), (0.0, 0.1), fading="nakagami"), runs=runs)
    clear, lossy = collect_records(faded, None, lambda done, total: None).records
    assert clear.ppl_mean == pytest.approx(meter.clean(), rel=0.01)
    assert clear.ppl_mean < lossy.ppl_mean
    meter.executor.close()


def test_no_number_stays_in_the_record() -> None:
    broken = replace(SETTINGS, points=grid((4,), (0.1,), (3e38,)))
    (record,) = collect_records(broken, None, lambda done, total: None).records
    assert record.not_finite == 2
    assert math.isnan(record.ppl_mean)


def test_points_and_models_that_cannot_be_measured() -> None:
    for split in (0, 32):
        outside = replace(SETTINGS, points=grid((4, split), (0.1,)))
        with pytest.raises(ConfigError, match=f"split {split}: wiki-32l has 32 layers and so the splits 1 to 31"):
            collect(outside, None, lambda done, total: None)
    with pytest.raises(ModelNotFound):
        collect(replace(SETTINGS, model="/nowhere"), None, lambda done, total: None)
    with pytest.raises(ConfigError, match="--window 4096: wiki-32l has 2048 positions"):
        collect(replace(SETTINGS, text=MeasuredText(window=4096)), None, lambda done, total: None)


def test_points_that_are_no_rectangle_make_no_table() -> None:
    points = (*grid((4,), (0.0, 0.2)), *grid((31,), (0.2,)))
    with pytest.raises(BadQualityTable, match="split 31"):
        collect(replace(SETTINGS, points=points), None, lambda done, total: None)


def test_a_model_has_a_file_of_its_own(tmp_path: Path) -> None:
    names = {kept_in(tmp_path, model).name for model in (str(WIKI), f"{WIKI}/", "owner/other")}
    assert names == {"wiki-32l.jsonl", "other.jsonl"}


def test_what_the_paper_found_holds_here() -> None:
    """Fig. 3 of arXiv 2406.02616: perplexity rises with loss at every split, intervals apart; noise of one sigma costs
    the more the earlier it comes."""
    erased = replace(
        SETTINGS,
        points=grid((1, 16, 31), (0.0, 0.1, 0.3)),
        text=MeasuredText(tokens=512, window=128),
        runs=Runs(count=3),
    )
    by_split: dict[int, list[tuple[float, float]]] = {}
    for record in collect_records(erased, None, lambda done, total: None).records:
        assert record.ppl_ci95 is not None
        by_split.setdefault(record.split, []).append(
            (record.ppl_mean - record.ppl_ci95, record.ppl_mean + record.ppl_ci95)
        )
    for (_, clean), (low, high), (lower, _) in by_split.values():
        assert clean < low
        assert high < lower
    noisy = replace(erased, points=grid((1, 4, 16, 31), (0.0,), (5.0,)), runs=Runs(count=1))
    means = [record.ppl_mean for record in collect_records(noisy, None, lambda done, total: None).records]
    assert means == sorted(means, reverse=True)
