"""Speed of `nav/ray_maze`, frames/s against the number of environments and the size of the picture, and how much of depth a
linear regression reads from the pixels.

    python benchmarks/nav_render.py [speed depth] [--num-envs 32 128 512] [--sizes 4x16 16x32 42x42 84x84] [--maze small]

A frame is one step of one environment with random actions: physics, picture, all labels, rewards and resets, in one program.
`speed`: sizes and batches take turns within each round; a JSON line for each of them, a table, and `nav_render.png` in `--out`.
`depth`: the regression, a JSON line a size.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from podracer import registry, rng

_LENGTH = 16
"""Steps that one call runs."""
_PICTURES = 4096
"""For the regression; half to fit, half to test."""
_CONTRASTS = 300
"""Random features, of which the regression takes as many of the pixels where a picture has more."""


class Case:
    """Environments in one program."""

    def __init__(self, num_envs: int, size: tuple[int, int], maze: str):
        self.num_envs, self.size = num_envs, size
        found = registry.env("nav/ray_maze")
        config = found.suite.config(height=size[0], width=size[1], maze=maze)
        self._env = found.make(config).vectorize(num_envs, 0)
        self._keys = jax.random.split(jax.random.key(0), num_envs)
        self._run = jax.jit(self._steps, donate_argnums=0)
        state, _ = jax.jit(self._env.reset)(self._keys)
        self._carry: Any = (state, jnp.int32(0))
        self.rates: list[float] = []

    def _steps(self, carry: Any) -> tuple[Any, Any]:
        def step(carry: Any, _: Any) -> tuple[Any, Any]:
            state, t = carry
            keys = rng.at(self._keys, t)
            # Held for 8 steps, so that they get about.
            held = rng.at(self._keys, t // 8)
            action = jax.vmap(lambda key: jax.random.randint(key, (), 0, self._env.spec.num_actions))(held)
            state, timestep = self._env.step(state, action, keys)
            return (state, t + 1), (timestep.observation["rgb"], timestep.aux)

        return jax.lax.scan(step, carry, length=_LENGTH)

    def call(self) -> tuple[Any, Any]:
        """Pictures and labels of `_LENGTH` steps, `[T, B, ...]`."""
        self._carry, seen = self._run(self._carry)
        return jax.block_until_ready(seen)

    def measure(self, seconds: float) -> None:
        """Adds a rate, frames/s over about that many seconds."""
        started, num_frames = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds:
            self.call()
            num_frames += _LENGTH * self.num_envs
        self.rates.append(num_frames / elapsed)


def main() -> None:
    """Measures and prints."""
    parser = common.parser(__doc__, ("speed", "depth"), "nav_render")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--sizes", nargs="+", default=["4x16", "16x32", "42x42", "84x84"])
    parser.add_argument("--maze", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = common.parse(parser, ("speed", "depth"))
    sizes = [(int(height), int(width)) for height, width in (size.split("x") for size in options.sizes)]
    if "speed" in options.cases:
        speed(options, sizes)
    if "depth" in options.cases:
        for size in sizes:
            common.emit("nav_render depth", case=_text(size), **readable(size, options.maze))


def speed(options: argparse.Namespace, sizes: list[tuple[int, int]]) -> None:
    """Measures, prints and draws."""
    cases = [Case(num_envs, size, options.maze) for size in sizes for num_envs in options.num_envs]
    for case in cases:
        case.call()  # compiles
    for _ in range(options.rounds):
        for case in cases:
            case.measure(options.seconds)
    rates = {(case.size, case.num_envs): statistics.median(case.rates) for case in cases}
    for case in cases:
        facts = {
            "num_envs": case.num_envs,
            "unit": "frames/s",
            "per_second": rates[case.size, case.num_envs],
            "all": case.rates,
        }
        common.emit("nav_render", case=f"ray_maze, {options.maze}, {_text(case.size)}", **facts)
    rows = [[_text(size), *(f"{rates[size, batch]:,.0f}" for batch in options.num_envs)] for size in sizes]
    print(common.table(["picture", *(f"{batch} environments" for batch in options.num_envs)], rows))
    _draw(rates, sizes, options.num_envs, f"nav/ray_maze, maze={options.maze}", options.out / "nav_render.png")


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def readable(size: tuple[int, int], maze: str) -> dict[str, float]:
    """Share of the variance of the middle of the label `depth` that is told by pixels not seen while fitting.

    Returns:
      `brightness`: from the mean brightness of the same part of the picture, alone; `pixels`: from all pixels, by ridge
      regression (from random sums of them where there are many). Depth is the logarithm of the label.
    """
    case, pictures, depths = Case(256, size, maze), [], []
    while sum(map(len, pictures)) < _PICTURES:
        for _ in range(4):  # pictures of one environment that are far apart
            rgb, aux = case.call()
        pictures.append(np.asarray(rgb[-1], np.float64) / 255)
        depths.append(np.asarray(aux["depth"][-1], np.float64))
    picture, depth = np.concatenate(pictures), np.log(np.concatenate(depths)[:, 1:3, 7:9].mean(axis=(1, 2)))
    height, width = size
    rows = slice(height * 3 // 8, max(height * 5 // 8, height * 3 // 8 + 1))
    columns = slice(width * 7 // 16, max(width * 9 // 16, width * 7 // 16 + 1))
    brightness = picture[:, rows, columns].mean(axis=(1, 2, 3))[:, None]
    flat = picture.reshape(len(picture), -1)
    if flat.shape[1] > _CONTRASTS:
        flat = flat @ np.random.default_rng(0).normal(0, flat.shape[1] ** -0.5, (flat.shape[1], _CONTRASTS))
    return {"brightness": _explained(brightness, depth), "pixels": _explained(flat, depth)}


def _explained(features: np.ndarray, target: np.ndarray) -> float:
    half = len(features) // 2
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    train, test = features[:half], features[half:]
    weights = np.linalg.solve(train.T @ train + 1.0 * np.eye(train.shape[1]), train.T @ target[:half])
    return 1 - float(np.mean((test @ weights - target[half:]) ** 2) / np.var(target[half:]))


def _draw(rates: dict[Any, float], sizes: list[tuple[int, int]], batches: list[int], title: str, path: Path) -> None:
    figure, ((axes,),) = common.figure(width=6)
    for size in sizes:
        axes.plot(batches, [rates[size, batch] for batch in batches], marker="o", label=_text(size))
    axes.set(xscale="log", yscale="log", xlabel="environments", ylabel="frames/s", title=title)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.legend(title="picture")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
