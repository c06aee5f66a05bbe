"""Settings of HiMo and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from podracer.config import Preset, require
from podracer.nets.recurrent import CoreConfig
from podracer.nets.torso import TorsoConfig
from podracer.ops.actor_critic import ActorCriticConfig
from podracer.ops.sequence_q import SequenceConfig


@dataclasses.dataclass(frozen=True)
class QConfig(SequenceConfig):
    """Of the form that learns action values from replay, as in R2D2. `burn_in + lookahead` is at most `unroll_length`."""

    importance_exponent: float = 0.6


@dataclasses.dataclass(frozen=True)
class HiMoConfig:
    """base: what HiMo is added to, `vtrace` (an actor-critic) or `r2d2` (action values from replay); `vtrace` and `q` are its
      settings.

    torso, core: networks. remember: the core also sees the previous action and reward. head_hidden: hidden widths of value,
      policy and hindsight value.

    phi_size: `d`, the features of the future. phi_hidden, phi_hat_hidden: hidden widths of `phi` and of its model.
    phi_input: `phi` sees the recurrent state (`state`), or the flattened observation (`observation`), at `t + lookahead`.
    lookahead: `k`, steps. hindsight_cost, model_cost: alpha and beta, weights of the hindsight value's loss and of the model's
      (a mean over the `d` features).
    model_free: the baseline of equal capacity. The two weights are 0, and `phi_hat` is learned as a part of value and policy.
    stop_phi: `phi` is a fixed target of the model; False is an ablation. stop_state: the hindsight value does not shape the
      recurrent state; False is the toy problem of the paper.

    unroll_length: agent steps. microbatch: see `podracer.agent.DataSpec`. discount: the agent's own.
    learning_rate, adam_epsilon: of Adam. decay_updates: updates over which learning rate and entropy cost fall linearly to 0; 0
      keeps them. max_gradient_norm: what the global norm of gradients is clipped to.
    """

    base: Literal["vtrace", "r2d2"] = "vtrace"
    vtrace: ActorCriticConfig = ActorCriticConfig()
    q: QConfig = QConfig()

    torso: TorsoConfig = TorsoConfig()
    core: CoreConfig = CoreConfig(kind="gru", size=64)
    remember: bool = False
    head_hidden: tuple[int, ...] = (64,)

    phi_size: int = 3
    phi_hidden: tuple[int, ...] = (64,)
    phi_hat_hidden: tuple[int, ...] = (64,)
    phi_input: Literal["state", "observation"] = "state"
    lookahead: int = 5
    hindsight_cost: float = 0.5
    model_cost: float = 0.5
    model_free: bool = False
    stop_phi: bool = True
    stop_state: bool = True

    unroll_length: int = 20
    microbatch: int = 0
    discount: float = 0.99
    learning_rate: float = 1e-3
    adam_epsilon: float = 1e-5
    decay_updates: int = 0
    max_gradient_norm: float = 10.0

    def __post_init__(self) -> None:
        require(self, "phi_size", at_least=1)
        require(self, "lookahead", at_least=0)
        require(self, "discount", at_least=0, at_most=1)
        require(self, "learning_rate", "decay_updates", at_least=0)
        require(self, "max_gradient_norm", above=0)
        if self.base == "vtrace" and self.lookahead > self.unroll_length:
            raise ValueError(f"lookahead={self.lookahead} must be at most unroll_length, {self.unroll_length}")
        if self.base == "r2d2" and self.q.burn_in + self.lookahead > self.unroll_length:
            raise ValueError(
                f"q.burn_in + lookahead = {self.q.burn_in + self.lookahead} must be at most unroll_length, {self.unroll_length}"
            )


_PORTALS: Mapping[str, Any] = {
    "agent.torso.kind": "mlp",
    "agent.torso.hidden": (64,),
    "agent.lookahead": 4,
    "agent.model_cost": 0.1,
    "anakin.num_envs": 32,
}
# Of the 18 actions only 6 differ. The game is seen through its RAM: in minutes on two cores, nothing is learned from pixels.
_PONG: Mapping[str, Any] = {
    "env.observation": "objects",
    "env.full_action_space": False,
    "agent.torso.hidden": (128, 128),
    "agent.remember": True,
    "anakin.num_envs": 32,
    "eval_episodes": 4,
}
_R2D2: Mapping[str, Any] = {
    "agent.base": "r2d2",
    "agent.core.kind": "lstm",
    "agent.remember": True,
    "agent.unroll_length": 20,
    "agent.q.burn_in": 5,
    "agent.q.replay_capacity": 6400,
    "agent.max_gradient_norm": 40.0,
}

PRESETS: Mapping[str, Preset] = {
    # The networks and weights of the paper's public example; its losses are not halved, hence a 2, and of the two pairs of
    # neighbours in an unroll of two steps one is no transition but counts in the mean, hence another.
    "hindsight/policy_evaluation": Preset(
        num_steps=512_000,
        overrides={
            "agent.torso.hidden": (16, 16),
            "agent.core.kind": "none",
            "agent.head_hidden": (16,),
            "agent.phi_hidden": (16,),
            "agent.phi_hat_hidden": (),
            "agent.phi_input": "observation",
            "agent.stop_state": False,
            "agent.lookahead": 1,
            "agent.vtrace.value_cost": 4.0,
            "agent.hindsight_cost": 4.0,
            "agent.model_cost": 6.0,
            "agent.unroll_length": 2,
            "agent.learning_rate": 4e-3,
            "agent.adam_epsilon": 1e-3,
            "agent.max_gradient_norm": float("inf"),
            "anakin.num_envs": 64,
        },
    ),
    "hindsight/portal_choice": Preset(num_steps=1_000_000, overrides=_PORTALS),
    "r2d2_portal_choice": Preset(num_steps=1_000_000, overrides={**_PORTALS, **_R2D2}),
    "atari/pong": Preset(
        num_steps=1_000_000,
        overrides={
            **_PONG,
            "agent.unroll_length": 32,
            "agent.discount": 0.995,
            "agent.vtrace.trace_decay": 0.97,
            "agent.vtrace.entropy_cost": 2e-3,
            "agent.vtrace.greedy_evaluation": True,
            "anakin.minibatches": 4,
        },
    ),
    "r2d2_pong": Preset(
        num_steps=1_000_000,
        overrides={**_PONG, **_R2D2, "agent.unroll_length": 40, "agent.discount": 0.997, "agent.q.target_period": 400},
    ),
}
