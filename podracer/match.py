"""Matches: an agent against a fixed opponent, in a game for two.

In self-play one agent takes both sides, so its return says nothing of how well it plays. Here an opponent that does not learn
takes one side, and each side begins half of the games.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from podracer import rng
from podracer.agent import Agent
from podracer.environment import Environment, Unsupported
from podracer.evaluate import Evaluator, whose_turn
from podracer.types import ActorOutput, ActorState, Array, EnvironmentSpec, Key, Mode, Params, Struct, TimeStep

Chooser = Callable[[TimeStep, Key], Array]
"""A player without memory: `(timestep [B], key [B]) -> action [B]`, pure."""


class Opponent(Protocol):
    """A player that does not learn. Methods are pure.

    It sees EVERY time step, those of its opponent's turn too, as an agent in self-play does; what it chooses there is not
    played. `timestep` is as whoever is to move sees it. A state starts anew wherever a FIRST arrives, as an agent's does.
    """

    def initial_state(self, batch_size: int) -> Any:
        """State `[B, ...]` before the first game; `()` for a player without memory."""

    def act(self, state: Any, timestep: TimeStep, key: Key) -> tuple[Array, Any]:
        """Chooses actions.

        Args:
          state: leaves `[B, ...]`. timestep: leaves `[B, ...]`. key: `[B]` PRNG keys.

        Returns:
          Actions `[B, ...]` as the environment has them, and the next state.
        """


@dataclasses.dataclass(frozen=True)
class Memoryless:
    """The opponent that a function of the time step makes."""

    choose: Chooser

    def initial_state(self, batch_size: int) -> Any:
        del batch_size
        return ()

    def act(self, state: Any, timestep: TimeStep, key: Key) -> tuple[Array, Any]:
        return self.choose(timestep, key), state


class AgentOpponent:
    """An agent with fixed parameters, for example another run's."""

    def __init__(self, agent: Agent, params: Params, mode: Mode = Mode.EVALUATE):
        """Args:
        agent: any, of the same environment. params: what its `actor_params` returned. mode: how it acts.
        """
        self.agent, self.params, self.mode = agent, params, mode

    def initial_state(self, batch_size: int) -> Any:
        # Parameters ride in the state: taken from `self`, they would be compiled into the program as constants.
        return self.params, self.agent.initial_actor_state(batch_size)

    def act(self, state: Any, timestep: TimeStep, key: Key) -> tuple[Array, Any]:
        params, actor_state = state
        output, actor_state = self.agent.act(params, actor_state, _seen_by(self.agent, timestep), key, self.mode)
        return output.action, (params, actor_state)

    def played(self, state: Any, action: Array) -> Any:
        """See `_tell`."""
        params, actor_state = state
        return params, self.agent.played(actor_state, action)


def random_opponent(spec: EnvironmentSpec) -> Opponent:
    """Plays each legal action with the same probability. Raises Unsupported where actions are continuous."""
    if not spec.discrete:
        raise Unsupported(f"{spec.name} has continuous actions, among which no opponent is uniformly random")

    def choose(timestep: TimeStep, key: Key) -> Array:
        seen = timestep.observation
        legal = seen.get("legal_actions") if isinstance(seen, Mapping) else None
        return uniform(jnp.ones((len(key), spec.num_actions), jnp.bool_) if legal is None else legal, key)

    return Memoryless(choose)


def uniform(mask: Array, key: Key) -> Array:
    """One of the actions in `mask` `[B, A]`, each as likely as the others; any action where there is none. `[B]` int32."""
    return jax.vmap(jax.random.categorical)(key, jnp.where(mask, 0.0, -1e9)).astype(jnp.int32)


def as_opponent(player: Any, name: str) -> Opponent:
    """`player` itself if it is an `Opponent`, or the opponent that a `Chooser` makes.

    Raises:
      Unsupported: it is neither; the line calls it `name`.
    """
    if _is_opponent(player):
        return player
    if callable(player) and not isinstance(player, type):
        return Memoryless(player)
    raise Unsupported(f"opponent {name} is {player!r}, neither a function (timestep, key) -> action nor a match.Opponent")


@dataclasses.dataclass(frozen=True)
class MatchStats:
    """Games of a match, from the agent's point of view.

    returns: `[N]` float64, undiscounted; above 0 is a win, 0 a draw. first: `[N]` bool, the agent began the game.
    lengths: `[N]` int64, plies of both. frames: `[F, H, W, 3]` uint8 of one of these games, or None.
    """

    returns: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    frames: np.ndarray | None = None

    def results(self, first: bool | None = None) -> tuple[int, int, int]:
        """Wins, draws and losses; of the games that the agent began (True) or did not (False), or of all."""
        returns = self.returns if first is None else self.returns[self.first == first]
        return int((returns > 0).sum()), int((returns == 0).sum()), int((returns < 0).sum())

    @property
    def standard_error(self) -> float:
        """Of the mean return, as if games were drawn at random; nan for a single game."""
        return float(self.returns.std(ddof=1) / np.sqrt(len(self.returns))) if len(self.returns) > 1 else float("nan")


class Match:
    """Plays games; compiled once, for any number of parameters of the agent."""

    def __init__(
        self,
        agent: Agent,
        opponent: Opponent,
        environment: Environment,
        num_games: int,
        *,
        seed: int = 0,
        mode: Mode = Mode.EVALUATE,
        num_envs: int = 32,
    ):
        """Args:
          agent, opponent: who plays. environment: the game.
          num_games: `N`. The agent begins half of them, or half and one.
          seed: of all randomness. mode: how the agent acts.
          num_envs: games that are played side by side. Each environment plays its own share to the end, and the players
            begin its games in turn.

        Raises:
          Unsupported: the environment is no game for two, or the opponent's actions do not fit it.
          ValueError: no games or no environments.
        """
        spec = environment.spec
        if spec.num_players != 2:
            raise Unsupported(f"{spec.name} is no game for two, so there is no opponent to play against")
        self._evaluator = Evaluator(_Pair(agent, opponent), environment, num_games, seed=seed, mode=mode, num_envs=num_envs)
        try:
            _check_actions(opponent, spec, self._evaluator.num_envs)
        except Unsupported:
            self.close()
            raise

    def run(self, params: Params, *, record: bool = False, on_progress: Callable[[int, int], None] | None = None) -> MatchStats:
        """Plays all games, with `params` from `Agent.actor_params`. Arguments and errors are those of `Evaluator.run`."""
        stats = self._evaluator.run(params, record=record, on_progress=on_progress)
        quota = self._evaluator.quota
        row, slot = np.indices((len(quota), quota.max()))
        first = _begins(row, slot)[slot < quota[:, None]]
        # Those of an evaluation are of the player who moved first. Subtracting keeps a draw 0.0, not -0.0.
        return MatchStats(np.where(first, stats.returns, 0.0 - stats.returns), first, stats.lengths, stats.frames)

    def close(self) -> None:
        """Releases environments that live outside XLA."""
        self._evaluator.close()


def play_match(
    agent: Agent,
    params: Params,
    opponent: Opponent,
    environment: Environment,
    num_games: int,
    seed: int = 0,
    mode: Mode = Mode.EVALUATE,
    num_envs: int = 32,
) -> MatchStats:
    """Plays `num_games` games once. See `Match`, which this makes, runs and closes."""
    match = Match(agent, opponent, environment, num_games, seed=seed, mode=mode, num_envs=num_envs)
    try:
        return match.run(params)
    finally:
        match.close()


class _PairState(Struct):
    """agent, opponent: states of the two. sign: `[B]`, see `whose_turn`. game: `[B]` int32, number of the running game."""

    agent: Any
    opponent: Any
    sign: Any
    game: Any


class _Pair:
    """The two players as one actor that takes both sides, as evaluation knows it."""

    def __init__(self, agent: Agent, opponent: Opponent):
        self.agent, self.opponent = agent, opponent

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return _PairState(
            agent=self.agent.initial_actor_state(batch_size),
            opponent=self.opponent.initial_state(batch_size),
            sign=jnp.ones((batch_size,), jnp.float32),
            game=jnp.full((batch_size,), -1, jnp.int32),
        )

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        agent_key, opponent_key = (jax.vmap(lambda k, name=name: rng.stream(k, name))(key) for name in ("agent", "opponent"))
        output, agent = self.agent.act(params, actor_state.agent, _seen_by(self.agent, timestep), agent_key, mode)
        answer, opponent = self.opponent.act(actor_state.opponent, timestep, opponent_key)
        game = actor_state.game + timestep.first()
        sign = whose_turn(actor_state.sign, timestep)
        agents_turn = (sign > 0) == _begins(jnp.arange(len(game)), game)
        action = jax.vmap(jnp.where)(agents_turn, output.action, answer.astype(output.action.dtype))
        agent, opponent = self.agent.played(agent, action), _tell(self.opponent, opponent, action)
        state = _PairState(agent=agent, opponent=opponent, sign=sign, game=game)
        return ActorOutput(action=action, log_prob=output.log_prob), state


def _begins(env: Any, game: Any) -> Any:
    """Whether the agent begins game number `game` of environment number `env`. Over any quotas its games are half of all."""
    return (env + game) % 2 == 0


def _seen_by(agent: Agent, timestep: TimeStep) -> TimeStep:
    """Without what only the other player's specification names, such as the simulator of its search."""
    seen, named = timestep.observation, agent.spec.observation
    if not (isinstance(seen, Mapping) and isinstance(named, Mapping)):
        return timestep
    return timestep.replace(observation={name: value for name, value in seen.items() if name in named})


def _tell(opponent: Opponent, state: Any, action: Array) -> Any:
    """The state of an opponent once `action` `[B]` was played: one that remembers actions has `played`, as an agent does."""
    return opponent.played(state, action) if hasattr(opponent, "played") else state


def _is_opponent(player: Any) -> TypeGuard[Opponent]:
    return not isinstance(player, type) and hasattr(player, "initial_state") and hasattr(player, "act")


def _check_actions(opponent: Opponent, spec: EnvironmentSpec, batch_size: int) -> None:
    timestep, keys = spec.example((batch_size,)).unlabelled(), jax.random.split(jax.random.key(0), batch_size)
    action = jax.eval_shape(lambda *inputs: opponent.act(*inputs)[0], opponent.initial_state(batch_size), timestep, keys)
    shape = (batch_size, *spec.action.shape)
    if getattr(action, "shape", None) != shape or (spec.discrete and not jnp.issubdtype(action.dtype, jnp.integer)):
        kind = "integers" if spec.discrete else "numbers"
        raise Unsupported(
            f"the opponent plays {action}; for {batch_size} games of {spec.name} it must play {kind} {list(shape)}"
        )
