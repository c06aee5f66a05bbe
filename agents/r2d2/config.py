"""Settings of R2D2 and its presets. The defaults are those of the paper where they do not ask for 256 actors and a GPU."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from podracer.config import Preset, require
from podracer.nets.recurrent import CoreConfig
from podracer.nets.torso import TorsoConfig
from podracer.ops.sequence_q import SequenceConfig


@dataclasses.dataclass(frozen=True)
class R2D2Config(SequenceConfig):
    """Beside the settings of `SequenceConfig`:

    torso, core: networks. head_hidden: hidden widths of the heads. dueling: values are `V + A - mean A`.

    unroll_length: `T`, steps of a sequence that are learned. microbatch: see `podracer.agent.DataSpec`. discount: the agent's
      own.

    learning_rate, adam_epsilon: of Adam. decay_updates: updates over which the rate falls linearly to 0; 0 keeps it.
    max_gradient_norm: of the loss, which is a sum over time and a mean over sequences.
    """

    torso: TorsoConfig = TorsoConfig()
    core: CoreConfig = CoreConfig(kind="lstm")
    head_hidden: tuple[int, ...] = (64,)
    dueling: bool = True

    unroll_length: int = 40
    microbatch: int = 0
    discount: float = 0.997

    learning_rate: float = 1e-3
    adam_epsilon: float = 1e-3
    decay_updates: int = 0
    max_gradient_norm: float = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "discount", at_least=0, at_most=1)
        require(self, "learning_rate", "decay_updates", at_least=0)
        require(self, "max_gradient_norm", above=0)


# Everything is observed, so there is no core.
_CARTPOLE = Preset(
    num_steps=800_000,
    overrides={
        "agent.core.kind": "none",
        "agent.unroll_length": 20,
        "agent.replay_capacity": 16_000,
        "agent.updates_per_unroll": 4,
        "agent.priority_exponent": 0.6,
        "agent.importance_exponent": 0.6,
        "agent.discount": 0.99,
        "agent.return_steps": 3,
        "agent.target_period": 25,
        "agent.learning_rate": 5e-4,
        "agent.decay_updates": 10_000,
        "anakin.num_envs": 16,
    },
)

# Of the 18 actions only 6 differ.
_PONG: Mapping[str, Any] = {
    "env.observation": "objects",
    "env.full_action_space": False,
    "agent.torso.hidden": (128, 128),
    "agent.unroll_length": 32,
    "agent.burn_in": 8,
    "anakin.num_envs": 32,
}

PRESETS: Mapping[str, Preset] = {
    "catch": Preset(
        num_steps=80_000,
        overrides={
            "agent.core.kind": "none",
            "agent.unroll_length": 10,
            "agent.replay_capacity": 3200,
            "agent.updates_per_unroll": 4,
            "agent.discount": 0.99,
            "anakin.num_envs": 16,
        },
    ),
    "gymnax/CartPole-v1": _CARTPOLE,
    "gymnasium/CartPole-v1": _CARTPOLE.also({"sebulba.sync": True}),
    # An unroll begins in the corridor and needs what was seen before it. With less exploration, or the default epsilon of
    # Adam beside the small gradients of rare rewards, some seeds settle for keeping away from both arms, one of which is a
    # trap. The fall of the rate keeps what has been learned.
    "gridworld/tmaze": Preset(
        num_steps=400_000,
        overrides={
            "agent.torso.kind": "mlp",
            "agent.core.size": 64,
            "agent.unroll_length": 20,
            "agent.burn_in": 10,
            "agent.replay_capacity": 3200,
            "agent.updates_per_unroll": 2,
            "agent.discount": 0.99,
            "agent.epsilon_alpha": 3.0,
            "agent.learning_rate": 2e-3,
            "agent.adam_epsilon": 1e-5,
            "agent.decay_updates": 2500,
            "anakin.num_envs": 16,
        },
    ),
    "atari_jax/pong": Preset(num_steps=10_000_000, overrides={**_PONG, "agent.replay_capacity": 6400}),
    "atari/pong": Preset(num_steps=1_000_000, overrides={**_PONG, "agent.replay_capacity": 6400, "eval_episodes": 4}),
    # The published settings, for accelerators: batches of 64 sequences of 80 steps behind 40 of burn-in, here half of them
    # replayed, 4 million steps of replay, and 200,000 updates, about a day of the paper's.
    "paper_atari": Preset(
        num_steps=512_000_000,
        overrides={
            "agent.torso.kind": "nature",
            "agent.torso.hidden": (512,),
            "agent.core.size": 512,
            "agent.head_hidden": (512,),
            "agent.unroll_length": 80,
            "agent.burn_in": 40,
            "agent.replay_share": 0.5,
            "agent.replay_capacity": 50_000,
            "agent.target_period": 2500,
            "agent.learning_rate": 1e-4,
            "anakin.num_envs": 32,
        },
    ),
}
