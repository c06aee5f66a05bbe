"""A match counts for the agent what the agent did, whoever moves how often, and a perfect player is one."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import registry, types
from podracer.environment import JaxEnvironment, Unsupported
from podracer.match import AgentOpponent, Match, MatchStats, Memoryless, as_opponent, play_match, random_opponent, uniform
from podracer.types import LAST, ActorOutput, EnvironmentSpec, Mode

pytestmark = pytest.mark.quick

SPEC = EnvironmentSpec(
    name="turns",
    observation={"left": specs.Array((), np.int32), "legal_actions": specs.Array((3,), np.bool_)},
    action=specs.DiscreteArray(3),
    num_players=2,
)
TURNS = (0, 0, 1, 0, 1, 1, 1, 0)  # of the plies of a game, the player who moves: 0 began it
PAY = (0.0, 1.0, 10.0)  # for an action, to the mover


class TurnsState(NamedTuple):
    length: Any
    t: Any


class Turns(JaxEnvironment):
    """Players move twice or thrice in a row; half of the games end after 2 plies, and half after 8."""

    spec = SPEC

    def reset(self, key: Any) -> Any:
        length = jnp.where(jax.random.bernoulli(key), 8, 2)
        return TurnsState(length, jnp.int32(0)), types.restart(self._see(length))

    def step(self, state: Any, action: Any, key: Any) -> Any:
        turns = jnp.array((*TURNS, 0))
        passed_on = turns[state.t] != turns[state.t + 1]
        state = state._replace(t=state.t + 1)
        left = state.length - state.t
        reward, discount = jnp.array(PAY)[action], jnp.where(passed_on, -1.0, 1.0)
        return state, types.transition(reward, self._see(left), terminated=left == 0, discount=discount)

    def _see(self, left: Any) -> Any:
        return {"left": left.astype(jnp.int32), "legal_actions": jnp.array([True, True, False])}


class Fixed:
    """An agent that always takes the action `params`."""

    spec = SPEC

    def initial_actor_state(self, batch_size: int) -> Any:
        return jnp.zeros((batch_size,), jnp.int32)

    def choose(self, params: Any, actor_state: Any, timestep: Any, key: Any) -> Any:
        del actor_state, key
        return jnp.broadcast_to(params, timestep.reward.shape).astype(jnp.int32)

    def act(self, params: Any, actor_state: Any, timestep: Any, key: Any, mode: Mode) -> Any:
        actor_state = jnp.where(timestep.first(), 0, actor_state + 1)
        action = self.choose(params, actor_state, timestep, key)
        return ActorOutput(action=action, log_prob=jnp.zeros_like(timestep.reward)), actor_state

    def played(self, actor_state: Any, action: Any) -> Any:
        del action
        return actor_state


class Counting(Fixed):
    """Takes action 1 iff its state has counted every time step of the game."""

    def choose(self, params: Any, actor_state: Any, timestep: Any, key: Any) -> Any:
        plies = actor_state + timestep.observation["left"]  # of the whole game, if none was missed
        return ((plies == 2) | (plies == 8)).astype(jnp.int32)


class Copycat(Fixed):
    """Takes what was played last, else action 0."""

    def act(self, params: Any, actor_state: Any, timestep: Any, key: Any, mode: Mode) -> Any:
        action = jnp.where(timestep.first(), 0, actor_state)
        return ActorOutput(action=action, log_prob=jnp.zeros_like(timestep.reward)), action

    def played(self, actor_state: Any, action: Any) -> Any:
        return action


class Random(Fixed):
    """Any legal action."""

    def choose(self, params: Any, actor_state: Any, timestep: Any, key: Any) -> Any:
        return uniform(timestep.observation["legal_actions"], key)


def _play(agent: Any, params: Any, opponent: Any, num_games: int = 40, **options: Any) -> MatchStats:
    return play_match(agent, params, opponent, Turns(), num_games, **options)


def _returns(stats: MatchStats, mine: float, theirs: float) -> np.ndarray:
    """What each game must return where the agent earns `mine` for a ply and the opponent `theirs`."""

    def one(first: bool, length: int) -> float:
        mover_is_agent = [(player == 0) == first for player in TURNS[:length]]
        return sum(mine if agent else -theirs for agent in mover_is_agent)

    return np.array([one(bool(first), int(length)) for first, length in zip(stats.first, stats.lengths, strict=True)])


@pytest.mark.parametrize(("num_games", "num_envs"), [(1, 32), (8, 3), (9, 2), (33, 32)])
def test_rewards_are_signed_by_who_moved_and_each_begins_half(num_games: int, num_envs: int) -> None:
    stats = _play(Fixed(), 1, Memoryless(lambda timestep, key: jnp.full(key.shape, 2)), num_games, num_envs=num_envs)
    assert stats.returns.shape == stats.first.shape == stats.lengths.shape == (num_games,)
    assert abs(int(stats.first.sum()) - num_games / 2) <= 0.5
    np.testing.assert_array_equal(stats.returns, _returns(stats, 1.0, 10.0))


def test_short_games_are_not_favoured() -> None:
    stats = _play(Fixed(), 0, random_opponent(SPEC), 600, num_envs=200)
    assert abs(stats.lengths.mean() - 5.0) < 0.5
    assert abs(stats.lengths[stats.first].mean() - stats.lengths[~stats.first].mean()) < 0.8


def test_both_see_every_time_step() -> None:
    counting: Any = Counting()
    stats = _play(counting, 0, AgentOpponent(counting, 0))
    np.testing.assert_array_equal(stats.returns, _returns(stats, 1.0, 1.0))


def test_who_remembers_actions_remembers_those_that_were_played() -> None:
    copycat: Any = Copycat()
    stats = _play(copycat, 0, Memoryless(lambda timestep, key: jnp.full(key.shape, 2)))
    second = ~stats.first & (stats.lengths == 8)
    # Two plies of the opponent come first, so the agent copies 10 from there on: (0, 0, 1, 0, 1, 1, 1, 0) gives 4 and 4.
    np.testing.assert_array_equal(stats.returns[second], _returns(stats, 10.0, 10.0)[second])
    assert second.any()
    # The other way round: copying an agent that takes action 1.
    mirrored = _play(Fixed(), 1, AgentOpponent(copycat, 0))
    long = mirrored.first & (mirrored.lengths == 8)
    np.testing.assert_array_equal(mirrored.returns[long], _returns(mirrored, 1.0, 1.0)[long])


def test_random_opponent_takes_legal_actions_alike() -> None:
    # Of PAY the third action is illegal, so 10 is never paid; the others are equally likely: 2 of 4 plies pay 1.
    stats = _play(Fixed(), 0, random_opponent(SPEC), 400)
    long = stats.returns[stats.lengths == 8]
    assert set(long) == {0.0, -1.0, -2.0, -3.0, -4.0}
    assert abs(long.mean() + 2) < 0.35


def test_an_agent_sees_what_its_specification_names() -> None:
    class Blind(Fixed):
        spec = SPEC.replace(observation={"legal_actions": SPEC.observation["legal_actions"]})

        def choose(self, params: Any, actor_state: Any, timestep: Any, key: Any) -> Any:
            assert set(timestep.observation) == {"legal_actions"}
            return super().choose(params, actor_state, timestep, key)

    blind: Any = Blind()
    stats = _play(blind, 1, AgentOpponent(blind, 2), 4)
    np.testing.assert_array_equal(stats.returns, _returns(stats, 1.0, 10.0))


def test_seed_decides_everything() -> None:
    first, again, other = (_play(Random(), (), random_opponent(SPEC), num_envs=8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, other.returns)


def test_compiled_once_for_many_parameters() -> None:
    traces = []

    class Traced(Fixed):
        def choose(self, *inputs: Any) -> Any:
            traces.append(1)
            return super().choose(*inputs)

    agent: Any = Traced()
    match = Match(agent, AgentOpponent(agent, jnp.int32(2)), Turns(), 12)
    one = match.run(jnp.int32(0))
    before = len(traces)
    two = match.run(jnp.int32(1))
    assert len(traces) == before
    np.testing.assert_array_equal(one.returns, _returns(one, 0.0, 10.0))
    np.testing.assert_array_equal(two.returns, _returns(two, 1.0, 10.0))


def test_results_are_counted_by_who_began() -> None:
    stats = MatchStats(np.array([2.0, 0.0, -1.0, -1.0]), np.array([True, False, True, False]), np.ones(4, np.int64))
    assert (stats.results(), stats.results(True), stats.results(False)) == ((1, 1, 2), (1, 0, 1), (0, 1, 1))
    assert stats.standard_error == pytest.approx(np.std([2, 0, -1, -1], ddof=1) / 2)


def test_what_cannot_be_played_is_refused_in_one_line() -> None:
    class Alone(Turns):
        spec = SPEC.replace(num_players=1)

    agent: Any = Fixed()
    with pytest.raises(Unsupported, match="turns is no game for two"):
        play_match(agent, 0, random_opponent(SPEC), Alone(), 2)
    with pytest.raises(Unsupported, match=r"must play integers \[2\]"):
        _play(agent, 0, Memoryless(lambda timestep, key: jnp.zeros(())), 2)
    with pytest.raises(Unsupported, match=r"must play integers \[2\]"):
        _play(agent, 0, Memoryless(lambda timestep, key: timestep.reward), 2)
    with pytest.raises(Unsupported, match="opponent me is 3, neither"):
        as_opponent(3, "me")
    with pytest.raises(Unsupported, match="continuous"):
        random_opponent(SPEC.replace(action=specs.BoundedArray((1,), np.float32, -1, 1)))


@pytest.fixture(scope="module")
def tic_tac_toe() -> Any:
    pytest.importorskip("pgx", reason="pip install 'podracer-rl[pgx]'")
    return registry.env("pgx/tic_tac_toe")


PERFECT, RANDOM = jnp.bool_(True), jnp.bool_(False)


class Either(Fixed):
    """As its parameter says, the perfect player or one that takes any legal action."""

    def __init__(self, spec: EnvironmentSpec):
        self.spec = spec

    def choose(self, params: Any, actor_state: Any, timestep: Any, key: Any) -> Any:
        from podracer.envs.pgx_opponents import perfect_tic_tac_toe

        return jnp.where(params, perfect_tic_tac_toe(timestep, key), uniform(timestep.observation["legal_actions"], key))


@pytest.fixture(scope="module")
def against_perfect(tic_tac_toe: Any) -> Match:
    opponent = as_opponent(tic_tac_toe.opponents()["perfect"](), "perfect")
    environment = tic_tac_toe.make()
    either: Any = Either(environment.spec)
    return Match(either, opponent, environment, 500, num_envs=100)


def test_perfect_against_perfect_is_a_draw(against_perfect: Match) -> None:
    stats = against_perfect.run(PERFECT)
    assert stats.results() == (0, 500, 0)
    assert set(stats.lengths) == {9}


def test_random_never_beats_perfect_and_mostly_loses(against_perfect: Match) -> None:
    stats = against_perfect.run(RANDOM)
    wins, draws, losses = stats.results()
    assert wins == 0
    assert losses > 350
    assert draws < 150
    assert stats.results(True)[2] < stats.results(False)[2]  # whoever begins has the better of it


def test_against_random_perfect_never_loses_and_random_is_its_equal(tic_tac_toe: Any) -> None:
    environment = tic_tac_toe.make()
    either: Any = Either(environment.spec)
    match = Match(either, random_opponent(environment.spec), environment, 1000, num_envs=100)
    assert match.run(PERFECT).results()[2] == 0
    equal = match.run(RANDOM)
    # Of all games between random players, the one who begins wins 58.5 percent and loses 28.8.
    assert [n / 500 for n in equal.results(True)] == pytest.approx([0.585, 0.127, 0.288], abs=0.08)
    assert equal.returns.mean() == pytest.approx(0.0, abs=0.12)


LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


def _won(board: str, stone: str) -> bool:
    return any(all(board[i] == stone for i in line) for line in LINES)


@functools.cache
def _negamax(board: str, mover: str) -> int:
    other = "XO"[mover == "X"]
    if _won(board, other):
        return -1
    moves = [i for i in range(9) if board[i] == "."]
    return max((-_negamax(board[:i] + mover + board[i + 1 :], other) for i in moves), default=0)


def _reachable() -> list[tuple[str, str]]:
    seen, queue = {("." * 9, "X")}, [("." * 9, "X")]
    for board, mover in queue:
        other = "XO"[mover == "X"]
        if _won(board, other):
            continue
        for i in range(9):
            after = (board[:i] + mover + board[i + 1 :], other)
            if board[i] == "." and after not in seen:
                seen.add(after)
                queue.append(after)
    return queue


def test_the_table_is_that_of_an_independent_negamax() -> None:
    from podracer.envs.pgx_opponents import solve_tic_tac_toe

    value, best = solve_tic_tac_toe()
    positions = _reachable()
    assert len(positions) == 5478
    for board, mover in positions:
        other = "XO"[mover == "X"]
        code = sum((0 if cell == "." else 1 if cell == mover else 2) * 3**i for i, cell in enumerate(board))
        assert value[code] == _negamax(board, mover)
        over = _won(board, other) or "." not in board
        moves = [] if over else [i for i in range(9) if board[i] == "."]
        keeps = [i for i in moves if -_negamax(board[:i] + mover + board[i + 1 :], other) == value[code]]
        assert list(np.nonzero(best[code])[0]) == keeps


def test_it_reads_the_board_from_what_the_mover_sees(tic_tac_toe: Any) -> None:
    """Along random games of the real environment, the move keeps the value that negamax gives to the true board."""
    from podracer.envs.pgx_opponents import perfect_tic_tac_toe

    environment, rng = tic_tac_toe.make(), np.random.default_rng(0)
    reset, step = jax.jit(environment.reset), jax.jit(environment.step)
    choose = jax.jit(lambda ts, key: perfect_tic_tac_toe(jax.tree.map(lambda x: x[None], ts), key[None])[0])
    chosen_at_the_start = set()
    for game in range(30):
        state, timestep = reset(jax.random.key(game))
        board, mover = "." * 9, "X"
        while int(timestep.step_type) != LAST:
            action, other = int(choose(timestep, jax.random.key(rng.integers(2**31)))), "XO"[mover == "X"]
            if board == "." * 9:
                chosen_at_the_start.add(action)
            assert board[action] == "."
            assert -_negamax(board[:action] + mover + board[action + 1 :], other) == _negamax(board, mover)
            played = int(rng.choice([i for i in range(9) if board[i] == "."]))
            state, timestep = step(state, jnp.int32(played), jax.random.key(0))
            board, mover = board[:played] + mover + board[played + 1 :], other
    assert len(chosen_at_the_start) > 6  # all nine openings draw


def test_games_without_a_perfect_player_offer_none() -> None:
    suite = registry.suite("pgx")
    assert set(suite.opponents("tic_tac_toe")) == {"perfect"}
    assert not suite.opponents("connect_four")
    assert not registry.env("catch").opponents()
