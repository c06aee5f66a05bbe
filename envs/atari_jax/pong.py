"""`atari_jax/pong`: Pong as an environment in JAX, with the action and observation spaces of `atari/pong`."""

from typing import Any

import jax
import jax.numpy as jnp
from dm_env import specs

from podracer import types
from podracer.environment import JaxEnvironment
from podracer.envs.atari_jax import objects, physics, rendering
from podracer.envs.atari_jax.config import Config
from podracer.types import Array, EnvironmentSpec, Key, Struct, TimeStep


class EnvState(Struct):
    """An episode.

    game: the newest frame.
    turn, fire: `[]` int32, the action in force, which sticky actions repeat.
    num_steps: `[]` int32, agent steps taken.
    images: `[image_height, image_width, stack]` uint8 for pixels, otherwise empty.
    """

    game: physics.PongState
    turn: Array
    fire: Array
    num_steps: Array
    images: Any


class Pong(JaxEnvironment):
    """One game of Pong, to 21 points, against the computer of the original.

    The ALE stops in the middle of an agent step when the game is over; here the step is played to its end, which changes
    the last image by at most three frames and no reward.
    """

    def __init__(self, config: Config):
        self.config = config
        if config.observation == "pixels":
            shape = (config.image_height, config.image_width, config.stack)
            observation: specs.Array = specs.BoundedArray(shape, "uint8", 0, 255, name="pixels")
        else:
            observation = specs.Array((objects.NUM_FEATURES,), "float32", name="objects")
        num_actions = 18 if config.full_action_space else len(physics.MINIMAL_ACTIONS)
        self.spec = EnvironmentSpec(
            name="atari_jax/pong",
            observation=observation,
            action=specs.DiscreteArray(num_actions, name="action"),
            frames_per_step=config.frame_skip,
        )
        self._actions = physics.MINIMAL_ACTIONS if not config.full_action_space else jnp.arange(18)

    def reset(self, key: Key) -> tuple[EnvState, TimeStep]:
        zero = jnp.int32(0)
        game = physics.new_game()
        num_idle = jax.random.randint(key, (), 1, max(self.config.noop_max, 1) + 1)
        game = jax.lax.fori_loop(0, num_idle, lambda _, game: physics.frame(game, zero, zero), game)
        images: Any = ()
        if self.config.observation == "pixels":
            image = rendering.observe(game, game, self.config.image_height, self.config.image_width)
            images = jnp.broadcast_to(image[..., None], self.spec.observation.shape)
        state = EnvState(game=game, turn=zero, fire=zero, num_steps=zero, images=images)
        return state, types.restart(self._observation(game, state))

    def step(self, state: EnvState, action: Array, key: Key) -> tuple[EnvState, TimeStep]:
        number = jnp.asarray(self._actions)[action]
        wanted_turn, wanted_fire = jnp.asarray(physics.ACTION_TURN)[number], jnp.asarray(physics.ACTION_FIRE)[number]
        repeats = self._repeats(key)[: self.config.frame_skip]

        def one_frame(carry: tuple[Any, ...], repeat: Array) -> tuple[tuple[Any, ...], None]:
            _, game, turn, fire = carry
            turn, fire = jnp.where(repeat, turn, wanted_turn), jnp.where(repeat, fire, wanted_fire)
            return (game, physics.frame(game, turn, fire), turn, fire), None

        start = (state.game, state.game, state.turn, state.fire)
        (game_tm1, game, turn, fire), _ = jax.lax.scan(one_frame, start, repeats)
        num_steps = state.num_steps + 1
        images = state.images
        if self.config.observation == "pixels":
            first = game if self.config.frame_skip == 1 else game_tm1
            image = rendering.observe(first, game, self.config.image_height, self.config.image_width)
            images = jnp.concatenate([state.images[..., 1:], image[..., None]], axis=-1)
        new_state = EnvState(game=game, turn=turn, fire=fire, num_steps=num_steps, images=images)
        won, lost = game.player_score - state.game.player_score, game.enemy_score - state.game.enemy_score
        return new_state, types.transition(
            reward=won - lost,
            observation=self._observation(state.game, new_state),
            terminated=jnp.maximum(game.player_score, game.enemy_score) >= physics.WINNING_SCORE,
            truncated=num_steps >= self.config.max_frames // self.config.frame_skip,
        )

    def render(self, state: EnvState) -> Array:
        """The newest frame as the ALE shows it, `[210, 160, 3]` uint8."""
        return rendering.frame_rgb(state.game)

    def _repeats(self, key: Key) -> Array:
        """`[frame_skip]` bool: on which frames the action in force stays."""
        probability = self.config.repeat_action_probability
        if probability == 0:
            return jnp.zeros(self.config.frame_skip, bool)
        # Sixteen bits a frame are plenty, and random bits are a large part of the cost of a step: two frames share a draw.
        draws = jax.random.bits(key, ((self.config.frame_skip + 1) // 2,), jnp.uint32)
        bits = jnp.stack([draws >> 16, draws & 0xFFFF], axis=-1).reshape(-1)
        return bits < jnp.uint32(round(probability * 2**16))

    def _observation(self, game_tm1: physics.PongState, state: EnvState) -> Array:
        if self.config.observation == "pixels":
            return jnp.asarray(state.images)
        game = state.game
        return objects.features(
            (game.ball_x, game.ball_y, game.ball_dx, game.ball_dy),
            (game.player_y, game.enemy_y),
            (game_tm1.player_y, game_tm1.enemy_y),
            self.config.frame_skip,
        )
