"""Settings of Nav, its presets, and the agents of the paper as settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from podracer.config import Preset, require
from podracer.nets.torso import TorsoConfig
from podracer.ops.actor_critic import ActorCriticConfig


@dataclasses.dataclass(frozen=True)
class NavConfig(ActorCriticConfig):
    """Beside the settings of `ActorCriticConfig`:

    memory: `none` (FF of the paper); `lstm`: one LSTM, which sees what the encoder saw; `stacked`: Nav, two LSTMs that also
      see the previous reward (the first), the velocity where it is observed and the previous action (the second).
    torso: the encoder. It sees every part of the observation but `velocity`. reward_lstm: width of the first of two LSTMs.
      lstm: width of the only or the second one.

    beta_d1, beta_d2, beta_l: weights, beside a policy loss of weight 1, of predicting depth from the encoder's features, depth
      from the memory, and loop closure from the memory; 0 leaves a head out. Depth losses are means over pixels.
    depth: 8 classes for each pixel, or regression with half the squared error. depth_power: depth `d` counts as
      `d ** depth_power`; the paper's 10 is for a depth that is near 1 almost everywhere, and of one in proportion to distance,
      such as that of our mazes, it would leave nothing to tell. depth_hidden: hidden widths of a head of depth.
    probe: also learn to tell the position linearly from the memory, where the environment labels it; its gradients go into the
      probe alone, with a step size of its own. probe_learning_rate: that step size, of Adam.

    unroll_length: agent steps. microbatch: see `podracer.agent.DataSpec`. discount: the agent's own. loss_scale: of
      the whole; the paper sums over time where we take the mean.
    optimizer: `adam`, or the paper's `rmsprop`. learning_rate: of it. epsilon: beside the root of its second moments.
      max_gradient_norm: what the global norm of gradients is clipped to.
      decay_updates: updates over which learning rate and entropy cost fall linearly to 0; 0 keeps them.
    """

    memory: Literal["none", "lstm", "stacked"] = "stacked"
    torso: TorsoConfig = TorsoConfig(hidden=(256,))
    reward_lstm: int = 64
    lstm: int = 256

    beta_d1: float = 0.0
    beta_d2: float = 0.0
    beta_l: float = 0.0
    depth: Literal["classification", "regression"] = "classification"
    depth_power: float = 1.0
    depth_hidden: tuple[int, ...] = (128,)
    probe: bool = True
    probe_learning_rate: float = 3e-3

    unroll_length: int = 50
    microbatch: int = 0
    discount: float = 0.99
    entropy_cost: float = 1e-3
    loss_scale: float = 1.0
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float = 5e-4
    epsilon: float = 1e-5
    decay_updates: int = 0
    max_gradient_norm: float = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "beta_d1", "beta_d2", "beta_l", "learning_rate", "probe_learning_rate", "decay_updates", at_least=0)
        require(self, "depth_power", "max_gradient_norm", above=0)
        require(self, "discount", at_least=0, at_most=1)


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "FF": {"agent.memory": "none"},
    "LSTM": {"agent.memory": "lstm"},
    "Nav": {},
    "Nav+D1": {"agent.beta_d1": 1.0},
    "Nav+D2": {"agent.beta_d2": 1.0},
    "Nav+L": {"agent.beta_l": 1.0},
    "Nav+D1D2L": {"agent.beta_d1": 1.0, "agent.beta_d2": 1.0, "agent.beta_l": 1.0},
    "Nav, depth as input": {"env.depth_input": True},
}
"""The agents of the paper (figure 2) and its ablation, as settings over a preset that leaves these alone."""

# With the mazes' own max_depth few pixels would leave the first bands.
_DEPTH: Mapping[str, Any] = {"env.max_depth": 3.0}
_SMALL: Mapping[str, Any] = {
    **_DEPTH,
    "env.maze": "mini",
    "agent.depth_hidden": (64,),
    "agent.learning_rate": 1e-3,
    "agent.entropy_cost": 0.02,
}

PRESETS: Mapping[str, Preset] = {
    # A picture of 4 x 16 pixels: enough to tell walls, fruit and goal apart, and far fewer than a convolution needs.
    "nav/ray_maze": Preset(
        num_steps=6_000_000,
        overrides={
            **_SMALL,
            "env.height": 4,
            "env.width": 16,
            "agent.torso.kind": "mlp",
            "agent.torso.hidden": (64, 64),
            "agent.reward_lstm": 16,
            "agent.lstm": 64,
            "agent.unroll_length": 25,
            "agent.max_gradient_norm": 1.0,
            "agent.entropy_cost": 0.01,
            "agent.decay_updates": 15_000,
            "anakin.num_envs": 64,
            "anakin.minibatches": 4,
        },
    ),
    # Doom is what takes the time: few environments make many updates of its steps.
    "nav/vizdoom_maze": Preset(
        num_steps=400_000,
        overrides={
            **_SMALL,
            "env.height": 32,
            "env.width": 32,
            "agent.torso.kind": "a3c",
            "agent.torso.hidden": (64,),
            "agent.reward_lstm": 16,
            "agent.lstm": 64,
            "agent.unroll_length": 20,
            "anakin.num_envs": 16,
            "sebulba.threads": 1,
        },
    ),
    # Sizes, weights and budget of the paper, for accelerators. It samples learning rate, entropy and betas anew for each run;
    # these are of its ranges. loss_scale: it sums over the time steps of an unroll.
    "paper": Preset(
        num_steps=25_000_000,
        overrides={
            **_DEPTH,
            "env.maze": "small",
            "env.height": 84,
            "env.width": 84,
            "env.action_repeat": 4,
            "agent.torso.kind": "a3c",
            "agent.torso.hidden": (256,),
            "agent.reward_lstm": 64,
            "agent.lstm": 256,
            "agent.beta_d1": 3.33,
            "agent.beta_d2": 1.0,
            "agent.beta_l": 1.0,
            "agent.unroll_length": 50,
            "agent.loss_scale": 50.0,
            "agent.entropy_cost": 1e-3,
            "agent.optimizer": "rmsprop",
            "agent.epsilon": 0.1,
            "agent.learning_rate": 5e-4,
            "anakin.num_envs": 32,
        },
    ),
}
