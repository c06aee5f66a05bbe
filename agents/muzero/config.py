"""Settings of MuZero. The defaults are those of the paper's Atari experiments where they do not ask for a TPU pod."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from podracer.config import Preset, require
from podracer.nets.dynamics import DynamicsConfig
from podracer.nets.heads import BinsConfig
from podracer.nets.history import HistoryConfig
from podracer.nets.resnet import ResnetConfig
from podracer.nets.torso import TorsoConfig
from podracer.search.config import SearchConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How the agent acts when it is evaluated.

    act: `search`; `sample` or `greedy` from the policy network, without a search.
    kind, num_simulations, max_depth, uct_depth: of that search; None takes what `search` has.
    model: `learned`, or `simulator`, the environment itself; empty takes the agent's `model`.
    """

    act: Literal["search", "sample", "greedy"] = "search"
    kind: Literal["gumbel", "puct", "bfs"] | None = None
    num_simulations: int | None = None
    max_depth: int | None = None
    uct_depth: int | None = None
    model: Literal["", "learned", "simulator"] = ""


@dataclasses.dataclass(frozen=True)
class MuZeroConfig:
    """MuZero and its relatives.

    network: `mlp`, a torso and a vector as the model's state, or `resnet`, planes (paper). torso, dynamics: of `mlp`.
    resnet: of `resnet`. bins, head_hidden: of the heads. scale_hidden: scale every model state to [0, 1]. history: of
    observations.

    search: while acting and for targets. model: `learned`, or `simulator`: the environment itself (then no model is used but
      one is learned still). evaluation: see there.
    acting: `search` plays what the search chose, `prior` a sample of the policy network. targets: `search`, or `one_step`: of a
      search of depth 1 with the same budget. Hamrick et al. 2021 call these: One-Step (prior, one_step), Learn (prior,
      search), Data (search, one_step), Learn+Data (search, search), each evaluated by the policy, and MuZero (Learn+Data+Eval).
    temperatures: of the choice by visits (`puct`); the next one begins at each of temperature_updates.
      temperature_updates: numbers of updates, one less than temperatures. temperature_moves: after
      so many moves of an episode it is 0; 0 leaves it.

    unroll_length: `T`. replay_share, replay_capacity, updates_per_unroll: see `podracer.agent.DataSpec`.
      priority_exponent: alpha, of replay by `|value - target|`, of the value that targets bootstrap from; importance_exponent:
      beta, of weights that are not normalised, so that at 1 the mean is unbiased. microbatch: see `DataSpec`.
    reanalyze_share: share of the batch that is searched again, with the target network, before it is learned from: of every
      environment as much, replayed unrolls first. A whole number of the `1 / (1 - replay_share)` unrolls of each.
    bootstrap: what value targets bootstrap from: `search`, the values that the searches found while acting, or `target`, those
      of the target network today (Schrittwieser et al. 2021): old searches in a long replay know old values. Where a column is
      reanalysed it is the new search in either case.
    target_period: updates between copies to the target network, which reanalyses, bootstraps, and guesses where no search is.

    discount: the agent's own. return_steps: `n` of value targets, or more than T for returns to the end of the unroll.
    model_steps: `K`. dynamics_gradient: what each step of the model lets through of the gradient to the state before it.
    policy_weight, value_weight, reward_weight: of the losses.
    optimizer: `sgd` with momentum, or `adam`. momentum: of `sgd`. learning_rate: at the start. decay_updates: updates over
      which it falls; 0 keeps it. decay: how, `linear` to 0, `exponential` or in `steps` to a tenth each. weight_decay: a
      penalty on the norm, decoupled for `adam`. max_gradient_norm: what the global norm of gradients is clipped to.
    """

    network: Literal["mlp", "resnet"] = "mlp"
    torso: TorsoConfig = TorsoConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    resnet: ResnetConfig = ResnetConfig()
    bins: BinsConfig = BinsConfig()
    head_hidden: tuple[int, ...] = (64,)
    scale_hidden: bool = True
    history: HistoryConfig = HistoryConfig()

    search: SearchConfig = SearchConfig()
    model: Literal["learned", "simulator"] = "learned"
    evaluation: EvaluationConfig = EvaluationConfig()
    acting: Literal["search", "prior"] = "search"
    targets: Literal["search", "one_step"] = "search"
    temperatures: tuple[float, ...] = (1.0,)
    temperature_updates: tuple[int, ...] = ()
    temperature_moves: int = 0

    unroll_length: int = 20
    replay_share: float = 0.75
    replay_capacity: int = 20_000
    updates_per_unroll: int = 1
    priority_exponent: float = 0.0
    importance_exponent: float = 1.0
    microbatch: int = 0
    reanalyze_share: float = 0.0
    bootstrap: Literal["search", "target"] = "search"
    target_period: int = 100

    discount: float = 0.997
    return_steps: int = 10
    model_steps: int = 5
    dynamics_gradient: float = 0.5
    policy_weight: float = 1.0
    value_weight: float = 0.25
    reward_weight: float = 1.0
    optimizer: Literal["sgd", "adam"] = "adam"
    momentum: float = 0.9
    learning_rate: float = 1e-3
    decay: Literal["linear", "exponential", "steps"] = "linear"
    decay_updates: int = 0
    weight_decay: float = 1e-4
    max_gradient_norm: float = 5.0

    def __post_init__(self) -> None:
        require(self, "model_steps", "return_steps", "target_period", at_least=1)
        require(self, "discount", "dynamics_gradient", "reanalyze_share", at_least=0, at_most=1)
        require(self, "replay_share", at_least=0, below=1)
        require(self, "learning_rate", "decay_updates", "weight_decay", at_least=0)
        require(self, "max_gradient_norm", above=0)

    def one_step_search(self) -> SearchConfig:
        """The search of the same budget that looks one action ahead."""
        return dataclasses.replace(self.search, max_depth=1, uct_depth=-1)

    def evaluation_search(self) -> SearchConfig:
        """`search`, with what `evaluation` says anew."""
        names = ("kind", "num_simulations", "max_depth", "uct_depth")
        anew = {name: value for name in names if (value := getattr(self.evaluation, name)) is not None}
        if anew.get("kind", "puct") != "puct":
            anew.setdefault("uct_depth", -1)
        return dataclasses.replace(self.search, **anew)


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "one_step": {"agent.acting": "prior", "agent.targets": "one_step", "agent.evaluation.act": "sample"},
    "learn": {"agent.acting": "prior", "agent.targets": "search", "agent.evaluation.act": "sample"},
    "data": {"agent.acting": "search", "agent.targets": "one_step", "agent.evaluation.act": "sample"},
    "learn_data": {"agent.acting": "search", "agent.targets": "search", "agent.evaluation.act": "sample"},
    "learn_data_eval": {"agent.acting": "search", "agent.targets": "search", "agent.evaluation.act": "search"},
}
"""The variants of Hamrick et al. 2021 as overrides; `benchmarks/planning.py` compares them."""

# Sizes for a CPU of two cores.
_SMALL: Mapping[str, Any] = {
    "agent.torso.hidden": (64,),
    "agent.dynamics.size": 64,
    "agent.bins.num_bins": 41,
    "agent.model_steps": 3,
    "agent.search.num_simulations": 16,
}

# Of mazes with a new layout every episode, planned in the environment itself.
_MAZE: Mapping[str, Any] = {
    **_SMALL,
    "env.size": 7,
    "agent.model": "simulator",
    "agent.torso.hidden": (128, 128),
    "agent.dynamics.size": 128,
    "agent.bins.num_bins": 21,
    "agent.bins.limit": 1.0,
    "agent.search.value_scale": 0.05,
    "agent.unroll_length": 16,
    "agent.return_steps": 5,
    "agent.replay_capacity": 32_000,
    "agent.bootstrap": "target",
    "agent.discount": 0.95,
    "agent.learning_rate": 1e-3,
    "agent.decay_updates": 1875,
    "anakin.num_envs": 32,
    "anakin.minibatches": 8,
    "eval_episodes": 200,
}

# Many small gradient steps, and values from the target network: those that old searches found are far behind.
_CARTPOLE = Preset(
    num_steps=1_200_000,
    overrides={
        **_SMALL,
        "agent.torso.hidden": (64, 64),
        "agent.bins.limit": 16.0,
        "agent.search.num_simulations": 12,
        "agent.search.value_scale": 0.05,
        "agent.temperatures": (1.0, 0.5, 0.25),
        "agent.temperature_updates": (5000, 10_000),
        "agent.unroll_length": 20,
        "agent.replay_capacity": 32_000,
        "agent.bootstrap": "target",
        "agent.target_period": 50,
        "agent.discount": 0.99,
        "agent.learning_rate": 1e-3,
        "agent.decay_updates": 15_000,
        "anakin.num_envs": 16,
        "anakin.minibatches": 4,
    },
)

# Whole games: a return to the end of the unroll, bootstrapped there where the game goes on.
_BOARD: Mapping[str, Any] = {
    "agent.network": "resnet",
    "agent.bins.limit": 1.0,
    "agent.bins.num_bins": 21,
    "agent.value_weight": 1.0,
    "agent.discount": 1.0,
    "agent.unroll_length": 16,
    "agent.return_steps": 17,
}

_PAPER_ATARI: Mapping[str, Any] = {
    "env.image_height": 96,
    "env.image_width": 96,
    "env.grey": False,
    "env.stack": 1,
    "agent.network": "resnet",
    "agent.resnet.downsample": "atari",
    "agent.resnet.action_planes": "one_hot",
    "agent.head_hidden": (),
    "agent.bins.num_bins": 601,
    "agent.bins.limit": 300.0,
    "agent.history.length": 32,
    "agent.history.actions": True,
    "agent.search.kind": "puct",
    "agent.search.num_simulations": 50,
    "agent.search.dirichlet_alpha": 0.25,
    "agent.temperatures": (1.0, 0.5, 0.25),
    "agent.temperature_updates": (500_000, 750_000),
    "agent.unroll_length": 16,
    "agent.replay_capacity": 1_562_500,
    "agent.priority_exponent": 1.0,
    "agent.optimizer": "sgd",
    "agent.learning_rate": 0.05,
    "agent.decay": "steps",
    "agent.decay_updates": 350_000,
    "anakin.num_envs": 16,
}

PRESETS: Mapping[str, Preset] = {
    "catch": Preset(
        num_steps=100_000,
        overrides={
            **_SMALL,
            "agent.bins.limit": 3.0,
            "agent.unroll_length": 9,
            "agent.replay_capacity": 3200,
            "agent.learning_rate": 3e-3,
            "agent.updates_per_unroll": 4,
            "anakin.num_envs": 32,
        },
    ),
    "gymnax/CartPole-v1": _CARTPOLE,
    "gymnasium/CartPole-v1": _CARTPOLE.also({"sebulba.sync": True}),
    # The first key, door and goal are found by looking ahead.
    "gridworld/key_door": Preset(num_steps=120_000, overrides=_MAZE),
    # A push too many cannot be undone, so a look at what follows is worth more than any one-step hunch.
    "sokoban/mini": Preset(
        num_steps=1_500_000,
        overrides={
            **_MAZE,
            "env.num_boxes": 1,
            "env.reward": "sparse",
            "agent.search.num_simulations": 32,
            "agent.torso.hidden": (256, 256),
            "agent.discount": 0.97,
            "agent.decay_updates": 23_437,
        },
    ),
    # Random first moves: self-play alone never meets what a good opponent answers, and loses there.
    "pgx/tic_tac_toe": Preset(
        num_steps=1_400_000,
        overrides={
            "env.random_plies": 6,
            "agent.torso.hidden": (256,),
            "agent.dynamics.size": 256,
            "agent.bins.num_bins": 21,
            "agent.bins.limit": 1.0,
            "agent.search.num_simulations": 16,
            "agent.search.rescale_values": False,
            "agent.discount": 1.0,
            "agent.unroll_length": 10,
            "agent.return_steps": 11,
            "agent.replay_capacity": 8000,
            "agent.learning_rate": 1e-3,
            "agent.decay_updates": 35_000,
            "anakin.num_envs": 32,
            "anakin.minibatches": 8,
        },
    ),
    # Sampled MuZero. An action of four control steps changes too little for a search to see it; eight do.
    "dm_control/cartpole_swingup": Preset(
        num_steps=250_000,
        overrides={
            "env.action_repeat": 8,
            "agent.search.num_sampled_actions": 16,
            "agent.search.num_simulations": 16,
            "agent.torso.hidden": (128, 128),
            "agent.dynamics.size": 128,
            "agent.bins.num_bins": 41,
            "agent.bins.limit": 12.0,
            "agent.value_weight": 1.0,
            "agent.discount": 0.97,
            "agent.unroll_length": 10,
            "agent.return_steps": 5,
            "agent.replay_capacity": 40_000,
            "agent.bootstrap": "target",
            "agent.learning_rate": 1e-3,
            "agent.decay_updates": 12_500,
            "anakin.num_envs": 16,
            "anakin.minibatches": 8,
            "sebulba.sync": True,
        },
    ),
    # Planes and few blocks: the smallest that plays Go at all. Tens of hours on two cores; meant for an accelerator.
    "pgx/go_9x9": Preset(
        num_steps=20_000_000,
        overrides={
            **_BOARD,
            "agent.resnet.channels": 64,
            "agent.resnet.blocks": 4,
            "agent.search.num_simulations": 32,
            "agent.optimizer": "adam",
            "agent.learning_rate": 1e-3,
            "agent.decay_updates": 9766,
            "agent.replay_capacity": 32_768,
            "anakin.num_envs": 128,
        },
    ),
    # The papers' sizes, for accelerators, and their million updates. What they call a batch of 1024 positions is here 64
    # unrolls of 16 steps.
    "paper_atari": Preset(num_steps=256_000_000, overrides=_PAPER_ATARI),
    # Few frames, each of which is learned from often, and most of it searched anew (Schrittwieser et al. 2021).
    "paper_reanalyse": Preset(
        num_steps=50_000_000,
        overrides={
            **_PAPER_ATARI,
            "agent.reanalyze_share": 0.75,
            "agent.bootstrap": "target",
            "agent.return_steps": 5,
            "agent.updates_per_unroll": 5,
        },
    ),
    "paper_board": Preset(
        num_steps=1_024_000_000,
        overrides={
            **_BOARD,
            "agent.resnet.channels": 256,
            "agent.resnet.blocks": 16,
            "agent.search.kind": "puct",
            "agent.search.num_simulations": 800,
            "agent.search.dirichlet_alpha": 0.03,
            "agent.temperature_moves": 30,
            "agent.history.length": 8,
            "agent.history.actions": True,
            "agent.optimizer": "sgd",
            "agent.learning_rate": 0.05,
            "agent.decay": "steps",
            "agent.decay_updates": 400_000,
            "agent.replay_capacity": 1_000_000,
            "anakin.num_envs": 512,
            "anakin.minibatches": 8,
        },
    ),
}
