"""A Doom that shows mazes, through ViZDoom (https://vizdoom.farama.org): what an eye in one sees, and how a body moves in it.

Lengths are squares of the maze, the x axis goes right and the y axis down, angles are radians from x to y. Walls are 1 high and
the eye is at 1/2. Imports no jax.
"""

import dataclasses
import glob
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from podracer.envs.nav import doom_wad
from podracer.envs.nav.camera import spread
from podracer.envs.nav.doom_wad import SQUARE, Kind

_SETTLE = 8
"""Tics for which a player who has just entered a map does not obey."""
_FRICTION = 0.90625
"""Share of its speed that a body in Doom keeps from one tic to the next."""
_SIZES = ((160, 120), (200, 150), (256, 192), (320, 240), (400, 300), (512, 384), (640, 480))
"""Those of ViZDoom's resolutions that are 4:3, where its depth buffer has one unit on walls and floors alike."""
_TOP = 0.75
"""Tangent of the angle from the axis of the view to the top of such a screen, which is 90 degrees wide."""
_UNIT, _OFFSET, _LEVELS = 7.138, 0.017, 255 / 480
"""Of the depth buffer, from ViZDoom's r_segs.cpp: map units a level; map units a column of the screen, by which level 0 begins
later; levels a row of the screen, of which walls do not get more."""


@dataclasses.dataclass(frozen=True)
class View:
    """What is seen. height, width: of the picture, pixels. fov: its angle from left to right, degrees, at most 90; upwards it
    is the same, or what Doom's screen has, 74 degrees. far: squares that depth must reach.

    Raises:
      ValueError: Doom's screens are not so wide, fine, or deep.
    """

    height: int
    width: int
    fov: float
    far: float

    def __post_init__(self) -> None:
        if self.fov > 90:
            raise ValueError(f"Doom's screen is 90 degrees wide: fov must be at most that, not {self.fov:g}")
        self.screen()

    @property
    def extents(self) -> tuple[float, float]:
        """Tangents of half the angles of the picture, upwards and sideways."""
        sideways = math.tan(math.radians(self.fov) / 2)
        return min(sideways, _TOP), sideways

    def screen(self) -> tuple[int, int]:
        """The least size `(width, height)` of Doom's screen that has pixels and levels of depth enough."""
        up, sideways = self.extents
        for width, height in _SIZES:
            if width * up >= self.height and width * sideways >= self.width and reach(height) >= self.far:
                return width, height
        raise ValueError(
            f"Doom shows at most 640x480 pixels and {reach(480):.0f} squares: too few for {self.width}x{self.height} pixels of "
            f"{self.fov:g} degrees, {self.far:g} squares deep"
        )


def reach(height: int) -> float:
    """Squares after which the depth buffer of a screen of so many rows has no levels left."""
    return int(_LEVELS * height) * _UNIT / SQUARE


class Doom:
    """One game, in a process of its own, that plays maps of mazes."""

    def __init__(self, mazes: Sequence[np.ndarray], things: Sequence[Kind], view: View, seed: int):
        """Args:
        mazes: `[rows, cols]` bool each, at most 99. things: what can be placed in them, see `doom_wad.write`.
        seed: of the game's own randomness.
        """
        import vizdoom

        width, height = view.screen()
        self._width, self._height, self._view = width, height, view
        rows, columns = (2 * round(width * extent / 2) for extent in view.extents)
        self._cut = _middle(height, rows), _middle(width, columns)
        self._shrink = _averages(view.height, rows), _averages(view.width, columns)
        self.game: Any = vizdoom.DoomGame()
        game = self.game
        game.set_doom_config_path(os.devnull)  # else it is written to the working directory
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(True)
        for part in ("hud", "weapon", "crosshair", "decals", "particles", "messages", "screen_flashes"):
            getattr(game, f"set_render_{part}")(False)
        game.set_window_visible(False)
        game.set_console_enabled(False)
        game.set_sound_enabled(False)
        button, variable = vizdoom.Button, vizdoom.GameVariable
        game.set_available_buttons(
            [button.MOVE_FORWARD_BACKWARD_DELTA, button.MOVE_LEFT_RIGHT_DELTA, button.TURN_LEFT_RIGHT_DELTA]
        )
        game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y, variable.ANGLE])
        game.set_seed(seed)
        game.add_game_args("+sv_cheats 1 +movebob 0")  # for `puke`; and a head that nods would see things move
        self._state: Any = None
        with tempfile.TemporaryDirectory(prefix="podracer-doom-") as folder:
            wad = os.path.join(folder, "mazes.wad")
            doom_wad.write(wad, mazes, things)
            game.set_doom_scenario_path(wad)
            game.set_vizdoom_path(_launcher(os.path.join(os.path.dirname(vizdoom.__file__), "vizdoom"), folder))
            game.set_doom_map("map01")
            game.init()
        for name in glob.glob(f"/dev/shm/ViZDoom*{game.get_instance_id()}"):
            os.unlink(name)  # both sides have opened it: now nothing is left behind, however they end
        self.act(0.0, 0.0, 0.0, _SETTLE)

    def enter(self, maze: int) -> None:
        """Begins anew in one of the mazes, in which nothing is placed yet."""
        self.game.set_doom_map(f"map{maze + 1:02d}")
        self.game.new_episode()
        self.act(0.0, 0.0, 0.0, _SETTLE)

    def place(self, thing: int, position: np.ndarray | None) -> None:
        """Moves thing number `thing` at the next tic, to x and y `[2]`, or out of sight."""
        x, y = doom_wad.store() if position is None else _units(position)
        self.game.send_game_command(f"puke -{doom_wad.PLACE} {thing + 1} {x} {y} 0")

    def place_player(self, position: np.ndarray, heading: float) -> None:
        """Moves the player at the next tic, who then stands still."""
        x, y = _units(position)
        turn = round(-heading / (2 * math.pi) * 65536) % 65536
        self.game.send_game_command(f"puke {doom_wad.PLACE_PLAYER} {x} {y} {turn}")

    def act(self, forward: float, right: float, turn: float, tics: int) -> None:
        """Plays `tics`, each 1/35 s.

        Args:
          forward, right: what the player pushes for, in squares a tic; Doom's bodies take about 10 tics to get there.
          turn: to the right, radians a tic.
        """
        thrust = 32 * SQUARE * (1 - _FRICTION)  # of 32 units of thrust comes one map unit a tic
        self.game.make_action([thrust * forward, thrust * right, math.degrees(turn)], tics)
        self._state = self.game.get_state()

    def pose(self) -> np.ndarray:
        """x, y and heading in [-pi, pi), `[3]` float32."""
        x, y, degrees = self._state.game_variables
        return np.array([x / SQUARE, -y / SQUARE, math.radians((180.0 - degrees) % 360.0 - 180.0)], np.float32)

    def rgb(self) -> np.ndarray:
        """The picture, `[height, width, 3]` uint8: each pixel the mean of those of Doom's screen that it covers."""
        rows, columns = self._shrink
        picture = self._state.screen_buffer[self._cut[0], self._cut[1]].astype(np.float32)
        low = np.tensordot(rows, picture, (1, 0))
        return np.rint(np.matmul(columns, low)).astype(np.uint8)

    def depth(self) -> np.ndarray:
        """Squares along the axis of the view to what the middle of each pixel shows, `[height, width]` float32."""
        up, sideways = self._view.extents
        return self.depth_at(spread(self._view.height, up), spread(self._view.width, sideways))

    def depth_at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Squares along the axis of the view to what lies in the directions of tangents, `[H, W]` float32.

        Args:
          rows: `[H]`, down is positive. columns: `[W]`, right is positive.
        """
        middle = self._width / 2
        row = np.floor(self._height / 2 + middle * rows).astype(int)
        column = np.floor(middle + middle * columns).astype(int)
        levels = self._state.depth_buffer[row[:, None], column].astype(np.float32)
        return levels * (_UNIT / SQUARE) + (_UNIT / 2 + _OFFSET * self._width) / SQUARE

    def close(self) -> None:
        """Ends the game's process."""
        self.game.close()


def _launcher(program: str, folder: str) -> str:
    """The path of a script in `folder` that runs `program` there, for it makes a folder `_vizdoom` wherever it starts, which
    fails if two do so at once. Where the system can do that, it ends with the process that has started it."""
    setpriv = shutil.which("setpriv")
    mortal = f"{shlex.quote(setpriv)} --pdeathsig KILL -- " if setpriv else ""
    path = os.path.join(folder, "vizdoom")
    with open(path, "w") as file:
        file.write(f'#!/bin/sh\ncd {shlex.quote(folder)} && exec {mortal}{shlex.quote(program)} "$@"\n')
    os.chmod(path, 0o700)
    return path


def _units(position: np.ndarray) -> tuple[int, int]:
    x, y = position
    return round(float(x) * SQUARE), round(-float(y) * SQUARE)


def _middle(size: int, part: int) -> slice:
    return slice((size - part) // 2, (size + part) // 2)


def _averages(size: int, count: int) -> np.ndarray:
    """The matrix `[size, count]` float32 that takes means over `size` equal stretches of `count` pixels."""
    edges, pixels = np.linspace(0, count, size + 1)[:, None], np.arange(count)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (np.clip(overlap, 0, None) * (size / count)).astype(np.float32)
