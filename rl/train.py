"""Training split policies with Stable-Baselines3: PPO, A2C and DQN on a vectorised world, one thread.

What comes back is NumPy: a chain of layers that scores moves, and the curve of returns. Nothing of torch leaves here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

# One thread, whatever else runs: a second one that spins makes these small networks slower, not quicker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import nn

from rl.dense import Activation, Dense
from rl.split_env import SplitVecEnv
from rl.split_world import SplitWorld
from rl.train_settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stable_baselines3.common.base_class import BaseAlgorithm

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
CURVE_STEPS = 400
"""Steps between two points of a curve: one rollout of the authors."""
LEAST_ENVIRONMENTS = 8
_DQN_STEPS_PER_UPDATE = 4
_A2C_STEPS, _A2C_ENVIRONMENTS = 5, 16


@dataclass(frozen=True, eq=False)
class Trained:
    """What training leaves."""

    layers: tuple[Dense, ...]
    """Scores of moves from scaled observations; the highest is taken."""
    untrained: tuple[Dense, ...]
    """The same network before its first update."""
    curve: tuple[tuple[int, float], ...]
    """(steps so far, mean return of the episodes that ended since the point before)."""
    steps: int
    """Taken: a whole number of rollouts."""
    train_s: float


def train(
    world: SplitWorld, settings: TrainSettings, progress: Progress | None = None, log_dir: Path | None = None
) -> Trained:
    """Train a policy; the same settings and world give the same one on one machine.

    `log_dir` is where TensorBoard finds its logs.
    """
    with _one_thread():
        model = _learner(world, settings, log_dir)
        untrained = policy_layers(model)
        watching = _Watching(settings.steps, progress)
        start = perf_counter()
        model.learn(settings.steps, callback=watching, log_interval=10)
        train_s = perf_counter() - start
        return Trained(policy_layers(model), untrained, tuple(watching.curve), model.num_timesteps, train_s)


def environments(world: SplitWorld, rollout: int) -> tuple[int, int]:
    """(environments, steps of each) of a rollout: whole episodes where they fit, else enough to be quick."""
    count = min(max(rollout // world.horizon, LEAST_ENVIRONMENTS), rollout // 2)
    return count, rollout // count


def batch_of(rollout: int, wanted: int) -> int:
    """The largest batch up to the wanted one that a rollout is whole batches of; a rollout that has none is one."""
    return max((size for size in range(2, min(wanted, rollout) + 1) if rollout % size == 0), default=rollout)


def policy_layers(model: BaseAlgorithm) -> tuple[Dense, ...]:
    """What scores moves, out of torch: copies."""
    if isinstance(model, DQN):
        modules = list(model.policy.q_net.q_net)
    else:
        policy: Any = model.policy
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    layers: list[Dense] = []
    for index, module in enumerate(modules):
        if isinstance(module, nn.Linear):
            following = modules[index + 1] if index + 1 < len(modules) else None
            weight, bias = (each.detach().numpy().copy() for each in (module.weight, module.bias))
            layers.append(Dense(weight, bias, _ACTIVATIONS[type(following)]))
    return tuple(layers)


_ACTIVATIONS: dict[type, Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.Linear: "none", type(None): "none"}


def _learner(world: SplitWorld, settings: TrainSettings, log_dir: Path | None) -> BaseAlgorithm:
    shared: dict[str, Any] = {
        "seed": settings.seed,
        "device": "cpu",
        "gamma": settings.gamma,
        "policy_kwargs": {"net_arch": list(settings.hidden)},
        "tensorboard_log": None if log_dir is None else str(log_dir),
    }
    rollout = min(settings.rollout, max(settings.steps, 2))
    match settings.algorithm:
        case "ppo":
            count, steps = environments(world, rollout)
            return PPO(
                "MlpPolicy",
                _environments(world, count, settings),
                n_steps=steps,
                batch_size=batch_of(count * steps, settings.batch_size or 100),
                n_epochs=settings.epochs,
                learning_rate=_rate(settings, 3e-4),
                gae_lambda=0.95 if settings.gae_lambda is None else settings.gae_lambda,
                clip_range=settings.clip_range,
                ent_coef=settings.entropy,
                **shared,
            )
        case "a2c":
            return A2C(
                "MlpPolicy",
                _environments(world, min(_A2C_ENVIRONMENTS, max(settings.steps // _A2C_STEPS, 1)), settings),
                n_steps=_A2C_STEPS,
                learning_rate=_rate(settings, 7e-4),
                gae_lambda=1.0 if settings.gae_lambda is None else settings.gae_lambda,
                ent_coef=settings.entropy,
                **shared,
            )
        case "dqn":
            return DQN(
                "MlpPolicy",
                _environments(world, LEAST_ENVIRONMENTS, settings),
                learning_rate=_rate(settings, 1e-4),
                batch_size=settings.batch_size or 32,
                buffer_size=min(settings.steps, 1_000_000) + LEAST_ENVIRONMENTS,
                # As many updates per step as with the one environment of the defaults.
                train_freq=1,
                gradient_steps=LEAST_ENVIRONMENTS // _DQN_STEPS_PER_UPDATE,
                **shared,
            )


def _environments(world: SplitWorld, count: int, settings: TrainSettings) -> SplitVecEnv:
    return (_Centred if settings.centred else SplitVecEnv)(world, count, settings.seed)


class _Centred(SplitVecEnv):
    """Rewards less their mean so far; returns in `infos` stay what they are."""

    def __init__(self, world: SplitWorld, num_envs: int, seed: int) -> None:
        super().__init__(world, num_envs, seed)
        self._sum, self._count = 0.0, 0

    def step_wait(self) -> VecEnvStepReturn:
        seen, reward, over, infos = super().step_wait()
        self._sum, self._count = self._sum + float(reward.sum()), self._count + reward.size
        return seen, reward - np.float32(self._sum / self._count), over, infos


def _rate(settings: TrainSettings, default: float) -> float | Callable[[float], float]:
    first = default if settings.learning_rate is None else settings.learning_rate
    last = settings.final_learning_rate
    if last is None:
        return first
    return lambda left: last + (first - last) * left


class _Watching(BaseCallback):
    """Keeps the curve, and tells of progress."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []
        self._total = total
        self._progress = progress
        self._ended: list[float] = []
        self._last = 0

    def _on_step(self) -> bool:
        if np.any(self.locals["dones"]):
            self._ended += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps - self._last >= CURVE_STEPS and self._ended:
            self.curve.append((self.num_timesteps, float(np.mean(self._ended))))
            self._ended.clear()
            self._last = self.num_timesteps
            if self._progress is not None:
                self._progress(min(self.num_timesteps, self._total), self._total)
        return True


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
