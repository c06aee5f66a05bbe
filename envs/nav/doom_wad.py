"""Mazes as maps of Doom: a WAD file whose maps are written out in UDMF, the text format, with scripts that move things about.

A map is one sector inside one-sided walls, and a closed room beside it, the store, for things that nobody shall see. All that
an episode places (the player, fruit, the goal) lies in the file once and is moved by two scripts, which the console command
`puke` runs: so a maze is written once, whatever happens in it. Imports no jax.

Sources: the UDMF 1.1 specification, ZDoom's extension of it, and the ACS virtual machine of ZDoom 2.8.
"""

import dataclasses
import struct
from collections.abc import Iterable, Sequence

import numpy as np

SQUARE = 32
"""Side of a square of the maze, in map units, and its height. Small, for Doom's depth buffer ends after so many units: so the
player is smaller than Doom's, too."""
_RADIUS, _EYES = 8, 16
PLACE, PLACE_PLAYER = 1, 2
"""Scripts. `puke -1 id x y z` moves a thing, in map units; with the minus, even while it runs for another thing. `puke 2 x y
angle` moves the player, who then stands still, with the angle in 1/65536 of a turn, counter-clockwise from the x axis."""
PLAYER_START = 1
_PLAYER = "NavPlayer"

_STORE = (-4096, 4096)
_TEXTURES = ("STARTAN2", "BRICK6", "METAL1", "GRAYVINE", "MARBLE1", "TEKWALL4", "WOOD1", "STONE2")
_FLOOR, _ROOF = "FLOOR4_8", "CEIL3_5"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of thing that is seen and touches nothing.

    name: of its class. number: in the map's text, above those of Doom's own things. sprite: four letters of a sprite that the
    game brings. scale: of the sprite.
    """

    name: str
    number: int
    sprite: str
    scale: float = 1.0


def write(path: str, mazes: Sequence[np.ndarray], things: Sequence[Kind]) -> None:
    """Writes a WAD with the maps MAP01, MAP02, ...

    Args:
      path: of the file.
      mazes: `[rows, cols]` bool each, True where a wall is, all around too. Square (row, column) covers x from `column` to
        `column + 1` and y from `-row - 1` to `-row` in units of SQUARE. At most 99.
      things: thing `i` gets the id `i + 1` and begins in the store.
    """
    lumps = [("MAPINFO", f'gameinfo {{ playerclasses = "{_PLAYER}" }}\n'.encode()), ("DECORATE", _decorate(things))]
    for number, walls in enumerate(mazes, start=1):
        lumps += [
            (f"MAP{number:02d}", b""),
            ("TEXTMAP", textmap(walls, things)),
            ("BEHAVIOR", behavior()),
            ("ENDMAP", b""),
        ]
    with open(path, "wb") as file:
        file.write(wad(lumps))


def wad(lumps: Iterable[tuple[str, bytes]]) -> bytes:
    """A patch WAD of named lumps: a header, their contents, and a directory of offset, size and name."""
    contents, directory = b"", b""
    for name, lump in lumps:
        directory += struct.pack("<ii8s", 12 + len(contents), len(lump), name.encode())
        contents += lump
    return struct.pack("<4sii", b"PWAD", len(directory) // 16, 12 + len(contents)) + contents + directory


def textmap(walls: np.ndarray, things: Sequence[Kind]) -> bytes:
    """The TEXTMAP of one maze, as `write` has it."""
    if not (walls[[0, -1]].all() and walls[:, [0, -1]].all()):
        raise ValueError("a maze needs walls all around")
    text = _Text()
    for row, column in np.argwhere(~walls).tolist():
        left, right, top, bottom = (SQUARE * edge for edge in (column, column + 1, -row, -row - 1))
        # A wall is seen from its right side, looking from its first corner to its second.
        for (drow, dcolumn), first, second in (
            ((-1, 0), (left, top), (right, top)),
            ((1, 0), (right, bottom), (left, bottom)),
            ((0, -1), (left, bottom), (left, top)),
            ((0, 1), (right, top), (right, bottom)),
        ):
            if walls[row + drow, column + dcolumn]:
                text.wall(first, second, _texture(row + drow, column + dcolumn), sector=0)
    x, y = _STORE
    corners = ((x, y), (x, y + SQUARE), (x + SQUARE, y + SQUARE), (x + SQUARE, y))
    for corner in range(4):
        text.wall(corners[corner], corners[(corner + 1) % 4], _TEXTURES[0], sector=1)
    row, column = np.argwhere(~walls)[0].tolist()
    text.thing(PLAYER_START, 0, (column * SQUARE + SQUARE // 2, -row * SQUARE - SQUARE // 2))
    for i, kind in enumerate(things):
        text.thing(kind.number, i + 1, store())
    return text.encode()


def store() -> tuple[int, int]:
    """Where things lie that nobody shall see, in map units."""
    return _STORE[0] + SQUARE // 2, _STORE[1] + SQUARE // 2


class _Text:
    """Collects the blocks of a TEXTMAP."""

    def __init__(self) -> None:
        self._vertices: dict[tuple[int, int], int] = {}
        self._lines: list[str] = []
        self._sides: list[str] = []
        self._things: list[str] = []

    def wall(self, first: tuple[int, int], second: tuple[int, int], texture: str, sector: int) -> None:
        ends = [self._vertices.setdefault(corner, len(self._vertices)) for corner in (first, second)]
        self._lines.append(f"linedef {{ v1 = {ends[0]}; v2 = {ends[1]}; sidefront = {len(self._sides)}; blocking = true; }}")
        self._sides.append(f'sidedef {{ sector = {sector}; texturemiddle = "{texture}"; }}')

    def thing(self, number: int, thing_id: int, place: tuple[int, int]) -> None:
        skills = " ".join(f"skill{skill} = true;" for skill in range(1, 6))
        x, y = (float(coordinate) for coordinate in place)
        self._things.append(f"thing {{ type = {number}; id = {thing_id}; x = {x}; y = {y}; single = true; {skills} }}")

    def encode(self) -> bytes:
        vertices = [f"vertex {{ x = {float(x)}; y = {float(y)}; }}" for x, y in self._vertices]
        sector = (
            f'sector {{ heightfloor = 0; heightceiling = {SQUARE}; lightlevel = 200; texturefloor = "{_FLOOR}"; '
            f'textureceiling = "{_ROOF}"; }}'
        )
        blocks = [*vertices, *self._lines, *self._sides, sector, sector, *self._things]
        return ('namespace = "zdoom";\n' + "\n".join(blocks) + "\n").encode()


def _texture(row: int, column: int) -> str:
    """Blocks of four by four squares look alike, and eight looks take turns."""
    return _TEXTURES[(row // 4 * 3 + column // 4) % len(_TEXTURES)]


def _decorate(things: Sequence[Kind]) -> bytes:
    player = (
        f"actor {_PLAYER} : DoomPlayer\n{{\n  Radius {_RADIUS}\n  Height {_EYES + 8}\n  Player.ViewHeight {_EYES}\n"
        f'  Player.DisplayName "{_PLAYER}"\n}}\n'
    )
    classes = (
        f"actor {kind.name} {kind.number}\n{{\n  Radius 4\n  Height 8\n  Scale {kind.scale}\n  +NOINTERACTION\n"
        f"  States\n  {{\n  Spawn:\n    {kind.sprite} A -1 Bright\n    stop\n  }}\n}}\n"
        for kind in dict.fromkeys(things)
    )
    return (player + "".join(classes)).encode()


# Words of the ACS machine, and the line special that stops a thing.
_TERMINATE, _PUSH, _LSPEC1, _MULTIPLY, _PUSH_ARGUMENT, _DROP = 1, 3, 4, 16, 28, 54
_SET_ANGLE, _SET_POSITION = 276, 283
_THING_STOP = 19
_FIXED = 1 << 16


def behavior() -> bytes:
    """The compiled scripts, in the format of 1995: code, then a directory of number, address and number of arguments."""
    unit = [_PUSH, _FIXED, _MULTIPLY]
    who_runs_it = [_PUSH, 0]
    no_fog = [_PUSH, 0]
    place = [_PUSH_ARGUMENT, 0]
    for argument in (1, 2, 3):
        place += [_PUSH_ARGUMENT, argument, *unit]
    place += [*no_fog, _SET_POSITION, _DROP, _TERMINATE]
    player = [*who_runs_it, _PUSH_ARGUMENT, 0, *unit, _PUSH_ARGUMENT, 1, *unit, _PUSH, 0, *no_fog, _SET_POSITION, _DROP]
    player += [*who_runs_it, _PUSH_ARGUMENT, 2, _SET_ANGLE, *who_runs_it, _LSPEC1, _THING_STOP, _TERMINATE]
    code, entries = b"", b""
    for number, num_arguments, words in ((PLACE, 4, place), (PLACE_PLAYER, 3, player)):
        entries += struct.pack("<iii", number, 8 + len(code), num_arguments)
        code += struct.pack(f"<{len(words)}i", *words)
    no_strings = struct.pack("<i", 0)
    return struct.pack("<4si", b"ACS\0", 8 + len(code)) + code + struct.pack("<i", len(entries) // 12) + entries + no_strings
