"""Mazes in Doom: the WAD file alone; then, where ViZDoom is installed, what is seen in it, and rewards and labels."""

import dataclasses
import functools
import importlib.util
import math
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from podracer import registry
from podracer.environment import EnvironmentFailed, Unsupported
from podracer.envs.nav import camera, doom, doom_wad, mazes, raycast, vizdoom_worker
from podracer.envs.nav.config import ACTIONS, NavConfig

needs_vizdoom = pytest.mark.skipif(
    importlib.util.find_spec("vizdoom") is None, reason="ViZDoom is missing: pip install 'podracer-rl[vizdoom]'"
)
TIMEOUT = 60.0
MINI = NavConfig(maze="mini", height=30, width=40, max_steps=400, depth_input=True, num_workers=1)
LEFT, RIGHT, FORWARD, BACK, STRAFE_LEFT, STRAFE_RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(8)


@pytest.fixture(scope="module")
def game():
    """One environment in this process. Tests reset it."""
    env = vizdoom_worker.make(0, 3, MINI.resolved())
    yield env
    env.close()


def warp(env, position, heading=0.0):
    """Puts the agent somewhere; the next step goes on from there."""
    env._doom.place_player(np.float32(position), heading)
    env._doom.act(0.0, 0.0, 0.0, 1)
    env._journey.arrive(env._doom.pose())


def clear(env):
    """Takes away all that stands in the maze."""
    for thing in range(len(env._kinds)):
        env._doom.place(thing, None)
    env._doom.act(0.0, 0.0, 0.0, 1)


@functools.cache
def _caster():
    """Depth of the label and of the picture `[H, W]`, squares, by the raycaster of `ray_maze`."""
    nothing = raycast.Things(position=jnp.zeros((1, 2)), seen=jnp.zeros(1, bool), kind=np.zeros(1, int))

    def cast(walls, pose):
        grid = raycast.pack(walls)
        where = pose[:2], pose[2]
        _, picture = raycast.view(grid, nothing, jnp.uint32(0), *where, MINI.height, MINI.width, MINI.extent)
        return raycast.depth_at(grid, nothing, *where, *camera.of_label(MINI.extent)), picture

    return jax.jit(cast)


def lumps_of(data):
    """Name and contents of every lump, as Doom reads them."""
    magic, count, offset = struct.unpack_from("<4sii", data)
    assert magic == b"PWAD"
    entries = [struct.unpack_from("<ii8s", data, offset + 16 * i) for i in range(count)]
    assert offset + 16 * count == len(data)
    return [(name.rstrip(b"\0").decode(), data[start : start + size]) for start, size, name in entries]


def test_the_wad_of_a_maze(tmp_path):
    walls = np.ones((4, 5), bool)
    walls[1, 1:4] = walls[2, 3] = False
    goal, apple = doom_wad.Kind("Goal", 20001, "TBLU"), doom_wad.Kind("Apple", 20002, "RSKU", 1.5)
    path = tmp_path / "mazes.wad"
    doom_wad.write(str(path), [walls, np.pad(np.zeros((1, 1), bool), 1, constant_values=True)], [goal, apple, apple])
    lumps = lumps_of(path.read_bytes())
    names = [name for name, _ in lumps]
    assert names == ["MAPINFO", "DECORATE"] + [name for n in (1, 2) for name in (f"MAP0{n}", "TEXTMAP", "BEHAVIOR", "ENDMAP")]
    assert lumps[1][1].count(b"actor ") == 3  # the player, and a class for each kind
    text = lumps[3][1].decode()
    vertices = [tuple(map(float, pair)) for pair in re.findall(r"vertex \{ x = (\S+); y = (\S+); \}", text)]
    lines = [
        (vertices[int(first)], vertices[int(second)])
        for first, second in re.findall(r"linedef \{ v1 = (\d+); v2 = (\d+);", text)
    ]

    # Each wall has the maze on its right and stone on its left; there is one wherever the two meet, and the store's four.
    size = doom_wad.SQUARE
    maze = {tuple(sorted(ends)) for ends in lines[:-4]}
    edges = np.sum(walls[1:] != walls[:-1]) + np.sum(walls[:, 1:] != walls[:, :-1])
    assert len(maze) == len(lines) - 4 == edges == 10
    for (x1, y1), (x2, y2) in lines[:-4]:
        middle, along = np.array([x1 + x2, y1 + y2]) / 2, np.array([x2 - x1, y2 - y1]) / size
        right = np.array([along[1], -along[0]])
        free, stone = ((middle + side * size / 4 * right) / size for side in (1, -1))
        assert (walls[int(-free[1]), int(free[0])], walls[int(-stone[1]), int(stone[0])]) == (False, True)
    things = re.findall(r"thing \{ type = (\d+); id = (\d+); x = (\S+); y = (\S+);", text)
    assert things[0] == ("1", "0", str(1.5 * size), str(-1.5 * size))
    assert [thing[:2] for thing in things[1:]] == [("20001", "1"), ("20002", "2"), ("20002", "3")]
    assert {tuple(map(float, thing[2:])) for thing in things[1:]} == {doom_wad.store()}
    with pytest.raises(ValueError, match="walls all around"):
        doom_wad.textmap(np.zeros((3, 3), bool), [])


def test_the_scripts_are_in_the_directory():
    code = doom_wad.behavior()
    magic, directory = struct.unpack_from("<4si", code)
    (count,) = struct.unpack_from("<i", code, directory)
    scripts = [struct.unpack_from("<iii", code, directory + 4 + 12 * i) for i in range(count)]
    assert magic == b"ACS\0"
    assert [(number, arguments) for number, _, arguments in scripts] == [(1, 4), (2, 3)]
    starts = [address for _, address, _ in scripts]
    for start, end in zip(starts, [*starts[1:], directory], strict=True):
        words = struct.unpack_from(f"<{(end - start) // 4}i", code, start)
        assert words[-1] == 1  # the script ends


@needs_vizdoom
def test_depth_is_what_geometry_says(game):
    """The raycaster of `ray_maze` is held to analytic distances by its own test."""
    game.reset()
    clear(game)
    walls, rng = game._layout.walls, np.random.default_rng(0)
    errors = []
    for square in np.flatnonzero(~walls.reshape(-1)):
        place = mazes.centre(square, walls.shape[1], np) + rng.uniform(-0.2, 0.2, 2)
        warp(game, place, rng.uniform(-np.pi, np.pi))
        label, picture = (np.minimum(part, 8.0) for part in _caster()(walls, game._doom.pose()))
        errors.append(np.abs(8 * game.aux()["depth"] - label).reshape(-1))
        middle = slice(MINI.height // 2 - 3, MINI.height // 2 + 3)  # the top and bottom are stretched
        seen = 8 * game._observe()["depth"][..., 0]
        errors.append(np.abs(seen - picture)[middle, 1:-1].reshape(-1))
    errors = np.concatenate(errors)
    assert np.mean(errors < 0.25) > 0.93  # the others lie across an edge, a pixel away
    assert np.mean(errors) < 0.15
    assert np.std(seen) > 0.5


@needs_vizdoom
def test_depth_at_known_distances_in_every_resolution_that_is_used():
    walls = np.ones((5, 30), bool)
    walls[1:4, 1:-1] = False
    for far, size in ((8.0, (160, 120)), (16.0, (200, 150)), (24.0, (320, 240))):
        view = doom.View(12, 16, 90.0, far)
        assert view.screen() == size
        world = doom.Doom([walls], [], view, 0)
        errors = []
        for distance in (0.5, 1.0, 2.0, 4.0, 7.0, 12.0, 20.0):
            world.place_player(np.float32([29 - distance, 2.5]), 0.0)
            world.act(0.0, 0.0, 0.0, 1)
            ahead = world.depth_at(np.zeros(1), np.zeros(1))[0, 0]
            errors.append(min(ahead, far) - min(distance, far))
        world.close()
        np.testing.assert_allclose(errors, 0.0, atol=0.15)


@needs_vizdoom
def test_actions_do_what_they_say(game):
    game.reset()
    clear(game)
    config = game._config
    walls, columns = game._layout.walls, game._columns
    square = next(int(n) for n in np.flatnonzero(~walls.reshape(-1)) if n != game._things.goal)
    turn, speed = config.action_repeat * math.radians(config.turn), config.action_repeat * config.speed
    for heading in (0.0, 2.0):
        for action, (right, forward, by) in enumerate(ACTIONS):
            warp(game, mazes.centre(square, columns, np), heading)
            before = game._doom.pose()
            observation = game.step(action)[0]
            after, velocity = game._doom.pose(), observation["velocity"]
            np.testing.assert_allclose(velocity[5], by * turn, atol=1e-3)
            np.testing.assert_allclose(after[2] - before[2], by * turn, atol=1e-3)
            assert (velocity[2:5] == 0).all()
            # From rest, a body gets a few tenths of its speed in the first step.
            np.testing.assert_array_equal(np.sign(np.round(velocity[:2], 1 if by else 2)), [right, forward])
            if right or forward:
                assert 0.1 * speed < np.hypot(*velocity[:2]) < 0.5 * speed
            axes = np.array([[-np.sin(heading), np.cos(heading)], [np.cos(heading), np.sin(heading)]])
            np.testing.assert_allclose(axes @ (after - before)[:2], velocity[:2], atol=2e-3)


@needs_vizdoom
def test_the_agent_gets_as_fast_as_asked_and_walls_stop_it():
    walls = np.ones((3, 30), bool)
    walls[1, 1:-1] = False
    world = doom.Doom([walls], [], doom.View(8, 8, 90.0, 8.0), 0)
    world.place_player(np.float32([1.5, 1.5]), 0.0)
    world.act(0.0, 0.0, 0.0, 1)
    places = []
    for _ in range(80):
        world.act(0.125, 0.0, 0.0, 4)
        places.append(world.pose()[0])
    world.close()
    np.testing.assert_allclose(np.max(np.diff(places)), 0.5, rtol=0.03)
    assert 28.5 < places[-1] <= 28.75 + 0.05  # half the body is left between its middle and the wall
    assert abs(places[-1] - places[-2]) < 0.01


@needs_vizdoom
def test_rewards_and_what_the_goal_does(game):
    game.reset()
    assert game._worth.tolist() == [1, 1, 1, 1, 2]
    apple, strawberry = game._fruit[0], game._fruit[4]
    warp(game, apple)
    assert game.step(LEFT)[1:] == (1.0, 1.0, False)
    assert not game._ripe[0]
    assert game.step(LEFT)[1] == 0.0  # eaten
    warp(game, strawberry)
    assert game.step(LEFT)[1] == 2.0
    goals = game.aux()["goals"]
    warp(game, game._goal)
    observation, reward, discount, last = game.step(FORWARD)
    labels = game.aux()
    assert (reward, discount, last, goals, labels["goals"]) == (10.0, 1.0, False, 0, 1)
    assert game._ripe.all()
    assert (observation["velocity"] == 0).all()
    assert labels["position"] != game._things.goal
    assert not labels["loop_closure"]
    pose = labels["pose"]
    np.testing.assert_allclose(pose[:2] % 1, 0.5, atol=1e-3)
    game.step(RIGHT)
    np.testing.assert_allclose(game.aux()["pose"][:2], pose[:2], atol=1e-3)  # it stood still
    starts = set()
    for _ in range(12):
        warp(game, game._goal)
        game.step(LEFT)
        starts.add(int(game.aux()["position"]))
    assert len(starts) > 5
    assert game._journey.goals == 13
    game.reset()
    assert game.aux()["goals"] == 0


@needs_vizdoom
def test_fruit_and_goal_are_seen(game):
    walls, columns = game._layout.walls, game._columns
    row, column = next((r, c) for r, c in np.argwhere(~walls) if not walls[r, c + 1] and not walls[r, c + 2])
    ahead = np.float32([column + 2.3, row + 0.5])
    game.reset()
    clear(game)
    warp(game, (column + 0.5, row + 0.5))
    empty = game._doom.rgb().astype(int)
    assert columns == walls.shape[1]
    for thing, strongest in ((0, 1), (1, 0), (5, 0)):  # the goal is green, an apple red, a strawberry yellow
        game._doom.place(thing, ahead)
        game._doom.act(0.0, 0.0, 0.0, 1)
        difference = game._doom.rgb().astype(int) - empty
        changed = np.abs(difference).max(-1) > 40
        assert 5 < changed.sum() < 200
        assert np.abs(np.argwhere(changed)[:, 1].mean() - MINI.width / 2) < 3
        assert difference[changed].sum(0).argmax() == strongest
        game._doom.place(thing, None)
        game._doom.act(0.0, 0.0, 0.0, 1)
        np.testing.assert_array_equal(game._doom.rgb(), empty)


@needs_vizdoom
def test_labels_and_the_end_of_an_episode_on_a_walk(game):
    rng, walls = np.random.default_rng(5), game._layout.walls
    game.reset()
    poses, closures, since = [game.aux()["pose"]], [game.aux()["loop_closure"]], [0]
    action, last = FORWARD, False
    while not last:
        if rng.random() < 0.25:
            action = int(rng.choice([LEFT, RIGHT, FORWARD, FORWARD, FORWARD_LEFT, FORWARD_RIGHT]))
        _, reward, discount, last = game.step(action)
        labels = game.aux()
        poses.append(labels["pose"])
        closures.append(bool(labels["loop_closure"]))
        since.append(len(poses) - 1 if reward >= 10 else since[-1])
        column, row = np.floor(labels["pose"][:2]).astype(int)
        assert labels["position"] == row * walls.shape[1] + column
        assert not walls[row, column]
        assert discount == 1.0
    assert len(poses) == MINI.max_steps + 1
    places = np.array(poses)[:, :2]
    expected = []
    for t, start in enumerate(since):  # section 3.2: some t' < t'' < t since the agent spawned
        distance = np.hypot(*(places[start:t] - places[t]).T)
        near, far = np.flatnonzero(distance <= 1), np.flatnonzero(distance >= 2)
        expected.append(bool(any((far > before).any() for before in near)))
    assert closures == expected
    assert 0.02 < np.mean(expected) < 0.98


@needs_vizdoom
def test_maze_and_things_are_those_of_ray_maze(game):
    layout = mazes.fixed("mini", 0, MINI.loops)
    np.testing.assert_array_equal(game._layout.walls, layout.walls)
    things = mazes.fixed_things(layout, 0, 5)
    game.reset()
    assert (game._things.goal, game._things.fruit.tolist()) == (things.goal, things.fruit.tolist())


@needs_vizdoom
def test_new_mazes(monkeypatch):
    monkeypatch.setattr(vizdoom_worker, "_MAZES_PER_GAME", 2)
    config = dataclasses.replace(MINI, new_maze=True, goal="random").resolved()
    env = vizdoom_worker.make(0, 0, config)
    seen, goals = set(), set()
    for _ in range(5):
        env.reset()
        seen.add(env._layout.walls.tobytes())
        goals.add(int(env._things.goal))
        clear(env)
        label, _ = _caster()(env._layout.walls, env._doom.pose())
        assert np.median(np.abs(8 * env.aux()["depth"] - np.minimum(label, 8))) < 0.25  # it is that maze that is seen
    env.close()
    assert (len(seen), len(goals) > 1) == (5, True)


@needs_vizdoom
def test_random_goals_in_the_large_maze_and_all_that_is_in_it(monkeypatch):
    import vizdoom

    monkeypatch.setattr(vizdoom.DoomGame, "set_sound_enabled", lambda self, _: self.set_objects_info_enabled(True))
    env = vizdoom_worker.make(0, 0, NavConfig(maze="large", goal="random", height=20, width=20).resolved())
    goals = set()
    for _ in range(3):
        env.reset()
        goals.add(int(env._things.goal))
        things = [thing for thing in env._doom.game.get_state().objects if thing.name != "NavPlayer"]
        where = sorted(
            (thing.name, thing.position_x / doom_wad.SQUARE, -thing.position_y / doom_wad.SQUARE) for thing in things
        )
        fruit = zip(["NavApple"] * 20 + ["NavStrawberry"] * 6, env._fruit.tolist(), strict=True)
        assert where == sorted([("NavGoal", *env._goal.tolist()), *((name, x, y) for name, (x, y) in fruit)])
    env.close()
    assert len(goals) == 3


@needs_vizdoom
def test_processes_end_with_the_pool_and_with_their_worker_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = registry.env("nav/vizdoom_maze").make(MINI)
    memory, others = set(Path("/dev/shm").glob("ViZDoom*")), psutil.Process().children()

    def end(processes):
        _, alive = psutil.wait_procs(processes, timeout=10)
        return not alive

    for how in ("close", "kill the worker", "kill the game"):
        host = environment.host(2, 0)
        host.reset(TIMEOUT)
        mine = [process for process in psutil.Process().children(recursive=True) if process not in others]
        games = [process for process in mine if process.name() == "vizdoom"]
        assert len(games) == 2
        assert set(Path("/dev/shm").glob("ViZDoom*")) <= memory
        if how != "close":
            victim = games[0] if "game" in how else host._workers[0].popen
            os.kill(victim.pid, signal.SIGKILL)
            with pytest.raises(EnvironmentFailed, match=r"nav/vizdoom_maze: environment [01]: .*(killed by signal 9|ViZDoom)"):
                host.step(np.zeros(2, np.int32), TIMEOUT)
        host.close()
        assert end(mine)
    assert not list(tmp_path.iterdir())  # Doom makes a folder where it starts


def test_what_cannot_be_is_one_line(monkeypatch):
    found = registry.env("nav/vizdoom_maze")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        registry.NotFound, match=re.escape("nav/vizdoom_maze needs vizdoom: pip install 'podracer-rl[vizdoom]'")
    ):
        found.make(MINI)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for settings, words in (
        ({"fov": 120.0}, "fov must be at most that, not 120"),
        ({"height": 700}, "at most 640x480 pixels"),
        ({"max_depth": 100.0}, "100 squares deep"),
    ):
        with pytest.raises(Unsupported, match=words) as caught:
            found.make(dataclasses.replace(MINI, **settings))
        assert "\n" not in str(caught.value)
    with pytest.raises(Unsupported, match=r"podracer launch sebulba --env nav/vizdoom_maze$"):
        found.make(MINI).vectorize(2, 0)


def test_workers_do_without_jax():
    code = "import sys; from podracer.envs import dm_control_maze; from podracer.envs.nav import SUITE, vizdoom_worker"
    code += "; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
