"""How policies are trained: the authors' settings and ours, as data that needs no learner's library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ppo", "a2c", "dqn"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a policy is trained. Raises ValueError.

    Defaults are the authors' for PPO with a surrogate (arXiv 2406.02616, released code; what it leaves open is
    Stable-Baselines3's). None: the learner's own default.
    """

    algorithm: Algorithm = "ppo"
    steps: int = 240_000
    seed: int = 0
    rollout: int = 400
    """Steps between updates, over all environments. PPO alone."""
    batch_size: int | None = None
    """Of one gradient step: 100 for PPO, 32 for DQN; A2C takes its whole rollout."""
    epochs: int = 10
    """Over each rollout. PPO alone."""
    learning_rate: float | None = None
    """3e-4 for PPO, 7e-4 for A2C, 1e-4 for DQN."""
    final_learning_rate: float | None = None
    """Where the rate falls to, linearly; None: it stays."""
    gamma: float = 0.99
    gae_lambda: float | None = None
    """0.95 for PPO, 1 for A2C; DQN has none."""
    clip_range: float = 0.2
    """PPO alone."""
    entropy: float = 0.0
    """Weight of the policy's entropy in the loss; DQN has none."""
    hidden: tuple[int, ...] = (64, 64)
    centred: bool = False
    """Rewards less their mean so far. All episodes are equally long, so this prefers no policy to another; but how much
    of an episode is left, which no observation tells, no longer drowns what a move is worth."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rollout < 2 or self.epochs < 1 or self.seed < 0:
            raise ValueError(
                f"steps {self.steps}, rollout {self.rollout}, epochs {self.epochs}, seed {self.seed}: "
                "at least 1, 2, 1, 0 are expected"
            )
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(f"batch_size {self.batch_size}: at least 2 are expected")
        rates = (self.learning_rate, self.final_learning_rate)
        if any(rate is not None and not 0.0 <= rate < 1.0 for rate in rates):
            raise ValueError(f"learning rates {rates}: from 0 to below 1 are expected")
        shares = {"gamma": self.gamma, "gae_lambda": self.gae_lambda, "clip_range": self.clip_range}
        for name, share in shares.items():
            if share is not None and not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} {share}: from 0 to 1 is expected")


AUTHORS = TrainSettings()
AUTHORS_TRUE_PPL = TrainSettings(steps=6_000, rollout=100, batch_size=25)
"""Of their run with measured perplexities."""

TUNED = TrainSettings(
    rollout=2_000,
    batch_size=250,
    learning_rate=2e-3,
    final_learning_rate=0.0,
    gamma=0.9,
    gae_lambda=1.0,
    entropy=0.003,
    centred=True,
)
"""What brought PPO on the authors' surface from 0.88 to 0.99 of the head-room, in a third of the time: rewards centred,
a discount about as short as a move takes to pay, longer rollouts in larger batches, and a rate that falls to zero."""
