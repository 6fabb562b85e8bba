"""A trained policy at work: an ONNX file read with suspicion, run by ONNX Runtime on one thread.

A policy file is data from somewhere else. Only the three operators of a small network are let in, every weight is
looked at, and the network answers once before anyone asks it in earnest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, numpy_helper

from rl.channel import loss_probability
from rl.controller import Observation, Proposal
from rl.policy_card import INPUT, METADATA_KEY, OUTPUT, BadPolicy, Feature, PolicyCard, parse_card
from rl.split_world import shape_of

MOST_BYTES = 16 << 20
"""Of a policy file; a network of 64-64 with its quality table has 0.3 MiB."""
_OPERATORS = {"Gemm", "Tanh", "Relu"}
_MOST_NODES = 64

ort.disable_telemetry_events()


@dataclass(frozen=True, slots=True)
class SplitPolicy:
    """A Controller whose proposals come from a network: the move with the highest score."""

    card: PolicyCard
    _session: Any
    name: str = "policy"

    @classmethod
    def load(cls, path: Path) -> SplitPolicy:
        """Raises BadPolicy naming the file and what is wrong with it."""
        try:
            if path.stat().st_size > MOST_BYTES:
                raise BadPolicy(f"{path}: {path.stat().st_size} bytes, a policy has at most {MOST_BYTES}")
            data = path.read_bytes()
        except OSError as problem:
            raise BadPolicy(f"{path}: {problem.strerror}") from problem
        try:
            return cls.from_bytes(data)
        except BadPolicy as problem:
            raise BadPolicy(f"{path}: {problem}") from problem

    @classmethod
    def from_bytes(cls, data: bytes) -> SplitPolicy:
        """Raises BadPolicy."""
        model = _parsed(data)
        card = _card_of(model)
        _require_small_network(model)
        session = _open(model)
        policy = cls(card, session)
        policy._require_answers()
        return policy

    @property
    def splits(self) -> tuple[int, ...]:
        return self.card.splits

    @property
    def num_layers(self) -> int:
        return self.card.num_layers

    def require_model(self, name: str, num_layers: int, digest: str = "") -> None:
        """Raises BadPolicy unless it was trained for a model of that many layers and, where both are known, digest."""
        card = self.card
        if card.num_layers != num_layers:
            raise BadPolicy(
                f"the policy was trained for {card.num_layers} layers ({card.model}), {name} has {num_layers}; "
                f"train one with `edgectl rl train` and a table of {name}"
            )
        if card.digest and digest and card.digest != digest:
            raise BadPolicy(
                f"the policy was trained for {card.model} with digest {card.digest[:12]}, {name} has {digest[:12]}; "
                f"train one with `edgectl rl train` and a table of {name}"
            )

    def propose(self, observation: Observation) -> Proposal:
        """Raises ValueError for a split it does not know."""
        self.card.destination(observation.split, 0)
        scaled = []
        for feature in self.card.observation:
            number = _number_of(feature, observation)
            if number is None:
                return Proposal(observation.split, None, f"{feature.name} is not known")
            scaled.append(feature.scaled(number))
        action = int(np.argmax(self.scores(np.asarray([scaled], np.float32))[0]))
        split = self.card.destination(observation.split, action)
        return Proposal(split, None, f"{self.card.learner or self.name} moves by {self.card.moves[action]}")

    def scores(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, moves) for scaled observations (n, features)."""
        scores: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: rows})[0]
        return scores

    def _require_answers(self) -> None:
        """Asks at both ends of every feature: weights that are finite one by one may still give none together."""
        features = len(self.card.observation)
        corners = np.vstack([-np.ones(features), np.zeros(features), np.ones(features)]).astype(np.float32)
        try:
            scores = self.scores(corners)
        except Exception as problem:
            raise BadPolicy(f"the network does not take {features} numbers an observation: {problem}") from problem
        if scores.shape != (3, len(self.card.moves)):
            raise BadPolicy(f"the network gives {scores.shape[1:]} scores, its card has {len(self.card.moves)} moves")
        if not np.isfinite(scores).all():
            raise BadPolicy("the network's scores are not finite")


def _number_of(feature: Feature, observation: Observation) -> float | None:
    """A shape and a loss follow from each other where one is known; noise nobody speaks of is none."""
    if feature.name == "m":
        return shape_of(observation, (feature.low, feature.high))
    number: float | None = getattr(observation, feature.name)
    if number is None and feature.name == "sigma":
        return 0.0
    if number is None and feature.name == "loss" and observation.m is not None:
        return float(loss_probability(observation.m))
    return None if number is None else float(number)


def _parsed(data: bytes) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
        checker.check_model(model)
    except (DecodeError, checker.ValidationError, ValueError, TypeError) as problem:
        raise BadPolicy(f"no ONNX model: {str(problem).splitlines()[0] if str(problem) else problem!r}") from problem
    return model


def _card_of(model: ModelProto) -> PolicyCard:
    found = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(found) != 1:
        raise BadPolicy(f"an ONNX model without {METADATA_KEY} in its metadata: not made by `edgectl rl export`")
    return parse_card(found[0])


def _require_small_network(model: ModelProto) -> None:
    graph = model.graph
    if [value.name for value in graph.input] != [INPUT] or [value.name for value in graph.output] != [OUTPUT]:
        raise BadPolicy(f"a policy's network has one input, {INPUT}, and one output, {OUTPUT}")
    if model.functions or graph.sparse_initializer or len(graph.node) > _MOST_NODES:
        raise BadPolicy(f"a policy's network has at most {_MOST_NODES} nodes, no functions and no sparse weights")
    strange = sorted({node.op_type for node in graph.node if node.domain or node.op_type not in _OPERATORS})
    if strange:
        raise BadPolicy(f"operators {', '.join(strange)}: a policy's network has only {', '.join(sorted(_OPERATORS))}")
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.data_location != TensorProto.DEFAULT:
            raise BadPolicy(f"weight {tensor.name} is not fp32 within the file")
        if not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise BadPolicy(f"weight {tensor.name} holds numbers that are not finite")


def _open(model: ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as problem:
        raise BadPolicy(f"ONNX Runtime refuses the network: {problem}") from problem
