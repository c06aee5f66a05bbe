"""ale-py's vector environment behind our time steps: the protocol of `atari/<game>`, its true last observations, its quirks."""

import ale_py.vector_env
import numpy as np
import pytest

from podracer import types
from podracer.environment import EnvironmentFailed, Unsupported
from podracer.envs import ale_host, atari

TIMEOUT = 120.0
NOOP, FIRE = 0, 1


def make(game="pong", **options):
    options = {"backend": "ale", "repeat_action_probability": 0.0, "num_threads": 1, **options}
    return atari.Atari(game, atari.Config(**options))


def play(host, actions):
    """Time steps, each `[B, ...]`, of `actions` `[T, B]`."""
    try:
        return [host.reset(TIMEOUT)] + [host.step(np.asarray(action), TIMEOUT) for action in actions]
    finally:
        host.close()


def column(timesteps, name, game=0):
    return np.stack([getattr(timestep, name)[game] for timestep in timesteps])


def random_actions(num_steps, num_envs, seed=0):
    return np.random.default_rng(seed).integers(18, size=(num_steps, num_envs))


@pytest.mark.parametrize("options", [{"stack": 3}, {"grey": False, "stack": 2, "image_height": 50, "image_width": 40}])
def test_frame_by_frame_it_is_envpool_which_starts_a_frame_later(options):
    actions = random_actions(100, 1)
    ours = play(make(frame_skip=1, **options).host(1, 0), np.concatenate([[[NOOP]], actions]))
    envpools = play(make(frame_skip=1, backend="envpool", **options).host(1, 0), actions)
    start = options["stack"]  # until then the first frame is among the images
    for name in ("observation", "reward", "step_type", "discount"):
        np.testing.assert_array_equal(column(ours, name)[1 + start :], column(envpools, name)[start:])
    assert len(np.unique(column(ours, "observation")[start:], axis=0)) > 20
    channels = 1 if options.get("grey", True) else 3
    first = ours[0].observation[0].reshape(*ours[0].observation.shape[1:3], -1, channels)
    assert (first == first[..., -1:, :]).all()  # the first image, in the place of all
    second = ours[1].observation[0].reshape(first.shape)
    np.testing.assert_array_equal(second[..., :-1, :], first[..., 1:, :])


def test_an_image_is_the_brighter_of_the_last_two_frames():
    size = {"image_height": 210, "image_width": 160, "stack": 1}
    actions = random_actions(25, 1)
    pooled = column(play(make(**size).host(1, 0), actions), "observation")
    frames = column(play(make(frame_skip=1, **size).host(1, 0), actions.repeat(4, axis=0)), "observation")
    np.testing.assert_array_equal(pooled[1:], np.maximum(frames[3::4], frames[4::4]))


def test_a_time_limit_truncates_with_its_own_observation_and_then_starts_afresh():
    limit, actions = 10, random_actions(24, 2)
    short = play(make(max_frames=4 * limit + 3).host(2, 0), actions)
    long = play(make().host(2, 0), actions)
    kinds = [types.FIRST] + [types.MID] * (limit - 1) + [types.LAST]
    for game in range(2):
        assert column(short, "step_type", game).tolist() == (kinds * 3)[:25]
        assert (column(short, "discount", game) == 1).all()
        ours, theirs = column(short, "observation", game), column(long, "observation", game)
        np.testing.assert_array_equal(ours[: limit + 1], theirs[: limit + 1])
        np.testing.assert_array_equal(ours[limit + 1], ours[0])


def test_a_game_that_is_over_terminates_and_a_reset_of_another_does_not_disturb_it():
    length, limit = 190, 300  # of idle games, in agent steps
    environment = make(frame_skip=16, image_height=42, image_width=42, max_frames=16 * limit)
    alone = play(environment.host(1, 0), np.zeros((200, 1), int))
    over = int(np.flatnonzero(column(alone, "step_type") == types.LAST)[0])
    assert over == pytest.approx(length, abs=5)
    assert column(alone, "reward")[: over + 1].sum() == -21
    assert (alone[over].discount[0], alone[over + 1].step_type[0], alone[over + 1].discount[0]) == (0, types.FIRST, 1)
    np.testing.assert_array_equal(alone[over + 1].observation, alone[0].observation)

    host = environment.host(2, 0)
    pair = [host.reset(TIMEOUT)]
    for t in range(1, 201):
        if t == 1:
            host._pool._count[1] = limit - over + 1  # the other game is cut off one step before this one is over
        pair.append(host.step(np.zeros(2, int), TIMEOUT))
    host.close()
    for name in ("observation", "reward", "discount", "step_type"):
        np.testing.assert_array_equal(column(pair, name), column(alone, name))
    ends = column(pair, "step_type", 1)[over - 2 : over + 2].tolist()
    assert ends == [types.MID, types.LAST, types.FIRST, types.MID]
    assert (column(pair, "discount", 1) == 1).all()

    exact = play(
        make(frame_skip=16, image_height=42, image_width=42, max_frames=16 * over).host(1, 0), np.zeros((over + 1, 1), int)
    )
    assert (exact[over].step_type[0], exact[over].discount[0], exact[over + 1].step_type[0]) == (types.LAST, 0, types.FIRST)


def test_a_lost_life_ends_an_episode_but_not_the_game():
    actions = np.full((130, 1), NOOP)
    actions[::6] = FIRE  # serves the next ball
    timesteps = play(make("breakout", episodic_life=True, full_action_space=False).host(1, 0), actions)
    lasts = np.flatnonzero(column(timesteps, "step_type") == types.LAST)
    assert len(lasts) >= 5
    assert (column(timesteps, "discount")[lasts] == 0).all()
    images = column(timesteps, "observation")
    for number, last in enumerate(lasts[:5]):
        assert timesteps[last + 1].step_type[0] == types.FIRST
        game_goes_on = (images[last + 1][..., :-1] == images[last][..., 1:]).all()
        assert game_goes_on == (number < 4)
    np.testing.assert_array_equal(images[lasts[4] + 1], images[0])


class Scripted:
    """Of ale-py's calls those that a pool uses. One game, whose lives and ends at each step are given."""

    def __init__(self, lives, over):
        self.lives, self.over, self.actions, self.resets = list(lives), list(over), [], []

    def _info(self, lives):
        return {"env_id": np.zeros(1, np.int32), "lives": np.array([lives], np.int32)}

    def reset(self, seed=None, options=None):
        self.resets.append(len(self.actions) if options is not None else None)
        return np.zeros((1, 4, 2, 2), np.uint8), self._info(2)

    def send(self, actions):
        self.actions.append(int(actions[0]))

    def recv(self):
        lives, over = self.lives.pop(0), self.over.pop(0)
        return np.zeros((1, 4, 2, 2), np.uint8), np.ones(1, np.int32), np.array([over]), np.array([False]), self._info(lives)


def test_the_step_after_a_lost_life_is_idle_and_a_game_that_ends_in_it_starts_anew(monkeypatch):
    scripted = Scripted(lives=[2, 1, 0, 2, 1, 1, 1], over=[False, False, True, False, False, False, False])
    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", lambda *_, **__: scripted)
    host = make("breakout", episodic_life=True, full_action_space=False).host(1, 0)
    timesteps = play(host, np.full((7, 1), 3))
    F, M, L = types.FIRST, types.MID, types.LAST
    assert column(timesteps, "step_type").tolist() == [F, M, L, F, M, L, F, M]
    assert column(timesteps, "reward").tolist() == [0, 1, 1, 0, 1, 1, 0, 1]
    assert column(timesteps, "discount").tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert scripted.actions == [3, 3, NOOP, 3, 3, NOOP, 3]
    assert scripted.resets == [None, 3]  # all at first; then this game, after its third step


def test_idle_frames_at_the_start_are_drawn_from_0_to_noop_max():
    host = make(noop_max=3, image_height=8, image_width=8).host(2, 0)
    host.reset(TIMEOUT)
    frames = np.concatenate([host._pool._pool.reset()[1]["episode_frame_number"] for _ in range(16)])
    assert set(frames.tolist()) == {0, 1, 2, 3}
    host.close()


def test_actions_are_sent_by_number_and_what_would_hang_is_refused():
    host, other = make(frame_skip=2).host(3, 0), make(frame_skip=2).host(3, 0)
    host.reset(TIMEOUT)
    other.reset(TIMEOUT)
    for action in random_actions(30, 3):
        order = np.array([2, 0, 1])
        host.send(action[order], order)
        with pytest.raises(ValueError, match="middle of a step"):
            host.send(action, np.arange(3))
        env_id, timestep = host.recv(TIMEOUT)
        np.testing.assert_array_equal(timestep.observation, other.step(action, TIMEOUT).observation[env_id])
    assert (timestep.observation[0] != timestep.observation[1]).any()
    for bad in (-1, 18):
        with pytest.raises(ValueError, match=r"within 0\.\.17"):
            host.send(np.array([0, bad, 0]), np.arange(3))
    with pytest.raises(ValueError, match="3 games together, not 2"):
        host.send(np.zeros(2, int), np.arange(2))
    assert (host.step(np.zeros(3, int), TIMEOUT).step_type == types.MID).all()
    assert host.render() is None
    host.close()
    host.close()
    with pytest.raises(EnvironmentFailed, match="closed"):
        host.step(np.zeros(3, int), TIMEOUT)
    other.close()


def test_a_step_that_takes_too_long_is_a_timeout():
    host = make(frame_skip=1000).host(2, 0, first_env=6)
    host.reset(TIMEOUT)
    host.send(np.zeros(2, int), np.arange(2))
    with pytest.raises(TimeoutError, match="atari/pong: environments 6, 7 took longer than 0 s"):
        host.recv(0.0)
    assert host.recv(TIMEOUT)[0].tolist() == [0, 1]
    host.close()


def test_what_it_lacks_is_refused_in_one_line():
    for options in ({"observation": "ram"}, {"observation": "objects"}, {"batch_size": 2}):
        with pytest.raises(Unsupported, match=r"env.backend=ale has pixels alone.*use env.backend=envpool"):
            make(**options)
    with pytest.raises(Unsupported, match=r"podracer launch sebulba, or env.backend=envpool"):
        make().vectorize(2, 0)


def test_both_have_the_same_actions():
    for game in ("pong", "breakout", "ms_pacman", "seaquest", "venture"):
        num_actions = make(game, full_action_space=False).spec.num_actions
        config = atari.Config(backend="ale", full_action_space=False, image_height=8, image_width=8)
        pool = ale_host.AlePool(game, config, np.array([1]))
        assert len(pool._pool.ale.get_action_set()) == num_actions
