"""A run of Weights & Biases beside the files of a run folder."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from podracer.config import ConfigError, one_line

_MISSING = "--wandb needs the package wandb: pip install 'podracer-rl[wandb]'"


def check_installed() -> None:
    """Raises ConfigError, one line, where the package is missing."""
    _package()


class WandbRun:
    """Sends rows to a run of Weights & Biases. What its variables say (WANDB_MODE, WANDB_RUN_GROUP, ...) holds."""

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]):
        """Begins the run, or goes on with the one whose id `run_dir` keeps.

        Args:
          run_dir: an existing folder; wandb's own files go to its `wandb`, the id to `wandb/run_id`.
          project: `PROJECT` or `ENTITY/PROJECT`.
          config: all settings of the job, in the grammar of `--set`.

        Raises:
          ConfigError: the package is missing, or it refuses, for example since nobody has logged in.
        """
        wandb = _package()
        entity, _, name = project.rpartition("/")
        (run_dir / "wandb").mkdir(exist_ok=True)
        id_file = run_dir / "wandb" / "run_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project=name,
                entity=entity or None,
                id=id_file.read_text().strip(),
                name=run_dir.name,
                resume="allow",
                dir=str(run_dir),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, ValueError) as error:
            raise ConfigError(
                f"--wandb {project}: {one_line(error)} (WANDB_MODE=offline keeps it here for `wandb sync`)"
            ) from error
        self._run.define_metric("num_agent_steps")
        self._run.define_metric("*", step_metric="num_agent_steps")

    @property
    def place(self) -> str:
        """Where the run is to be seen: an address, or offline a folder for `wandb sync`."""
        return str(self._run.settings.sync_dir if self._run.offline else self._run.url)

    def write(self, scalars: Mapping[str, float]) -> None:
        """Sends a row, which needs `num_updates`. wandb drops those that it has from before a resumed run was killed."""
        self._run.log(dict(scalars), step=int(scalars["num_updates"]))

    def show(self, summary: Mapping[str, Any], run_dir: Path) -> None:
        """Sends what a finished run shows: the content of summary.json, and the curve and the film of `run_dir`."""
        wandb = _package()
        self._run.summary.update({name: value for name, value in summary.items() if not isinstance(value, list)})
        for key, name, kind in (("curve", "curve.png", wandb.Image), ("evaluation", "evaluation.mp4", wandb.Video)):
            if (run_dir / name).exists():
                self._run.summary[key] = kind(str(run_dir / name))

    def close(self, failed: bool) -> None:
        """Ends the run, once all of it is sent."""
        self._run.finish(exit_code=int(failed))


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    if not hasattr(wandb, "init"):  # a folder `wandb`, which wandb itself leaves where it works, is a package too, of nothing
        raise ConfigError(_MISSING)
    return wandb
