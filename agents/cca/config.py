"""Settings of counterfactual credit assignment and of the baselines that share its code."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from podracer.config import Preset, require
from podracer.nets.recurrent import CoreConfig
from podracer.nets.torso import TorsoConfig

Estimator = Literal["cca", "cca_all_action", "fc", "fc_all_action", "actor_critic", "hca_state", "hca_return"]
ESTIMATORS = get_args(Estimator)
HINDSIGHT: tuple[Estimator, ...] = ("cca", "cca_all_action", "fc", "fc_all_action")
"""Estimators with a hindsight statistic."""
ALL_ACTION: tuple[Estimator, ...] = ("cca_all_action", "fc_all_action")
"""Those whose hindsight value is one for each action."""


@dataclasses.dataclass(frozen=True)
class HindsightConfig:
    """The network of the hindsight statistic `Phi_t`.

    kind: `rnn` (an LSTM from the end of the episode back to t + 1), `attention` (one layer over the steps from t + 1 to the end
      of the episode), or `mlp` (of the arrival at t + 1 alone: for episodes of one step).
    size: of `Phi`. hidden: width of the LSTM, or of the attention, and of the layers around it. heads: of the attention.
    rewards: whether rewards are among its inputs.
    """

    kind: Literal["rnn", "attention", "mlp"] = "rnn"
    size: int = 32
    hidden: int = 64
    heads: int = 4
    rewards: bool = True

    def __post_init__(self) -> None:
        if self.kind == "attention" and (self.hidden % (2 * self.heads)):
            raise ValueError(f"hindsight.hidden={self.hidden} must be a multiple of twice hindsight.heads={self.heads}")


@dataclasses.dataclass(frozen=True)
class IndependenceConfig:
    """How far `Phi` may tell of the action: the mean of `KL(pi(.|X) || h(.|X, Phi))` over decisions, in nats.

    weight: lambda_IM of the loss; with a bound, where it starts. bound: above 0, the weight is found by GECO, so that the mean
    stays below the bound. rate, decay: of its dual step, see `podracer.ops.geco.dual_step`.
    """

    weight: float = 1.0
    bound: float = 0.0
    rate: float = 0.01
    decay: float = 0.99

    def __post_init__(self) -> None:
        require(self, "weight", "bound", at_least=0)
        require(self, "decay", at_least=0, below=1)
        if self.bound and not self.weight:
            raise ValueError("independence.bound needs a weight above 0 to start from")


@dataclasses.dataclass(frozen=True)
class CcaConfig:
    """Counterfactual credit assignment (CCA) and its baselines.

    estimator: of the policy gradient, from Monte-Carlo returns `G`.
      `cca`: `G - V(X, Phi)` of the action taken; `cca_all_action`: `Q(X, Phi, a)` of all actions. Both need a `Phi` that is
        independent of the action.
      `fc`, `fc_all_action`: future-conditional, unbiased for any `Phi` that rules no action out (single-action form), or any at
        all; they weigh by `h(a|X, Phi)` what the others assume independent.
      `actor_critic`: `G - V(X)`.
      `hca_return`, `hca_state`: hindsight credit assignment, conditional on the return or on later states.

    torso, core: of the policy. With a core the agent's state also reads the reward and the action before. head_hidden: hidden
      widths of value, hindsight value and classifier. hindsight, independence: see there.
    critic_trains_state: whether the (hindsight) value loss trains the torso and the core too.

    unroll_length: `T`, slots. Episodes of L steps fill L + 1 slots: with `T = L + 1`, or a multiple, unrolls hold whole ones.
    microbatch: see `podracer.agent.DataSpec`. discount: the agent's own. reward_scale: multiplies rewards while learning.
    value_cost: weight of the value losses beside the policy gradient's 1. entropy_cost: of the policy's entropy.
      decay_updates: updates over which it falls linearly to 0; 0 keeps it.
    learning_rate: of Adam. classifier_learning_rate: of the classifier's own Adam. max_gradient_norm: of each of the two.
    classifier_steps: of the classifier alone, before each update and on the same batch: what it does not know of the action,
      `Phi` is free to tell.
    greedy_evaluation: evaluate with the most likely action.
    """

    estimator: Estimator = "cca"
    torso: TorsoConfig = TorsoConfig()
    core: CoreConfig = CoreConfig()
    head_hidden: tuple[int, ...] = (64,)
    hindsight: HindsightConfig = HindsightConfig()
    independence: IndependenceConfig = IndependenceConfig()
    critic_trains_state: bool = True

    unroll_length: int = 20
    microbatch: int = 0
    discount: float = 1.0
    reward_scale: float = 1.0
    value_cost: float = 0.5
    entropy_cost: float = 0.01
    decay_updates: int = 0
    learning_rate: float = 1e-3
    classifier_learning_rate: float = 2e-3
    classifier_steps: int = 0
    max_gradient_norm: float = 10.0
    greedy_evaluation: bool = False

    def __post_init__(self) -> None:
        require(self, "discount", at_least=0, at_most=1)
        require(self, "reward_scale", "max_gradient_norm", above=0)
        require(self, "learning_rate", "classifier_learning_rate", "decay_updates", "classifier_steps", at_least=0)


# Sizes for a CPU of two cores.
_SMALL: Mapping[str, Any] = {
    "agent.torso.kind": "mlp",
    "agent.torso.hidden": (32,),
    "agent.head_hidden": (32,),
    "agent.core.kind": "gru",
    "agent.core.size": 32,
    "agent.hindsight.size": 16,
    "agent.hindsight.hidden": 32,
    "agent.reward_scale": 0.3,
    "agent.entropy_cost": 0.003,
    "agent.learning_rate": 3e-3,
    "agent.classifier_learning_rate": 5e-3,
    "agent.classifier_steps": 8,
    "agent.independence.weight": 10.0,
    "anakin.num_envs": 32,
}

PRESETS: Mapping[str, Preset] = {
    # Entropy must fall slowly: a policy that is sure of itself early keeps to the few arms that it knows by then.
    "credit/feedback_bandit": Preset(
        num_steps=192_000,
        overrides={
            "agent.torso.hidden": (64, 64),
            "agent.head_hidden": (64, 64),
            "agent.hindsight.kind": "mlp",
            "agent.hindsight.size": 8,
            "agent.hindsight.rewards": False,
            "agent.unroll_length": 2,
            "agent.reward_scale": 0.02,
            "agent.learning_rate": 1e-3,
            "agent.classifier_learning_rate": 2e-3,
            "agent.classifier_steps": 8,
            "agent.entropy_cost": 0.3,
            "agent.decay_updates": 3000,
            "anakin.num_envs": 64,
        },
    ),
    "credit/key_to_door_mini": Preset(
        num_steps=2_000_000,
        overrides={
            **_SMALL,
            "agent.unroll_length": 31,
        },
    ),
    "credit/interleaving": Preset(
        num_steps=600_000,
        overrides={
            **_SMALL,
            "env.task_rewards": (10.0, 1.0, 0.5),
            "env.num_parallel": 2,
            "env.num_objects": 2,
            "env.length": 20,
            "agent.unroll_length": 21,
        },
    ),
    # The paper's rooms and phases, for accelerators.
    "credit/key_to_door": Preset(
        num_steps=100_000_000,
        overrides={
            "agent.torso.kind": "mlp",
            "agent.torso.hidden": (128,),
            "agent.head_hidden": (256,),
            "agent.core.kind": "lstm",
            "agent.core.size": 128,
            "agent.hindsight.size": 64,
            "agent.hindsight.hidden": 128,
            "agent.unroll_length": 121,
            "agent.reward_scale": 0.3,
            "agent.entropy_cost": 0.003,
            "agent.learning_rate": 5e-4,
            "agent.classifier_learning_rate": 1e-3,
            "agent.classifier_steps": 8,
            "agent.independence.weight": 10.0,
            "anakin.num_envs": 128,
        },
    ),
}
