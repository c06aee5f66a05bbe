"""What a run folder shows to people: the learning curve and a video."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from podracer.metrics.log import read_rows

_SMALLEST_SIDE = 240
_BLOCK = 16  # H.264 encodes blocks of 16 pixels


def write_curve(run_dir: Path, title: str) -> Path | None:
    """Draws `curve.png`, episode return against agent steps, from metrics.jsonl.

    With several seeds it shows the median and the band between the quartiles.

    Returns:
      The file, or None where no episode has ended.
    """
    steps, returns = curve(run_dir)
    if not len(steps):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    median = np.nanmedian(returns, axis=1)
    axes.plot(steps, median, marker="." if len(steps) < 30 else "", label="median")
    if returns.shape[1] > 1:
        low, high = np.nanquantile(returns, [0.25, 0.75], axis=1)
        axes.fill_between(steps, low, high, alpha=0.25, label=f"quartiles of {returns.shape[1]} seeds")
        axes.legend()
    axes.set(title=title, xlabel="agent steps of one seed", ylabel="episode return (training)")
    axes.grid(alpha=0.3)
    path = run_dir / "curve.png"
    figure.savefig(path, dpi=120)
    return path


def curve(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Agent steps of one seed `[R]` and returns `[R, num_seeds]` of the rows in which an episode of any seed ended."""
    steps, returns = [], []
    for row in read_rows(run_dir):
        value = row.get("episode_return")
        seeds = value if isinstance(value, list) else [value]
        if any(item is not None for item in seeds):
            steps.append(row["num_agent_steps"] / len(seeds))
            returns.append([np.nan if item is None else item for item in seeds])
    return np.asarray(steps), np.asarray(returns, np.float64)


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures `[H, W, 3]` uint8 side by side; a small one is enlarged by a whole number, and black fills what is left."""
    tallest = max(len(left), len(right))
    parts = []
    for picture in (left, right):
        scale = max(1, tallest // len(picture))
        large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        parts.append(np.pad(large, ((0, tallest - len(large)), (0, 0), (0, 0))))
    return np.concatenate(parts, axis=1)


class NoFfmpeg(Exception):
    """There is nothing to make films with. Its text says how to get it."""


def ffmpeg() -> str:
    """The program that makes films: the one that imageio brings, or the machine's own. Raises NoFfmpeg."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise NoFfmpeg("no ffmpeg, so no films: pip install 'imageio[ffmpeg]'") from error


def write_video(path: Path, frames: np.ndarray) -> None:
    """Writes `frames` `[F, H, W, 3]` uint8 as H.264 mp4, enlarged where small; about ten seconds, at 4 to 30 a second.

    Raises:
      OSError: the path cannot be written. NoFfmpeg.
    """
    import imageio.v2 as imageio

    ffmpeg()
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    scale = max(1, -(-_SMALLEST_SIDE // min(height, width)))
    rate = float(np.clip(len(frames) / 10, 4, 30))
    pad = ((0, -height * scale % _BLOCK), (0, -width * scale % _BLOCK), (0, 0))
    options: dict[str, Any] = {"fps": rate, "macro_block_size": _BLOCK, "ffmpeg_log_level": "error"}
    # Python code between fork and exec is not safe beside the threads of JAX and gRPC: ffmpeg's process died of it.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    writer: Any = imageio.get_writer(str(path), format="FFMPEG", **options)
    with writer:
        for frame in frames:
            large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
            writer.append_data(np.pad(large, pad, mode="edge"))  # the first one starts ffmpeg
