"""Worlds as learners' libraries want them: a Gymnasium environment of one episode, and a vector environment of
Stable-Baselines3 over n at once, which is what makes a step cost microseconds.

Observations are scaled to -1 to 1 by the bounds that the world gives, newest first; what a deployed policy sees must be
scaled by the same bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from rl.arrays import FloatArray
from rl.split_world import SplitWorld

Observations = NDArray[np.float32]


class Scaling:
    """From a world's bounds to -1 and 1; a number without a range becomes 0, and none leaves the bounds."""

    def __init__(self, world: SplitWorld) -> None:
        self.low = np.tile(np.array(world.observed_low, np.float64), world.frames)
        high = np.tile(np.array(world.observed_high, np.float64), world.frames)
        self.width = np.where(high > self.low, high - self.low, np.inf)
        self.offset = np.where(high > self.low, 1.0, 0.0)

    def __call__(self, seen: FloatArray) -> Observations:
        scaled = 2.0 * (seen - self.low) / self.width - self.offset
        return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def observation_space(world: SplitWorld) -> spaces.Space[Any]:
    """The same for every world but for its length."""
    return spaces.Box(-1.0, 1.0, (len(world.observed) * world.frames,), np.float32)


class SplitEnv(gymnasium.Env[Observations, np.int64]):
    """One episode at a time."""

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium declares it without ClassVar)

    def __init__(self, world: SplitWorld) -> None:
        self.world = world
        self.scaling = Scaling(world)
        self.observation_space = observation_space(world)
        self.action_space = spaces.Discrete(len(world.actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        super().reset(seed=seed)
        return self.scaling(self.world.reset(self.np_random, 1))[0], {}

    def step(self, action: np.int64) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        seen, reward, over = self.world.step(np.array([int(action)]))
        is_cut = self.world.goes_on and bool(over[0])
        return self.scaling(seen)[0], float(reward[0]), bool(over[0]) and not is_cut, is_cut, {}


class SplitVecEnv(VecEnv):
    """n episodes of one world; when they are over, which they are together, n others begin."""

    render_mode: str | None = None
    """There is nothing to see; the library asks for it."""

    def __init__(self, world: SplitWorld, num_envs: int, seed: int) -> None:
        self.world = world
        self.scaling = Scaling(world)
        self._rng = np.random.default_rng(seed)
        self._actions = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs)
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        super().__init__(num_envs, observation_space(world), spaces.Discrete(len(world.actions)))

    def reset(self) -> VecEnvObs:
        self._returns[:] = 0.0
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self.scaling(self.world.reset(self._rng, self.num_envs))

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions, np.int64).reshape(self.num_envs)

    def step_wait(self) -> VecEnvStepReturn:
        seen, reward, over = self.world.step(self._actions)
        self._returns += reward
        scaled = self.scaling(seen)
        if not over.all():
            return scaled, reward.astype(np.float32), over, self._infos
        infos: list[dict[str, Any]] = [
            {
                "terminal_observation": last,
                "episode": {"r": total, "l": self.world.horizon, "t": 0.0},
                "TimeLimit.truncated": self.world.goes_on,
            }
            for last, total in zip(scaled, self._returns.tolist(), strict=True)
        ]
        return self.reset(), reward.astype(np.float32), over, infos

    def close(self) -> None:
        """There is nothing to close."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Also begins the generator of episodes anew, where a seed is given."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        return [getattr(self, method_name)(*args, **kwargs) for _ in self._chosen(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        # "Monitor" is asked for before returns are logged; ours come with the last step of an episode.
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> Iterable[int]:
        return self._get_indices(indices)
