"""The data that environments, agents, stores and runtimes exchange. Types only, no behaviour beyond predicates.

Shapes: `B` is a batch of environments (or of sequences), `T` an unroll length, `A` a number of discrete actions. Arrays of
a trajectory are time-major. A field that an agent does not use is the empty tuple, which is a pytree without leaves.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Self, cast, dataclass_transform

import dm_env
import jax
import jax.numpy as jnp
from dm_env import specs

Array = jax.Array
Key = jax.Array
"""A typed PRNG key (`jax.random.key`), or an array of them."""
Params = Any
ActorState = Any
Metrics = Mapping[str, Any]

FIRST = int(dm_env.StepType.FIRST)
MID = int(dm_env.StepType.MID)
LAST = int(dm_env.StepType.LAST)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Struct:
    """A frozen dataclass, with keyword arguments only, that is also a pytree of all its fields. Subclass it to make one."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        jax.tree_util.register_dataclass(cls)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of some fields."""
        return dataclasses.replace(cast(Any, self), **changes)


class Mode(enum.Enum):
    """What an action is for. A static argument of `Agent.act`."""

    TRAIN = "train"
    """Explore: the behaviour that the loss corrects for."""
    EVALUATE = "evaluate"
    """Show what was learned: no exploration noise beyond the policy's own."""


class TimeStep(Struct):
    """What arrives from an environment. Follows dm_env: reward and discount belong to the arrival at `observation`.

    LAST carries its own final observation. Termination is LAST with discount 0; truncation is LAST with discount > 0 and
    bootstraps from its own observation. The step after LAST is FIRST; the pair LAST -> FIRST is no transition and is masked.

    step_type: `[...]` int32, FIRST, MID or LAST.
    reward: `[...]` float32, 0 on FIRST.
    discount: `[...]` float32, the environment's own discount (not the agent's), 1 on FIRST. -1 between the plies of a
      zero-sum game for two.
    observation: `[..., *shape]` pytree, what the policy may read. Where legal actions are restricted it is a dictionary
      with the key `legal_actions`, `[..., A]` bool; of a search in the true environment it also holds the key `simulator`.
    aux: pytree of labels (depth, pose, loop closure) that no policy may read.
    """

    step_type: Any
    reward: Any
    discount: Any
    observation: Any
    aux: Any = ()

    def first(self) -> Any:
        """`[...]` bool: an episode starts here."""
        return self.step_type == FIRST

    def mid(self) -> Any:
        """`[...]` bool: neither the start nor the end of an episode."""
        return self.step_type == MID

    def last(self) -> Any:
        """`[...]` bool: an episode ends here, by termination or by truncation."""
        return self.step_type == LAST

    def unlabelled(self) -> Self:
        """Without `aux`: what whoever calls `Agent.act` hands to it. The loss sees the labels, a policy never does."""
        return self.replace(aux=())


def restart(observation: Any, aux: Any = ()) -> TimeStep:
    """The FIRST time step of one (unbatched) episode."""
    return TimeStep(
        step_type=jnp.int32(FIRST), reward=jnp.float32(0), discount=jnp.float32(1), observation=observation, aux=aux
    )


def transition(
    reward: Any, observation: Any, *, terminated: Any = False, truncated: Any = False, discount: Any = 1.0, aux: Any = ()
) -> TimeStep:
    """A MID or LAST time step. Termination wins over truncation that falls on the same step.

    Args:
      reward: `[...]`, the reward of this arrival.
      observation: `[..., *shape]` pytree.
      terminated: `[...]` bool; makes the step LAST with discount 0.
      truncated: `[...]` bool; makes the step LAST and keeps `discount`.
      discount: `[...]` float, used where the episode was not terminated.
      aux: labels.
    """
    terminated, truncated = jnp.asarray(terminated), jnp.asarray(truncated)
    return TimeStep(
        step_type=jnp.where(terminated | truncated, LAST, MID).astype(jnp.int32),
        reward=jnp.asarray(reward, jnp.float32),
        discount=jnp.where(terminated, 0.0, discount).astype(jnp.float32),
        observation=observation,
        aux=aux,
    )


class ActorOutput(Struct):
    """What acting produced at one time step, as the loss needs it later.

    action: `[B]` int32 for discrete, `[B, *shape]` float32 for continuous actions.
    log_prob: `[B]` float32, log-probability (density) of `action` under the policy that acted.
    logits: `[B, A]` float32 behaviour logits, or the pytree of parameters of a continuous policy.
    value: `[B]` float32, value of the root or of the state as the actor saw it.
    search_weights: `[B, N]` float32, the policy that a search found, over all `A` discrete actions or over `search_actions`.
    search_actions: `[B, N, *action_shape]`, the sampled actions among which a search chose.
    version: `[B]` int32, number of updates behind the parameters that acted. Filled in by the runtime.
    """

    action: Any
    log_prob: Any
    logits: Any = ()
    value: Any = ()
    search_weights: Any = ()
    search_actions: Any = ()
    version: Any = ()


class Trajectory(Struct):
    """A batch of unrolls. The last time step of an unroll is the first of the next one.

    timestep: leaves `[T+1, B, ...]`.
    actor_output: leaves `[T, B, ...]`; `actor_output[t]` was chosen at `timestep[t]` and led to `timestep[t+1]`.
    actor_state: leaves `[B, ...]`, the recurrent state before `timestep[0]` was seen.
    targets: whatever `Agent.relabel` computed for the loss; empty when it comes from an actor.
    importance: `[B]` float32, `1 / (N P)` of a column that was drawn from a prioritised replay of `N` with probability `P`,
      and 1 of an online one; empty without priorities. The weights of Schaul et al. 2016, section 3.4, before the power
      beta and normalisation, which are the agent's.
    """

    timestep: TimeStep
    actor_output: ActorOutput
    actor_state: Any
    targets: Any = ()
    importance: Any = ()


class TrainState(Struct):
    """All that learning remembers, and the one home of it. Replicated over devices; a checkpoint stores it whole.

    params: online parameters.
    opt_state: state of the optimizer.
    target_params: target network, or empty.
    extra: moving averages and whatever else an agent carries between updates.
    num_updates: `[]` int32.
    """

    params: Any
    opt_state: Any
    target_params: Any
    extra: Any
    num_updates: Any


class EnvironmentSpec(Struct):
    """The signature of an environment. Static: hold it, never trace it.

    name: full name, `suite/task`.
    observation: pytree of `dm_env.specs.Array` without batch dimensions.
    action: `dm_env.specs.DiscreteArray`, or `BoundedArray` for continuous actions.
    aux: pytree of `dm_env.specs.Array` for `TimeStep.aux`.
    frames_per_step: environment frames that one agent step advances (action repeat).
    num_players: 2 for alternating zero-sum games.
    simulator: `(state, action, key) -> (state, TimeStep)` of the environment itself, unbatched, where a search may use it
      (`podracer.search.simulator`); else None.
    """

    name: str
    observation: Any
    action: specs.Array
    aux: Any = ()
    frames_per_step: int = 1
    num_players: int = 1
    simulator: Any = None

    @property
    def num_actions(self) -> int:
        """`A`. Raises TypeError for continuous actions."""
        if not isinstance(self.action, specs.DiscreteArray):
            raise TypeError(f"{self.name} has continuous actions; this agent needs discrete ones")
        return int(self.action.num_values)

    def example(self, shape: tuple[int, ...]) -> TimeStep:
        """FIRST time steps of zeros, leaves `[*shape, ...]`: enough to initialise networks with."""

        def zeros(tree: Any) -> Any:
            return jax.tree.map(lambda spec: jnp.zeros((*shape, *spec.shape), spec.dtype), tree)

        return TimeStep(
            step_type=jnp.full(shape, FIRST, jnp.int32),
            reward=jnp.zeros(shape, jnp.float32),
            discount=jnp.ones(shape, jnp.float32),
            observation=zeros(self.observation),
            aux=zeros(self.aux),
        )

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return isinstance(self.action, specs.DiscreteArray)
