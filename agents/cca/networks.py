"""The networks of counterfactual credit assignment, in groups of parameters that are trained by different losses.

`actor` is what acting needs; the others never leave the learner.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from podracer import rng
from podracer.agents.cca.config import ALL_ACTION, HINDSIGHT, CcaConfig
from podracer.nets import policies, previous, recurrent, torso
from podracer.nets.heads import Head
from podracer.types import ActorState, Array, EnvironmentSpec, Key, Params, TimeStep


class Networks:
    """Pure functions of parameters by group; gradients flow wherever no docstring says otherwise.

    `X` is the agent's state `[T, B, H]`. Heads take leading dimensions of any shape.
    """

    def __init__(self, spec: EnvironmentSpec, config: CcaConfig, policy: policies.Policy):
        self._spec, self._config, self._policy = spec, config, policy
        hindsight, all_action = config.estimator in HINDSIGHT, config.estimator in ALL_ACTION
        num_actions, hidden = spec.num_actions, config.head_hidden
        nets: dict[str, Callable[..., Any]] = {"actor": self._actor, "value": _head(hidden, 1)}
        if hindsight:
            nets["hindsight"] = self._hindsight
            nets["hindsight_value"] = _head(hidden, num_actions if all_action else 1)
        if hindsight or config.estimator in ("hca_return", "hca_state"):
            # Of plain ReLUs Phi would switch all off, and with them the gradient by which the classifier could recover.
            nets["classifier"] = _head(hidden, num_actions, jax.nn.leaky_relu)
        if config.estimator == "hca_state":
            nets["reward"] = _head(hidden, num_actions)
        self._nets: dict[str, Any] = {name: hk.without_apply_rng(hk.transform(net)) for name, net in nets.items()}

    def init(self, key: Key) -> dict[str, Params]:
        """Fresh parameters by group."""
        timestep = self._spec.example((2, 1))
        action = jnp.zeros((1, 1), jnp.int32)
        keys = {name: rng.stream(key, name) for name in self._nets}
        params = {"actor": self._nets["actor"].init(keys["actor"], timestep, jnp.zeros((2, 1), jnp.int32), self.memory(1))}
        x, _, _ = self.act(params["actor"], timestep, jnp.zeros((2, 1), jnp.int32), self.memory(1))
        x_tm1, condition = x[:-1], {"hca_return": jnp.zeros((1, 1, 1)), "hca_state": x[1:]}.get(self._config.estimator)
        if "hindsight" in self._nets:
            params["hindsight"] = self._nets["hindsight"].init(keys["hindsight"], timestep, action, x)
            condition = self.hindsight(params["hindsight"], timestep, action, x)
        inputs = {
            "value": (x_tm1,),
            "hindsight_value": (x_tm1, condition),
            "classifier": (x_tm1, condition),
            "reward": (x_tm1,),
        }
        return params | {name: self._nets[name].init(keys[name], *inputs[name]) for name in inputs if name in self._nets}

    def memory(self, batch_size: int) -> ActorState:
        """`previous.Memory` before an episode; the empty tuple without a core."""
        if self._config.core.kind == "none":
            return ()
        return previous.Memory(
            core=recurrent.initial_state(self._config.core, batch_size),
            action=previous.initial_action(self._spec, batch_size),
        )

    def act(self, params: Params, timestep: TimeStep, before: Array, memory: ActorState) -> tuple[Array, Array, Any]:
        """States and policies.

        Args:
          params: of the group `actor`.
          timestep: `[T, B, ...]`. before: `[T, B]` int32, the action before each; not read without a core, nor at FIRST.
          memory: `[B, ...]`, before the first time step.

        Returns:
          `X` `[T, B, H]`, masked logits `[T, B, A]`, and the last state of the core.
        """
        return self._nets["actor"].apply(params, timestep, before, memory)

    def unroll(self, params: Params, timestep: TimeStep, action: Array, memory: ActorState) -> tuple[Array, Array]:
        """`X` `[T+1, B, H]` and logits `[T+1, B, A]` of an unroll, as `act` gave them step by step. action: `[T, B]`."""
        start = memory.action if memory else jnp.zeros_like(action[0])
        x, logits, _ = self.act(params, timestep, previous.unroll(start, action), memory)
        return x, logits

    def hindsight(self, params: Params, timestep: TimeStep, action: Array, x: Array) -> Array:
        """`Phi` `[T, B, size]`; of a pair LAST -> FIRST it means nothing.

        `Phi_t` reads `X_t`, and of the steps from t + 1 to the end of the episode (or of the unroll) observations, rewards, `X`
        and actions. It does not read `A_t`, which it may yet tell from what came of it: keeping it from doing so is the
        independence loss's task. No gradient flows into `X`.

        Args:
          params: of the group `hindsight`.
          timestep: `[T+1, B, ...]`. action: `[T, B]` int32. x: `[T+1, B, H]`.
        """
        return self._nets["hindsight"].apply(params, timestep, action, jax.lax.stop_gradient(x))

    def value(self, params: Params, x: Array) -> Array:
        """`V(X)` `[...]`, of the group `value`."""
        return self._nets["value"].apply(params, x)[..., 0]

    def hindsight_value(self, params: Params, x: Array, phi: Array) -> Array:
        """`V(X, Phi)` `[..., 1]`, or `Q(X, Phi, .)` `[..., A]` for all-action estimators, of the group `hindsight_value`."""
        return self._nets["hindsight_value"].apply(params, x, phi)

    def classify(self, params: Params, logits: Array, x: Array, condition: Array) -> Array:
        """`log h` `[..., A]`, the hindsight probability of actions, of the group `classifier`.

        What the network gives is added to the policy's logits: where nothing is told of the action, `h` is the policy, however
        that moves. No gradient flows into them.

        Args:
          params: of the group `classifier`.
          logits: `[..., A]`, masked. x: `[..., H]`.
          condition: `[..., F]`, `Phi`; for `hca_return` the return; for `hca_state` a later state.
        """
        return jax.nn.log_softmax(jax.lax.stop_gradient(logits) + self._nets["classifier"].apply(params, x, condition))

    def reward(self, params: Params, x: Array) -> Array:
        """The mean reward of every action `[..., A]`, of the group `reward`."""
        return self._nets["reward"].apply(params, x)

    def _events(self, timestep: TimeStep) -> list[Array]:
        """Features of observations, and rewards, `[T, B, F]` each."""
        embed = hk.BatchApply(torso.make_torso(self._spec, self._config.torso))
        return [embed(timestep.observation), self._config.reward_scale * previous.reward_input(timestep)]

    def _actor(self, timestep: TimeStep, before: Array, memory: ActorState) -> tuple[Array, Array, Any]:
        features, reward = self._events(timestep)
        core, state, first = recurrent.make_core(self._config.core), (), timestep.first()
        if core is not None:
            taken = previous.action_input(self._policy, before, timestep)
            features, state = jnp.concatenate([features, reward, taken], axis=-1), memory.core
        x, state = recurrent.unroll(core, features, first, state)
        return x, self._policy.mask(Head((), self._policy.size, "policy")(x), timestep.observation), state

    def _hindsight(self, timestep: TimeStep, action: Array, x: Array) -> Array:
        config, last = self._config.hindsight, timestep.last()
        features, reward = self._events(timestep)
        # What is chosen at LAST leads nowhere, and nothing is chosen at the end of the unroll.
        taken = jnp.where(last[:-1, :, None], 0.0, self._policy.encode(action))
        taken = jnp.concatenate([taken, jnp.zeros_like(taken[:1])])
        inputs = [features, taken, x] + [reward] * config.rewards
        events = jax.nn.relu(hk.Linear(config.hidden, name="event")(jnp.concatenate(inputs, axis=-1)))
        if config.kind == "rnn":
            future = _backward(events, last)[1:]
        elif config.kind == "attention":
            future = self._attend(events, x[:-1], timestep.first())
        else:
            future = events[1:]
        hidden = jax.nn.relu(hk.Linear(config.hidden, name="merge")(jnp.concatenate([future, x[:-1]], axis=-1)))
        return hk.Linear(config.size, name="phi")(hidden)

    def _attend(self, events: Array, x_tm1: Array, first: Array) -> Array:
        config = self._config.hindsight
        episode = jnp.cumsum(first, axis=0).T  # [B, T+1]
        later = np.arange(events.shape[0])[None, :] > np.arange(x_tm1.shape[0])[:, None]
        mask = jnp.asarray(later) & (episode[:, :-1, None] == episode[:, None, :])
        positions = _positions(events.shape[0], config.hidden)[:, None]
        query = hk.Linear(config.hidden, name="query")(x_tm1) + positions[:-1]
        attention = hk.MultiHeadAttention(
            config.heads,
            config.hidden // config.heads,
            model_size=config.hidden,
            w_init=hk.initializers.VarianceScaling(1.0),
        )
        swapped = jnp.swapaxes(events + positions, 0, 1)
        future = attention(jnp.swapaxes(query, 0, 1), swapped, swapped, mask[:, None])
        return jax.nn.relu(jnp.swapaxes(future, 0, 1))


def _head(hidden: tuple[int, ...], size: int, activation: Callable[[Array], Array] = jax.nn.relu) -> Callable[..., Array]:
    def head(*inputs: Array) -> Array:
        leading = functools.reduce(jnp.broadcast_shapes, (x.shape[:-1] for x in inputs))
        features = jnp.concatenate([jnp.broadcast_to(x, (*leading, x.shape[-1])) for x in inputs], axis=-1)
        if hidden:
            features = hk.nets.MLP(hidden, activation=activation, activate_final=True)(features)
        return Head((), size, "head")(features)

    return head


def _backward(events: Array, last: Array) -> Array:
    """An LSTM over `[T, B, F]` from the end back, which forgets at every LAST: `[T, B, F]`, each of what begins there."""
    config = recurrent.CoreConfig("lstm", events.shape[-1])
    state = recurrent.initial_state(config, events.shape[1])
    return recurrent.unroll(recurrent.make_core(config), events[::-1], last[::-1], state)[0][::-1]


def _positions(length: int, size: int) -> Array:
    """Sines and cosines of positions, `[length, size]`. Vaswani et al. 2017, section 3.5."""
    angles = np.arange(length)[:, None] * np.exp(-math.log(1e4) * np.arange(size // 2) / (size // 2))
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)
