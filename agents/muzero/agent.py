"""MuZero as an Agent: searches while it acts, learns a model and towards what the searches found."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from podracer.agent import Agent, EnvironmentSpec, Mode
from podracer.agents.muzero.config import PRESETS, MuZeroConfig
from podracer.agents.muzero.losses import muzero_loss
from podracer.agents.muzero.networks import make_networks
from podracer.agents.muzero.targets import make_targets
from podracer.nets import history, policies, torso
from podracer.nets.heads import Bins
from podracer.ops import optimizers, windows
from podracer.search import ModelStep, Planner, Root, Searched
from podracer.search.config import SearchConfig
from podracer.search.simulator import KEY, simulator_model
from podracer.types import ActorOutput, ActorState, Array, Key, Metrics, Params, Struct, TimeStep, TrainState, Trajectory


class MuZeroActorState(Struct):
    """history: of observations and actions. num_moves: `[B]` int32, actions since the episode began."""

    history: Any
    num_moves: Any


class MuZeroActorParams(Struct):
    """params: of all networks. num_updates: `[]` int32, for the temperature."""

    params: Any
    num_updates: Any


class _Planning(NamedTuple):
    """simulated: whether the search steps the environment instead of the learned model."""

    planner: Planner
    simulated: bool


class MuZero(Agent[MuZeroConfig]):
    """Schrittwieser et al. 2020 (https://arxiv.org/abs/1911.08265), with Gumbel search (Danihelka et al. 2022), sampled
    actions (Hubert et al. 2021), reanalysis (Schrittwieser et al. 2021) and the ablations of Hamrick et al. 2021.
    """

    Config = MuZeroConfig
    presets = PRESETS

    def __init__(self, spec: EnvironmentSpec, config: MuZeroConfig):
        super().__init__(spec, config)
        self._policy, self._bins = policies.make_policy(spec), Bins(config.bins)
        seen = history.stacked_spec(spec, config.history)
        self._networks = make_networks(seen, config, self._policy)
        # Values belong to the player to move: where players alternate, the next value is the opponent's.
        self._discount = -config.discount if spec.num_players == 2 else config.discount
        if self.needs_simulator(config) and (config.history.length > 1 or config.history.actions):
            raise ValueError("model=simulator plans from single observations: set agent.history.length=1")
        if len(config.temperatures) != len(config.temperature_updates) + 1:
            raise ValueError(
                f"{len(config.temperatures)} temperatures need as many temperature_updates less one, "
                f"not {len(config.temperature_updates)}"
            )
        self._columns_per_env = round(1 / (1 - config.replay_share))
        again = config.reanalyze_share * self._columns_per_env
        if abs(again - round(again)) > 1e-6:
            raise ValueError(
                f"reanalyze_share={config.reanalyze_share:g} is no whole number of the {self._columns_per_env} columns of each "
                f"environment in a batch: take a multiple of {1 / self._columns_per_env:g}"
            )
        self._full = self._planning(config.search, config.model)
        self._targets = self._full if config.targets == "search" else self._planning(config.one_step_search(), config.model)
        self._evaluation = self._planning(config.evaluation_search(), config.evaluation.model or config.model)

    @classmethod
    def needs_simulator(cls, config: MuZeroConfig) -> bool:
        return "simulator" in (config.model, config.evaluation.model)

    def init(self, key: Key) -> TrainState:
        params = self._networks.init(key)
        return self.train_state(params, target_params=params)

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return MuZeroActorState(
            history=history.initial_state(self.spec, self.config.history, batch_size),
            num_moves=jnp.zeros((batch_size,), jnp.int32),
        )

    def actor_params(self, train_state: TrainState) -> Params:
        return MuZeroActorParams(params=train_state.params, num_updates=train_state.num_updates)

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        first, config = timestep.first(), self.config
        stacked, past = history.push(config.history, actor_state.history, timestep.observation, first)
        num_moves = jnp.where(first, 0, actor_state.num_moves)
        policy, value, hidden = self._predict(params.params, stacked)
        keys = jax.vmap(lambda k: jax.random.split(k, 3))(key)

        def search(planning: _Planning, key: Key, explore: bool, temperature: Any = None) -> Searched:
            root = Root(policy, value, timestep.observation[KEY] if planning.simulated else hidden)
            legal = torso.legal_actions(timestep.observation)
            return planning.planner(params.params, root, legal, key, explore=explore, temperature=temperature)

        if mode is Mode.EVALUATE:
            if config.evaluation.act == "search":
                found = search(self._evaluation, keys[:, 0], explore=False)
                output = _output(found, found.action, found.log_prob)
            else:
                action, log_prob = self._policy.choose(policy, keys[:, 1], config.evaluation.act == "greedy")
                output = ActorOutput(action=action, log_prob=log_prob, value=value)
        else:
            temperature = self._temperature(params.num_updates, num_moves)
            found = search(self._targets, keys[:, 0], True, temperature)
            if config.acting == "prior":
                action, log_prob = self._policy.choose(policy, keys[:, 1])
            elif config.targets == "one_step":
                full = search(self._full, keys[:, 2], True, temperature)
                action, log_prob = full.action, full.log_prob
            else:
                action, log_prob = found.action, found.log_prob
            output = _output(found, action, log_prob)
        past = history.remember(config.history, past, output.action)
        return output, MuZeroActorState(history=past, num_moves=num_moves + 1)

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        return actor_state.replace(history=history.played(self.config.history, actor_state.history, action))

    def relabel(
        self, train_state: TrainState, trajectory: Trajectory, key: Key, axis_name: str
    ) -> tuple[TrainState, Trajectory]:
        del axis_name
        config, taken, params = self.config, trajectory.actor_output, train_state.target_params
        stacked = self._stacked(trajectory)
        weights, actions = jax.tree.map(windows.pad_last, (taken.search_weights, taken.search_actions))
        if config.bootstrap == "target":
            shape = trajectory.timestep.reward.shape
            value = self._predict(params, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked))[1].reshape(shape)
        else:
            _, last_value, _ = self._predict(params, jax.tree.map(lambda x: x[-1], stacked))
            value = jnp.concatenate([taken.value, last_value[None]])
        searched = jnp.ones(value.shape).at[-1].set(0.0)
        columns = self._columns_to_reanalyze(key.shape[0])
        if len(columns):
            anew = self._reanalyze(params, stacked, trajectory.timestep.observation, key, columns)
            weights, actions, value, searched = jax.tree.map(
                lambda old, new: old.at[:, columns].set(new),
                (weights, actions, value, searched),
                (anew.weights, anew.actions, anew.value, jnp.ones(anew.value.shape)),
            )
        targets = make_targets(trajectory.timestep, weights, actions, value, searched, config.discount, config.return_steps)
        return train_state, trajectory.replace(targets=targets)

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del train_state, key
        stacked = self._stacked(trajectory)
        return muzero_loss(params, self._networks, self._policy, self._bins, self.config, stacked, trajectory)

    def update_target(self, params: Params, target_params: Params, num_updates: Array) -> Params:
        return optax.periodic_update(params, target_params, num_updates, self.config.target_period)

    def optimizer(self) -> optax.GradientTransformation:
        """SGD with momentum, as published, or Adam; decoupled weight decay, and a rate that falls as the config says."""
        config = self.config
        rate = optimizers.falling(config.learning_rate, config.decay_updates)
        if config.decay_updates and config.decay != "linear":
            steps = config.decay == "steps"
            rate = optax.exponential_decay(config.learning_rate, config.decay_updates, 0.1, staircase=steps)
        decay = optax.add_decayed_weights(config.weight_decay)
        # Of SGD it is the published penalty on the norm, of Adam it is decoupled (AdamW).
        parts = (decay, optax.trace(config.momentum)) if config.optimizer == "sgd" else (optax.scale_by_adam(), decay)
        return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), *parts, optax.scale_by_learning_rate(rate))

    def _planning(self, config: SearchConfig, model: str) -> "_Planning":
        if model == "learned":
            return _Planning(Planner(self._policy, self._step, config), simulated=False)
        if self.spec.simulator is None:
            raise ValueError(f"model=simulator: {self.spec.name} comes without its simulator")
        simulator = simulator_model(self.spec.simulator, lambda *args: self._predict(*args)[:2], self.config.discount)
        return _Planning(Planner(self._policy, simulator, config), simulated=True)

    def _predict(self, params: Params, stacked: Any) -> tuple[Array, Array, Any]:
        """Policy parameters `[B, P]`, illegal actions masked, value `[B]` and model state of observations `[B, ...]`."""
        hidden = self._networks.root(params, stacked)
        prediction = self._networks.predict(params, hidden)
        return self._policy.mask(prediction.policy, stacked), self._bins.scalar(prediction.value), hidden

    def _step(self, params: Params, state: Any, action: Array, key: Key) -> ModelStep:
        """The learned model: see `podracer.search.planner.Model`."""
        del key
        state = self._networks.step(params, state, self._policy.encode(action))
        prediction = self._networks.predict(params, state)
        reward = self._bins.scalar(self._networks.reward(params, state))
        value = self._bins.scalar(prediction.value)
        return ModelStep(reward, jnp.full(value.shape, self._discount), prediction.policy, value, state)

    def _columns_to_reanalyze(self, num_columns: int) -> np.ndarray:
        """Of every environment the same share of its columns, replayed ones first, on however many devices it lies."""
        per_env = self._columns_per_env
        online = num_columns // per_env
        column = np.arange(num_columns)
        # Online columns come first, one an environment, then what is replayed with the first environment, and so on.
        place = np.where(column < online, 0, 1 + (column - online) % max(per_env - 1, 1))
        return np.flatnonzero(place >= per_env - round(self.config.reanalyze_share * per_env))

    def _reanalyze(self, params: Params, stacked: Any, observation: Any, key: Key, columns: np.ndarray) -> Searched:
        """Searches all T+1 time steps of `columns`: leaves `[T+1, len(columns), ...]`."""
        planner, simulated = self._targets
        flat = jax.tree.map(lambda x: x[:, columns].reshape(-1, *x.shape[2:]), (stacked, observation))
        length = jax.tree.leaves(stacked)[0].shape[0]
        keys = jax.vmap(lambda k: jax.random.split(k, length), out_axes=1)(key[columns]).reshape(-1)
        policy, value, hidden = self._predict(params, flat[0])
        root = Root(policy, value, flat[1][KEY] if simulated else hidden)
        found = planner(params, root, torso.legal_actions(flat[1]), keys, explore=True)
        return jax.tree.map(lambda x: x.reshape(length, len(columns), *x.shape[1:]), found)

    def _stacked(self, trajectory: Trajectory) -> Any:
        """Observations with their history, `[T+1, B, ...]`."""
        timestep = trajectory.timestep
        return history.unroll(
            self.config.history,
            trajectory.actor_state.history,
            timestep.observation,
            timestep.first(),
            trajectory.actor_output.action,
        )

    def _temperature(self, num_updates: Array, num_moves: Array) -> Array:
        """`[B]`: by the number of updates, and 0 after so many moves of an episode."""
        config = self.config
        stage = jnp.sum(num_updates >= jnp.asarray(config.temperature_updates, jnp.int32))
        temperature = jnp.broadcast_to(jnp.asarray(config.temperatures)[stage], num_moves.shape)
        return jnp.where(num_moves < config.temperature_moves, temperature, 0.0) if config.temperature_moves else temperature


def _output(found: Searched, action: Array, log_prob: Array) -> ActorOutput:
    return ActorOutput(
        action=action, log_prob=log_prob, value=found.value, search_weights=found.weights, search_actions=found.actions
    )
