"""Our own Pong against the ALE's, and against its own rules."""

import ale_py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podracer import types
from podracer.envs import atari
from podracer.envs.atari_jax import physics, rendering
from podracer.envs.atari_jax.pong import Config, Pong

pytestmark = pytest.mark.quick

ADDRESSES = {
    "ball_x": 49, "ball_y": 54, "ball_dx": 58, "ball_dy": 56, "enemy_y": 50, "player_y": 51, "player_next": 60, "clock": 8,
    "wait": 11, "enemy_score": 13, "player_score": 14,
}  # fmt: skip
FIELDS = list(physics.PongState.__dataclass_fields__)

frame = jax.jit(physics.frame)
frames = jax.jit(lambda game, turn, fire: jax.lax.scan(lambda g, a: (physics.frame(g, *a),) * 2, game, (turn, fire))[1])
picture = jax.jit(rendering.frame_rgb)
observe = jax.jit(rendering.observe, static_argnums=(2, 3))


def game_of(**values):
    """A game in play, with the ball far from everything."""
    middle = {"ball_x": 128, "ball_y": 128, "ball_dx": -1, "ball_dy": 1, "enemy_y": 120, "player_y": 120, "player_next": 120}
    values = {"dial": 50, "clock": 2} | middle | values
    return physics.PongState(**{name: jnp.int32(values.get(name, 0)) for name in FIELDS})


def play_ale(num_frames, seed):
    """The ALE's RAM [T, 128] at frame skip 1 under a player who follows the ball with errors and likes the button."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path("pong"))
    rng = np.random.default_rng(seed)
    actions, memory, aim = [], [], 7
    for t in range(num_frames):
        ram = ale.getRAM().astype(np.int32)
        aim = rng.integers(-4, 20) if t % 97 == 0 else aim
        error = ram[54] - aim - ram[51]
        turn = 0 if abs(error) < 4 else np.sign(error)
        turn = rng.integers(-1, 2) if rng.random() < 0.1 else turn
        fire = rng.integers(2)
        action = int(np.flatnonzero((turn == physics.ACTION_TURN) & (fire == physics.ACTION_FIRE))[0])
        ale.act(ale_py.Action(action))
        actions.append(action)
        memory.append(ale.getRAM())
        assert not ale.game_over()
    return np.array(actions), np.array(memory)


def test_every_frame_of_a_game_agrees_with_the_ale():
    actions, ram = play_ale(6000, seed=0)
    ours = frames(physics.new_game(), jnp.asarray(physics.ACTION_TURN[actions]), jnp.asarray(physics.ACTION_FIRE[actions]))
    assert ram[-1, 13] + ram[-1, 14] >= 8  # points were made
    assert np.abs(ram[:, 58].astype(np.int8)).max() >= 3  # and fast balls hit
    for name, address in ADDRESSES.items():
        theirs = ram[:, address]
        theirs = theirs.astype(np.int8) if name in ("ball_dx", "ball_dy") else theirs
        np.testing.assert_array_equal(np.asarray(getattr(ours, name)), theirs, err_msg=name)


@pytest.mark.parametrize("full_action_space", [True, False])
def test_specs_equal_those_of_the_ale(full_action_space):
    for observation in ("pixels", "objects"):
        ours = Pong(Config(observation=observation, full_action_space=full_action_space)).spec
        theirs = atari.Atari("pong", atari.Config(observation=observation, full_action_space=full_action_space)).spec
        assert ours.observation == theirs.observation
        assert ours.action == theirs.action
        assert ours.frames_per_step == theirs.frames_per_step


@pytest.mark.parametrize(("observation", "minimal"), [("objects", False), ("objects", True), ("pixels", False)])
def test_steps_equal_those_of_the_ale(observation, minimal):
    options = {"observation": observation, "repeat_action_probability": 0.0, "full_action_space": not minimal}
    theirs = atari.Atari("pong", atari.Config(**options)).vectorize(1, 0)
    ours = Pong(Config(**options)).vectorize(1, 0)
    keys = jax.random.split(jax.random.key(0), 1)
    rng = np.random.default_rng(1)
    actions = np.repeat(rng.integers(6 if minimal else 18, size=60, dtype=np.int32), 5)[:, None]
    streams = []
    for venv in (theirs, ours):
        state, _ = venv.reset(keys)
        run = jax.jit(lambda s, a, venv=venv: jax.lax.scan(lambda s, a: venv.step(s, a, keys), s, a))
        streams.append(jax.tree.map(np.asarray, run(state, jnp.asarray(actions))[1]))
    np.testing.assert_array_equal(streams[0].reward, streams[1].reward)
    np.testing.assert_array_equal(streams[0].step_type, streams[1].step_type)
    difference = np.abs(streams[0].observation.astype(np.float32) - streams[1].observation)
    if observation == "objects":
        assert difference.max() < 1e-6
    else:  # the ALE's first frame has other colours; some frames differ in up to four of their 33,600 pixels
        difference = difference[4:]
        assert (difference.max(axis=(1, 2, 3)) <= 1).mean() > 0.6
        assert (difference > 1).mean() < 2e-3


@settings(max_examples=30, deadline=None)
@given(
    ball=st.tuples(st.integers(53, 204), st.integers(44, 207), st.integers(-4, 4), st.integers(-3, 3)),
    enemy=st.integers(0, 103),
    player=st.tuples(st.integers(38, 203), st.integers(-12, 12)),
    scores=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_small_image_is_the_mean_of_the_brighter_of_two_pictures(ball, enemy, player, scores):
    x, y, dx, dy = ball
    before = game_of(
        ball_x=x, ball_y=y, ball_dx=dx or 1, ball_dy=dy, enemy_y=2 * enemy, player_y=player[0],
        player_next=np.clip(player[0] + player[1], 38, 203), enemy_score=scores[0], player_score=scores[1],
    )  # fmt: skip
    after = frame(before, 0, 0)
    grey = [to_grey(np.asarray(picture(game))) for game in (before, after)]
    expected = area_mean(np.maximum(*grey), 84, 84)
    got = np.asarray(observe(before, after, 84, 84)).astype(np.float64)
    assert np.abs(got - expected).max() <= 0.51


def to_grey(image):
    grey = np.zeros(image.shape[:2])
    for colour, value in rendering.GREY.items():
        grey[(image == np.array(colour)).all(-1)] = value
    return grey


def area_mean(image, height, width):
    """By replication to a common multiple, so that every small pixel is the plain mean of a block."""
    rows, columns = np.lcm(image.shape[0], height), np.lcm(image.shape[1], width)
    large = np.repeat(np.repeat(image, rows // image.shape[0], 0), columns // image.shape[1], 1)
    return large.reshape(height, rows // height, width, columns // width).mean((1, 3))


def test_picture_shows_the_objects_where_they_are():
    game = game_of(ball_x=100, ball_y=90, enemy_y=60, player_y=150)
    image = np.asarray(picture(game))[34:194]
    for colour, columns, rows in (
        (rendering.WHITE, (51, 52), (76, 79)),
        (rendering.ENEMY, (16, 19), (45, 60)),
        (rendering.PLAYER, (140, 143), (136, 151)),
    ):
        where = np.argwhere((image == np.array(colour)).all(-1)) + np.array([34, 0])
        assert tuple(where.min(0)) == (rows[0], columns[0])
        assert tuple(where.max(0)) == (rows[1], columns[1])


def test_no_ball_is_drawn_between_points():
    image = np.asarray(picture(game_of(ball_y=0, wait=30)))[34:194]
    assert not (image == np.array(rendering.WHITE)).all(-1).any()


@pytest.mark.parametrize(
    ("offset", "expected"), [(-1, -2), (0, -2), (1, -1), (4, -1), (5, 0), (8, 0), (9, 1), (12, 1), (13, 2), (15, 2)]
)
def test_where_the_ball_meets_the_paddle_sets_the_angle(offset, expected):
    game = frame(game_of(ball_x=188, ball_y=100 + offset, player_y=100, player_next=100), 0, 0)
    assert (int(game.ball_dx), int(game.ball_dy)) == (1, expected)
    missed = frame(game_of(ball_x=188, ball_y=100 + 20, player_y=100, player_next=100), 0, 0)
    assert int(missed.ball_dx) == -1


def test_only_the_button_makes_the_ball_faster_up_to_a_limit():
    for dx, fire, expected in ((-1, 0, 1), (-1, 1, 2), (-3, 1, 4), (-4, 1, 4), (-3, 0, 3)):
        game = frame(game_of(ball_x=188, ball_y=106, ball_dx=dx, player_y=100, player_next=100, fire=fire), 0, 0)
        assert int(game.ball_dx) == expected
        assert int(game.ball_x) == 188 - expected


def test_walls_reflect():
    for y, dy, expected in ((45, -2, (48, 2)), (46, -2, (44, -2)), (206, 1, (204, -1)), (205, 2, (207, 2))):
        game = frame(game_of(ball_y=y, ball_dy=dy), 0, 0)
        assert (int(game.ball_y), int(game.ball_dy)) == expected


def test_a_point_is_scored_and_the_loser_is_served():
    for ball_x, dx, winner, serve_x in ((205, -3, "enemy_score", 129), (52, 2, "player_score", 127)):
        game = frame(game_of(ball_x=ball_x, ball_dx=dx), 0, 0)
        assert int(getattr(game, winner)) == 1
        assert int(game.wait) == 63
        for _ in range(63):
            assert int(game.wait) > 0
            game = frame(game, 0, 0)
        assert (int(game.ball_x), int(game.ball_y), abs(int(game.ball_dx))) == (serve_x, 129, 1)


def test_idle_player_loses_every_point_in_as_many_frames_as_in_the_ale():
    venv = Pong(Config(observation="objects", repeat_action_probability=0.0)).vectorize(1)
    keys = jax.random.split(jax.random.key(0), 1)
    state, _ = venv.reset(keys)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: venv.step(s, jnp.zeros(1, jnp.int32), keys), s, None, 800))
    timesteps = run(state)[1]
    last = int(np.flatnonzero(np.asarray(timesteps.step_type)[:, 0] == types.LAST)[0])
    assert float(timesteps.reward[: last + 1].sum()) == -21
    assert float(timesteps.discount[last, 0]) == 0
    assert last + 1 == 3056 // 4  # 3056 frames, as many as the ALE takes


def test_time_limit_truncates():
    environment = Pong(Config(observation="objects", max_frames=12))
    state, _ = environment.reset(jax.random.key(0))
    step = jax.jit(environment.step)
    for expected in (types.MID, types.MID, types.LAST):
        state, timestep = step(state, jnp.int32(0), jax.random.key(1))
        assert int(timestep.step_type) == expected
        assert float(timestep.discount) == 1


def test_sticky_actions_repeat_the_action_in_force_on_each_frame():
    environment = Pong(Config(observation="objects", repeat_action_probability=1.0))
    state, _ = environment.reset(jax.random.key(0))
    state, _ = environment.step(state, jnp.int32(3), jax.random.key(1))
    assert int(state.game.dial) == 50  # the idle action of the start repeats for ever
    environment = Pong(Config(observation="objects", repeat_action_probability=0.25))
    state, _ = environment.reset(jax.random.key(0))
    step = jax.jit(jax.vmap(lambda key: environment.step(state, jnp.int32(3), key)[0].game.dial))
    turned = (50 - np.asarray(step(jax.random.split(jax.random.key(2), 4000)))) // 3
    # The first n frames are idle with probability 0.25**n; from then on right is in force, whether repeated or chosen.
    expected = [(0.75 * 0.25 ** (4 - n)) if n else 0.25**4 for n in range(5)]
    np.testing.assert_allclose(np.bincount(turned, minlength=5) / 4000, expected, atol=0.03)


def test_idle_frames_at_the_start_are_drawn_from_the_key():
    environment = Pong(Config(observation="objects", noop_max=30))
    clocks = jax.vmap(lambda key: environment.reset(key)[0].game.clock)(jax.random.split(jax.random.key(0), 400))
    assert set(np.asarray(clocks) - 71) == set(range(1, 31))


def test_bad_settings_are_refused():
    for options in ({"frame_skip": 0}, {"repeat_action_probability": -0.1}, {"max_frames": 2}, {"noop_max": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Config(**options)
