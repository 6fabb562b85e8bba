"""The testbed of a paper: its numbers come out of the cost model, and what it lacks is named."""

from __future__ import annotations

import pytest

from planner.cost import CostModel
from planner.errors import UnknownName
from planner.latency import cheapest_route
from planner.prediction import predict
from planner.problem import Segment
from planner.testbed import Testbed, load_testbed, names
from planner.types import LayerRange, Route

PAPER = "edgeshard-paper"


def loaded(model: str) -> tuple[Testbed, CostModel]:
    testbed = load_testbed(PAPER, model)
    return testbed, CostModel(testbed.profile, testbed.defaults, source=testbed.source)


def route_of(model: CostModel, **layers: int) -> Route:
    """A route of so many layers on the source, on AGX after AGX, on the cloud."""
    classes = {names[0].split("-")[0]: place for place, names in enumerate(model.classes)}
    segments, start = [], 0
    for kind, count in layers.items():
        place = 0 if kind == "source" else classes[kind.split("_")[0]]
        segments.append(Segment(place, start, start + count))
        start += count
    return model.route(segments)


def test_names() -> None:
    assert PAPER in names()


def test_devices_and_classes() -> None:
    _, model = loaded("llama2-7b")
    assert [len(members) for members in model.classes] == [1, 11, 2, 1]
    assert model.classes[0] == ("agx-0",)
    assert model.classes[3] == ("cloud-0",)


# EdgeShard (arXiv 2405.14371), table IV, as its calibrated model gives it.
@pytest.mark.parametrize(
    ("name", "layers", "expected_ms"),
    [
        ("llama2-7b", {"source": 32}, 140.35),
        ("llama2-7b", {"source": 16, "cloud": 16}, 227.39),
        ("llama2-7b", {"source": 1, "agx": 5, "cloud": 26}, 75.09),
        ("llama2-13b", {"source": 1, "agx": 22, "cloud": 17}, 176.09),
    ],
)
def test_latency_rows(name: str, layers: dict[str, int], expected_ms: float) -> None:
    _, model = loaded(name)
    route = route_of(model, **layers)
    prediction = predict(model, route, 8)
    assert prediction.ms_per_token == pytest.approx(expected_ms, rel=1e-3)
    # A prompt of one token is a decode step.
    assert prediction.time_to_first_token_ms == pytest.approx(prediction.ms_per_token)
    assert prediction.objective_ms == pytest.approx(prediction.ms_per_token)
    for stage in prediction.stages:
        assert stage.memory_bytes <= stage.memory_available_bytes


@pytest.mark.parametrize(
    ("name", "expected_ms", "counts"),
    [
        ("llama2-7b", 75.09, [1, 5, 26]),
        ("llama2-13b", 176.09, [1, 22, 17]),
        ("llama2-70b", 3079.4, [2, *[9] * 8, 6]),
    ],
)
def test_the_optimum_is_the_papers(name: str, expected_ms: float, counts: list[int]) -> None:
    _, model = loaded(name)
    solution = cheapest_route(model.latency_problem())
    assert solution is not None
    assert solution.gap == 0
    assert solution.cost == pytest.approx(expected_ms, rel=1e-3)
    assert predict(model, model.route(solution.segments), 8).ms_per_token == pytest.approx(solution.cost)
    assert sorted(segment.stop - segment.start for segment in solution.segments) == sorted(counts)


def test_throughput_rows() -> None:
    _, model = loaded("llama2-7b")
    alone = predict(model, route_of(model, source=32), 4)
    assert (alone.micro_batches, alone.rows) == (1, 4)
    assert alone.tokens_per_s == pytest.approx(24.36, rel=1e-3)
    # The 1 Mbit/s link is the limit, whatever the batch.
    even = predict(model, route_of(model, source=16, cloud=16), 8)
    assert even.tokens_per_s == pytest.approx(7.63, rel=1e-3)


@pytest.mark.parametrize(("layers", "fits"), [(26, True), (27, False)])
def test_the_cloud_holds_26_layers_of_7b(layers: int, fits: bool) -> None:
    _, model = loaded("llama2-7b")
    need = model.memory_bytes("cloud-0", LayerRange(32 - layers, 32))
    assert (need <= model.memory_available_bytes("cloud-0")) is fits


def test_13b_fits_no_device_and_70b_no_two() -> None:
    for name, share in (("llama2-13b", 1), ("llama2-70b", 2)):
        _, model = loaded(name)
        layers = model.spec.num_layers // share
        assert all(
            model.memory_bytes(members[0], LayerRange(0, layers)) > model.memory_available_bytes(members[0])
            for members in model.classes
        )


def test_a_model_without_constants_is_refused_by_name() -> None:
    with pytest.raises(UnknownName, match="llama2-7b") as caught:
        load_testbed(PAPER, "llama3-8b")
    assert "llama2-70b" in str(caught.value)


def test_an_unknown_testbed_is_refused_with_near_names() -> None:
    with pytest.raises(UnknownName, match="did you mean edgeshard-paper"):
        load_testbed("edgeshard", "llama2-7b")
