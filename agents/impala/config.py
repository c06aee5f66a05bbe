"""Settings of IMPALA and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from podracer.config import Preset, require
from podracer.nets.recurrent import CoreConfig
from podracer.nets.torso import TorsoConfig
from podracer.ops.actor_critic import ActorCriticConfig


@dataclasses.dataclass(frozen=True)
class ImpalaConfig(ActorCriticConfig):
    """Beside the settings of `ActorCriticConfig`:

    unroll_length: agent steps. microbatch: see `podracer.agent.DataSpec`. discount: the agent's own.

    loss_scale: of the whole; the paper sums over time and batch where we take the mean.
    optimizer: `adam`, or the paper's `rmsprop`. learning_rate: of it. epsilon: beside the root of its second moments.
    max_gradient_norm: what the global norm of gradients is clipped to. decay_updates: updates over which learning rate and
    entropy cost fall linearly to 0; 0 keeps them.
    separate_value: the value has a torso of its own; for feed-forward agents. torso, core: networks.
    """

    unroll_length: int = 20
    microbatch: int = 0
    discount: float = 0.99
    loss_scale: float = 1.0
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    epsilon: float = 1e-5
    decay_updates: int = 0
    max_gradient_norm: float = 1.0
    separate_value: bool = False
    torso: TorsoConfig = TorsoConfig()
    core: CoreConfig = CoreConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "discount", at_least=0, at_most=1)
        require(self, "learning_rate", "decay_updates", at_least=0)
        require(self, "max_gradient_norm", above=0)


# Table G.1 of Espeholt et al. 2018, for accelerators.
_PAPER: Mapping[str, Any] = {
    "agent.loss_scale": 640.0,
    "agent.max_abs_reward": 1.0,
    "agent.optimizer": "rmsprop",
    "agent.learning_rate": 6e-4,
    "agent.epsilon": 0.1,
    "agent.max_gradient_norm": 40.0,
    "agent.torso.kind": "impala",
    "agent.torso.hidden": (256,),
    "agent.core.kind": "lstm",
    "agent.core.size": 256,
    "agent.decay_updates": 78_125,
    "anakin.num_envs": 32,
}

_CARTPOLE = Preset(
    num_steps=1_500_000,
    overrides={
        "agent.learning_rate": 2e-3,
        "agent.decay_updates": 2344,
        "agent.max_gradient_norm": 10.0,
        "agent.trace_decay": 0.95,
        "anakin.num_envs": 32,
    },
)

PRESETS: Mapping[str, Preset] = {
    "catch": Preset(num_steps=400_000, overrides={"agent.unroll_length": 10, "anakin.num_envs": 64}),
    "gymnax/CartPole-v1": _CARTPOLE,
    # The learner takes a tenth of the time on two cores: taking turns costs little, and lag costs the score.
    "gymnasium/CartPole-v1": _CARTPOLE.also({"sebulba.sync": True}),
    # Acting is nearly all of the time, so batches are small and gradient steps many. Of four control steps an action, a
    # swing up takes tens, and the discount reaches across it.
    "dm_control/cartpole_swingup": Preset(
        num_steps=400_000,
        overrides={
            "env.action_repeat": 4,
            "agent.unroll_length": 10,
            "agent.discount": 0.97,
            "agent.trace_decay": 0.9,
            "agent.learning_rate": 2e-3,
            "agent.decay_updates": 5000,
            "agent.entropy_cost": 0.4,
            "agent.separate_value": True,
            "agent.torso.hidden": (128, 128),
            "anakin.num_envs": 8,
            "sebulba.sync": True,
        },
    ),
    # Many small gradient steps. Of the 18 actions only 6 differ.
    "atari_jax/pong": Preset(
        num_steps=60_000_000,
        overrides={
            "env.observation": "objects",
            "env.full_action_space": False,
            "agent.unroll_length": 32,
            "agent.discount": 0.995,
            "agent.trace_decay": 0.97,
            "agent.learning_rate": 1e-3,
            "agent.decay_updates": 117_188,
            "agent.entropy_cost": 2e-3,
            "agent.greedy_evaluation": True,
            "agent.torso.hidden": (128, 128),
            "anakin.num_envs": 64,
            "anakin.minibatches": 4,
        },
    ),
    "paper_atari": Preset(num_steps=50_000_000, overrides=_PAPER),
}
