"""Settings of Muesli. The defaults are those of the paper's Atari experiments, with a small network."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from podracer.config import Preset, require
from podracer.nets.dynamics import DynamicsConfig
from podracer.nets.heads import BinsConfig
from podracer.nets.recurrent import CoreConfig
from podracer.nets.torso import TorsoConfig
from podracer.search.config import SearchConfig


@dataclasses.dataclass(frozen=True)
class MuesliConfig:
    """Muesli and the baselines that share its code.

    torso, core, dynamics, bins: networks. head_hidden: hidden widths of every head.

    unroll_length: `T`. replay_share: share of replayed sequences in a batch, k / (k + 1). replay_capacity: in unrolls.

    discount: the agent's own. learning_rate: of AdamW. decay_updates: updates over which it falls linearly to 0; 0
      keeps it.
    weight_decay: of AdamW. max_update: limit of each coordinate of Adam's update, before the learning rate.
    target_rate: step of the target network towards the online one, at every update.

    policy_loss: `muesli` (policy gradient and CMPO); `pg` (policy gradient alone); `cmpo` (indirect MPO: CMPO alone);
      `mpo` (direct: policy gradient in expectation over the model's q, and KL(pi, prior)); `ppo` (clipped ratio); `trpo`
      (policy gradient and KL(behaviour, pi)). All share model, values, returns and normalisation.
    regularizer_weight: lambda, of CMPO or of the KL penalty. cmpo_clip: `c`; None leaves advantages unclipped.
    num_kl_samples: actions that estimate the CMPO loss; 0 is exact. z_init: first guess of the leave-one-out normaliser.
    ppo_epsilon: of `ppo`. beta_loo: use action-dependent baselines in the policy gradient. beta_max: their largest weight.

    returns: `retrace` with the model's q; `vtrace` with state values; `model`: the policy gradient takes the model's q alone.
    retrace_lambda: of the traces. num_q_samples: actions that estimate `E q`; 0 is exact. value_target: `corrected` for
      off-policy actions, or the plain `return`.
    target_share, behaviour_share, uniform_share: the mixture that is the prior policy.
    normalize: divide advantages by their moving scale. advantage_scale: multiplies advantages after that.
    variance_decay, variance_epsilon: of the moving second moment.

    model_steps: `K`. model_policy_weight, value_weight, reward_weight: of the losses. dynamics_gradient: what each step of
      the model lets through of the gradient to the state before it.
    evaluation: `sample` plays the policy in evaluation, `greedy` its most likely action, `search` what a `search` with the
      model finds (Hessel et al. 2021, figure 3).
    """

    torso: TorsoConfig = TorsoConfig()
    core: CoreConfig = CoreConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    bins: BinsConfig = BinsConfig()
    head_hidden: tuple[int, ...] = (128,)

    unroll_length: int = 30
    replay_share: float = 0.75
    replay_capacity: int = 20_000

    discount: float = 0.995
    learning_rate: float = 3e-4
    decay_updates: int = 0
    weight_decay: float = 0.0
    max_update: float = 1.0
    target_rate: float = 0.1

    policy_loss: Literal["muesli", "pg", "cmpo", "mpo", "ppo", "trpo"] = "muesli"
    regularizer_weight: float = 1.0
    cmpo_clip: float | None = 1.0
    num_kl_samples: int = 16
    z_init: float = 1.0
    ppo_epsilon: float = 0.2
    beta_loo: bool = False
    beta_max: float = 1.0

    returns: Literal["retrace", "vtrace", "model"] = "retrace"
    retrace_lambda: float = 1.0
    num_q_samples: int = 16
    value_target: Literal["corrected", "return"] = "corrected"
    target_share: float = 0.967
    behaviour_share: float = 0.03
    uniform_share: float = 0.003
    normalize: bool = True
    advantage_scale: float = 1.0
    variance_decay: float = 0.99
    variance_epsilon: float = 1e-12

    model_steps: int = 5
    model_policy_weight: float = 1.0
    value_weight: float = 0.25
    reward_weight: float = 1.0
    dynamics_gradient: float = 0.5
    evaluation: Literal["sample", "greedy", "search"] = "sample"
    search: SearchConfig = SearchConfig()

    def __post_init__(self) -> None:
        shares = (self.target_share, self.behaviour_share, self.uniform_share)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"target_share, behaviour_share and uniform_share must sum to 1, not {sum(shares):g}")
        require(self, "model_steps", at_least=1)
        require(self, "num_kl_samples", "num_q_samples", "learning_rate", "decay_updates", "weight_decay", at_least=0)
        require(self, "cmpo_clip", "z_init", "max_update", above=0)
        probabilities = ("discount", "retrace_lambda", "variance_decay", "target_rate", "dynamics_gradient")
        require(self, *probabilities, at_least=0, at_most=1)


# Sizes for a CPU of two cores: narrow networks, few bins, all actions instead of samples.
_SMALL: Mapping[str, Any] = {
    "agent.head_hidden": (32,),
    "agent.dynamics.size": 32,
    "agent.bins.num_bins": 41,
    "agent.model_steps": 3,
    "agent.num_kl_samples": 0,
    "agent.num_q_samples": 0,
}

_PONG: Mapping[str, Any] = {
    **_SMALL,
    "env.observation": "objects",
    "env.full_action_space": False,
    "agent.torso.hidden": (128, 128),
    "agent.dynamics.size": 64,
    "agent.bins.limit": 1.5,
    "agent.unroll_length": 32,
    "agent.retrace_lambda": 0.97,
    "agent.learning_rate": 1e-3,
    "agent.evaluation": "greedy",
    "anakin.minibatches": 8,
}

# Four gradient steps an update: with one, values lag far behind a policy that already balances. Replay keeps the whole run, its
# failures too: with the last 3200 unrolls and one gradient step, runs that had solved the task fell again.
_CARTPOLE = Preset(
    num_steps=400_000,
    overrides={
        **_SMALL,
        "agent.torso.hidden": (64, 64),
        "agent.bins.limit": 16.0,
        "agent.unroll_length": 20,
        "agent.replay_capacity": 32_000,
        "agent.discount": 0.99,
        "agent.retrace_lambda": 0.95,
        "agent.learning_rate": 1e-3,
        "agent.decay_updates": 5000,
        "anakin.num_envs": 16,
        "anakin.minibatches": 4,
    },
)

PRESETS: Mapping[str, Preset] = {
    "catch": Preset(
        num_steps=130_000,
        overrides={
            **_SMALL,
            "agent.torso.hidden": (64,),
            "agent.bins.limit": 5.0,
            "agent.unroll_length": 10,
            "agent.replay_capacity": 6400,
            "agent.learning_rate": 3e-3,
            "anakin.num_envs": 32,
        },
    ),
    "gymnax/CartPole-v1": _CARTPOLE,
    "gymnasium/CartPole-v1": _CARTPOLE.also({"sebulba.sync": True}),
    # Many small gradient steps count for more here than replay does. Of the 18 actions only 6 differ.
    "atari_jax/pong": Preset(
        num_steps=18_000_000,
        overrides={
            **_PONG,
            "agent.replay_share": 0.0,
            "agent.decay_updates": 70_313,
            "anakin.num_envs": 64,
        },
    ),
    # The real game, seen through its RAM: in the minutes that two cores need here, nothing is learned from pixels. The
    # emulator is the slow part, so every step is used four times.
    "atari/pong": Preset(
        num_steps=330_000,
        overrides={
            **_PONG,
            "agent.head_hidden": (64,),
            "agent.replay_share": 0.75,
            "agent.replay_capacity": 3200,
            "anakin.num_envs": 32,
            "eval_episodes": 4,
        },
    ),
    # The settings of the paper's Atari experiments with the IMPALA network, for accelerators: batches of 96 sequences of 30
    # steps, of which 72 are replayed from 6 million steps, and 200 million frames. Widths of core and heads are not given.
    "paper_atari": Preset(
        num_steps=50_000_000,
        overrides={
            "agent.torso.kind": "impala",
            "agent.torso.channel_scale": 4,
            "agent.torso.hidden": (512,),
            "agent.core.kind": "lstm",
            "agent.core.size": 512,
            "agent.dynamics.kind": "lstm",
            "agent.dynamics.size": 1024,
            "agent.head_hidden": (512,),
            "agent.replay_capacity": 200_000,
            "agent.decay_updates": 69_445,
            "anakin.num_envs": 24,
        },
    ),
}
