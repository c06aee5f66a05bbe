"""pgx (https://github.com/sotetsuk/pgx): board and card games for one or two players, with masks of legal actions.

A game for two is played by one agent that takes both sides in turn. Every time step is seen by the player to move; the
reward is that of the player who has just moved, and the discount is -1 where the move passes to the opponent, so
`reward + discount * value` is right without knowing whose turn it is. An illegal action loses the game at once
(reward -1, termination), as pgx defines it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.envs import drawing
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

# Written out because importing pgx takes seconds. Left out: sparrow_mahjong (three players, so no sign of a discount says
# whose turn it is) and bridge_bidding (pgx makes it only from a file of solved deals).
GAMES = (
    "go_9x9",
    "2048",
    "animal_shogi",
    "backgammon",
    "chess",
    "connect_four",
    "gardner_chess",
    "go_19x19",
    "hex",
    "kuhn_poker",
    "leduc_holdem",
    "othello",
    "shogi",
    "tic_tac_toe",
)
MINATAR = ("minatar-asterix", "minatar-breakout", "minatar-freeway", "minatar-seaquest", "minatar-space_invaders")
_TWO_COLOURS = ("connect_four", "go_9x9", "go_19x19", "hex", "othello", "tic_tac_toe")
MINATAR_MAX_STEPS = 5000


@dataclasses.dataclass(frozen=True)
class PgxConfig:
    """max_steps: time limit, a truncation; 0 means none for games, which end by their own rules, and 5000 for MinAtar.

    random_plies: a game begins after up to so many random legal moves, drawn uniformly, so that self-play
      meets positions that good play avoids. A move that would end the game is left out.
    """

    max_steps: int = 0
    random_plies: int = 0

    def __post_init__(self) -> None:
        require(self, "max_steps", "random_plies", at_least=0)


class Pgx(JaxEnvironment):
    """A pgx game without its time limit.

    Observation: `{"board": [...], "legal_actions": [A] bool}`, and for MinAtar, where every action is legal, the board alone.
    Boards of bits are `[H, W, C]` uint8, 0 or 255; everything else is float32. Of a finished game all actions are legal.
    """

    def __init__(self, task: str, random_plies: int = 0):
        import pgx

        self._env, self._task, self._random_plies = pgx.make(task), task, random_plies
        state = jax.eval_shape(self._env.init, jax.random.key(0))
        (num_actions,) = state.legal_action_mask.shape
        self._bits = state.observation.dtype == jnp.bool_ and len(state.observation.shape) == 3
        if self._bits:
            board: specs.Array = specs.BoundedArray(state.observation.shape, np.uint8, 0, 255, name="board")
        else:
            board = specs.Array(state.observation.shape, np.float32, name="board")
        legal = specs.BoundedArray((num_actions,), np.bool_, False, True, name="legal_actions")
        self.spec = EnvironmentSpec(
            name=f"pgx/{task}",
            observation=board if task in MINATAR else {"board": board, "legal_actions": legal},
            action=specs.DiscreteArray(num_actions, name="action"),
            num_players=self._env.num_players,
        )

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        if not self._random_plies:
            state = self._env.init(key)
            return state, types.restart(self._observe(state))
        init_key, count_key, play_key = jax.random.split(key, 3)
        num_plies = jax.random.randint(count_key, (), 0, self._random_plies + 1)

        def play(ply: Array, state: Any) -> Any:
            move_key, step_key = jax.random.split(jax.random.fold_in(play_key, ply))
            action = jax.random.categorical(move_key, jnp.where(state.legal_action_mask, 0.0, -jnp.inf))
            after = self._env.step(state, action, step_key)
            keep = (ply < num_plies) & ~after.terminated & ~after.truncated
            return jax.tree.map(lambda new, old: jnp.where(keep, new, old), after, state)

        state = jax.lax.fori_loop(0, self._random_plies, play, self._env.init(init_key))
        return state, types.restart(self._observe(state))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        mover = state.current_player
        state = self._env.step(state, action, key)
        passed_on = (state.current_player != mover) & (self.spec.num_players == 2)
        return state, types.transition(
            state.rewards[mover],
            self._observe(state),
            terminated=state.terminated,
            truncated=state.truncated,
            discount=jnp.where(passed_on, -1.0, 1.0),
        )

    def render(self, state: Any) -> Array | None:
        """Boards of two colours (first player light) and MinAtar; None for the rest."""
        board = state.observation
        if self._task in MINATAR:
            return drawing.paint(board, drawing.rainbow(board.shape[-1]))
        if self._task not in _TWO_COLOURS:
            return None
        first_to_move = state._step_count % 2 == 0
        stones = jnp.where(first_to_move, board[..., :2], board[..., 1::-1])
        return drawing.paint(stones, np.array([[150, 110, 60], [240, 240, 240], [20, 20, 20]]))

    def _observe(self, state: Any) -> Any:
        board = state.observation.astype(jnp.uint8) * 255 if self._bits else state.observation.astype(jnp.float32)
        return board if self._task in MINATAR else {"board": board, "legal_actions": state.legal_action_mask}


def _make(task: str, config: PgxConfig) -> JaxEnvironment:
    max_steps = config.max_steps or (MINATAR_MAX_STEPS if task in MINATAR else 0)
    environment = Pgx(task, config.random_plies)
    return TimeLimit(environment, max_steps) if max_steps else environment


def _opponents(task: str) -> Mapping[str, Callable[[], Any]]:
    from podracer.envs import pgx_opponents

    return {"perfect": lambda: pgx_opponents.perfect_tic_tac_toe} if task == "tic_tac_toe" else {}


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: GAMES + MINATAR,
    config=PgxConfig,
    summary="board games for one or two players with legal-action masks (go_9x9, chess, 2048, ...), MinAtar",
    package="pgx",
    extra="pgx",
    default_task="go_9x9",
    opponents=_opponents,
)
