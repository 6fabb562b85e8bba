"""A policy at work: what it proposes, how quickly, and the files it does not take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rl.controller import Observation
from rl.dense import Dense
from rl.export import network_model, write_policy
from rl.policy import SplitPolicy
from rl.policy_card import METADATA_KEY, BadPolicy, Feature, PolicyCard, dump_card
from tests.fakes.small_policy import SPLITS, deeper_when_lossy, random_network, small_card


@pytest.fixture
def policy() -> SplitPolicy:
    return SplitPolicy.from_bytes(network_model(deeper_when_lossy(), small_card()).SerializeToString())


def test_it_moves_by_places_of_its_list_and_stops_at_the_ends(policy: SplitPolicy) -> None:
    assert policy.propose(Observation(4, loss=0.3)).split == 8
    assert policy.propose(Observation(4, loss=0.0)).split == 2
    assert policy.propose(Observation(16, loss=0.3)).split == 16
    assert policy.propose(Observation(1, loss=0.0)).split == 1


def test_what_it_has_not_seen_is_taken_as_the_nearest_it_has(policy: SplitPolicy) -> None:
    assert policy.propose(Observation(4, loss=1.0)) == policy.propose(Observation(4, loss=0.3))


def test_it_stays_where_the_channel_is_unknown(policy: SplitPolicy) -> None:
    proposal = policy.propose(Observation(8))
    assert proposal.split == 8
    assert "loss" in proposal.reason


def seeing(*features: Feature) -> SplitPolicy:
    """Goes deeper where its first number is above the middle of its range."""
    card = small_card(observation=(*features, Feature("split", 1.0, 16.0)))
    weight = np.zeros((3, len(features) + 1), np.float32)
    weight[1:, 0] = -1.0, 1.0
    return SplitPolicy.from_bytes(
        network_model([Dense(weight, np.zeros(3, np.float32), "none")], card).SerializeToString()
    )


def test_a_shape_and_a_loss_stand_for_each_other() -> None:
    by_shape, by_loss = seeing(Feature("m", 0.5, 3.0)), seeing(Feature("loss", 0.0, 0.3))
    assert by_shape.propose(Observation(4, m=2.5)).split == 8
    assert by_shape.propose(Observation(4, loss=0.02)).split == 8
    assert by_shape.propose(Observation(4, loss=0.28)).split == 2
    assert by_loss.propose(Observation(4, m=0.5)).split == 8
    assert by_loss.propose(Observation(4, m=3.0)).split == 2
    assert by_shape.propose(Observation(4)).reason == "m is not known"


def test_noise_that_nobody_speaks_of_is_none() -> None:
    assert seeing(Feature("sigma", 0.0, 5.0)).propose(Observation(4, loss=0.1)).split == 2


def test_a_split_it_does_not_know_is_named(policy: SplitPolicy) -> None:
    with pytest.raises(ValueError, match=r"split 3 .*1, 2, 4, 8, 16"):
        policy.propose(Observation(3, loss=0.1))


def test_another_model_is_refused_by_name(policy: SplitPolicy) -> None:
    policy.require_model("tiny", 32, "ab" * 32)
    policy.require_model("tiny", 32)
    with pytest.raises(BadPolicy, match=r"trained for 32 layers \(tiny\), other has 24"):
        policy.require_model("other", 24)
    with pytest.raises(BadPolicy, match=r"digest abab.*, other has cdcd"):
        policy.require_model("other", 32, "cd" * 32)


def test_it_answers_as_numpy_does() -> None:
    layers = random_network([2, 64, 64, 3], seed=1)
    policy = SplitPolicy.from_bytes(network_model(layers, small_card()).SerializeToString())
    rng = np.random.default_rng(2)
    for _ in range(50):
        seen = Observation(int(rng.choice(SPLITS)), loss=float(rng.uniform(0, 0.3)))
        x = np.asarray([f.scaled(getattr(seen, f.name)) for f in policy.card.observation])
        for layer in layers:
            x = layer.weight @ x + layer.bias
            x = np.tanh(x) if layer.activation == "tanh" else x
        assert policy.propose(seen).split == policy.card.destination(seen.split, int(np.argmax(x)))


def test_a_decision_takes_less_than_a_millisecond() -> None:
    layers = random_network([2, 64, 64, 3], seed=1)
    policy = SplitPolicy.from_bytes(network_model(layers, small_card()).SerializeToString())
    taken_s = []
    for _ in range(200):
        start = perf_counter()
        policy.propose(Observation(4, loss=0.1))
        taken_s.append(perf_counter() - start)
    assert median(taken_s) < 1e-3


def spoiled(change: str) -> ModelProto:
    model = network_model(random_network([2, 8, 3], seed=3), small_card())
    graph = model.graph
    match change:
        case "nan":
            weight = numpy_helper.to_array(graph.initializer[0]).copy()
            weight[0, 0] = np.nan
            graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, graph.initializer[0].name))
        case "overflow":
            weight = np.full((8, 2), 3e38, np.float32)
            graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, graph.initializer[0].name))
            graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full(8, 3e38, np.float32), "bias0"))
            graph.node[1].op_type = "Relu"
        case "external":
            tensor = graph.initializer[0]
            tensor.data_location = TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", "/etc/passwd"
            tensor.ClearField("raw_data")
        case "operator":
            graph.node[1].op_type = "Erf"
        case "scores":
            weight = numpy_helper.to_array(graph.initializer[2])
            graph.initializer[2].CopyFrom(numpy_helper.from_array(weight[:2], "weight1"))
            graph.initializer[3].CopyFrom(numpy_helper.from_array(np.zeros(2, np.float32), "bias1"))
            graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
        case "features":
            helper.set_model_props(model, {METADATA_KEY: dump_card(one_more_feature())})
        case "card":
            del model.metadata_props[:]
        case "input":
            graph.input[0].name = graph.node[0].input[0] = "x"
    return model


def one_more_feature() -> PolicyCard:
    card = small_card()
    return replace(card, observation=(*card.observation, Feature("m", 0.5, 3.0)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nan", "weight0 .*not finite"),
        ("overflow", "scores are not finite"),
        ("external", "weight0|no ONNX model"),
        ("operator", "operators Erf"),
        ("scores", "2,.* scores.* 3 moves"),
        ("features", "does not take 3 numbers"),
        ("card", "metadata"),
        ("input", "one input, observation"),
    ],
)
def test_a_spoiled_network_is_refused(change: str, said: str) -> None:
    with pytest.raises(BadPolicy, match=said):
        SplitPolicy.from_bytes(spoiled(change).SerializeToString())


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 100, b"PK\x03\x04", "ÿ".encode("latin-1") * 50])
def test_a_file_that_is_no_network_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(data)
    with pytest.raises(BadPolicy, match=r"policy\.onnx"):
        SplitPolicy.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadPolicy, match=r"none\.onnx: No such file"):
        SplitPolicy.load(tmp_path / "none.onnx")
    with pytest.raises(BadPolicy, match="Is a directory"):
        SplitPolicy.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_answers(data: st.DataObject) -> None:
    raw = bytearray(network_model(random_network([2, 4, 3], seed=3), small_card()).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(1, len(raw))) :]
    try:
        policy = SplitPolicy.from_bytes(bytes(raw))
    except BadPolicy:
        return
    assert policy.propose(Observation(policy.splits[0], loss=0.1, m=1.0)).split in policy.splits


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    write_policy(path, deeper_when_lossy(), small_card())
    policy = SplitPolicy.load(path)
    assert policy.card == small_card()
    assert policy.num_layers == 32
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.onnx"]
