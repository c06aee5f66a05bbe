"""Checkpoints of a run through Orbax: the whole state, the counters, and what wrote them.

A checkpoint is a flat table of named leaves, so that what is on the disk can be compared with what a run expects before any
of it is used. Leaves carry a CRC: a damaged file is refused, never trained on. Orbax writes to a temporary folder and
renames it, so a process killed in a save loses nothing but that save.
"""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from podracer import hosts, rng
from podracer.config import ConfigError
from podracer.hosts import Hosts
from podracer.types import Params

_FORMAT = 1


class Damaged(ConfigError):
    """A checkpoint that cannot be read back as it was written. Its text is one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that was read back.

    step: its number (updates). state: the pytree, leaves as numpy arrays and typed PRNG keys. counters: host integers and
    seconds, of any size.
    """

    step: int
    state: Any
    counters: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, newest two kept. Saves run in the background; `close` waits for the last one.

    Of several hosts all call `save` and `restore`; the first one writes, and all read, so the folder is one that all see.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], keep: int = 2, host: Hosts | None = None):
        """Opens `folder`, which need not exist.

        Args:
          folder: where numbered checkpoints lie.
          config: settings that fix what the state means; a checkpoint that was saved under others is refused.
          keep: checkpoints to keep.
          host: this process among others.
        """
        self.folder, self._config, self._host = Path(folder).absolute(), dict(config), host or Hosts()
        self.folder.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=self._host.index,
            active_processes={self._host.index},
            barrier_sync_key_prefix=f"host{self._host.index}",
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,  # Orbax cannot where it has hosts to think of
            cleanup_tmp_directories=self._host.first,
            enable_async_checkpointing=True,
            multiprocessing_options=alone if self._host.num > 1 else ocp.options.MultiprocessingOptions(),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Numbers of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, params: list[Params], counters: Mapping[str, Any], *, wait: bool = False) -> None:
        """Saves in the background; returns once the state is copied, so the caller may donate it.

        Args:
          step: number of updates; a step that is there already is left as it is.
          state: pytree of arrays and typed PRNG keys, what a resume needs.
          params: actor parameters of each seed, what an evaluation needs.
          counters: JSON values; integers may have any size.
          wait: return only when it is on the disk.

        Raises:
          Superseded: a younger generation of this run's processes has begun.
        """
        # Orbax writes behind our back while the runtime reuses the donated memory: hand it copies.
        tables = {"state": _host_table(state), "params": _host_table(params)}
        if self._host.first and step not in self.steps():
            self._refuse_ghosts()
            manifest = {item: _manifest(table) for item, table in tables.items()}
            meta = {"format": _FORMAT, "config": self._config, "counters": dict(counters), "manifest": manifest}
            items = {item: ocp.args.StandardSave(_without_empty(table)) for item, table in tables.items()}
            self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Blocks until the last save is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and releases the threads."""
        self._manager.close()

    def restore(self, target: Any) -> Saved | None:
        """The newest checkpoint, or None where there is none.

        Args:
          target: a state of the run that wants to continue, for its structure, shapes and dtypes.

        Raises:
          Damaged: it cannot be read; the line names an older one that is intact, if any.
          ConfigError: it was written by another run.
        """
        steps = self.steps()
        newest = steps[-1] if steps else -1
        if newest != self._host.agree(newest)[0]:
            raise ConfigError(f"{self.folder}: hosts find different checkpoints there: --run-dir must be a folder that all see")
        if not steps:
            return None
        try:
            return self._read(steps[-1], "state", target)
        except Damaged as error:
            raise self._refusal(steps, error, "state", target) from error

    def restore_params(self, target: list[Params]) -> Saved:
        """Actor parameters of each seed from the newest checkpoint. Raises as `restore`, and ConfigError if there is none."""
        steps = self.steps()
        if not steps:
            raise ConfigError(f"{self.folder.parent} holds no checkpoint yet")
        try:
            return self._read(steps[-1], "params", target)
        except Damaged as error:
            raise self._refusal(steps, error, "params", target) from error

    def _refuse_ghosts(self) -> None:
        """Nothing may be saved any more once another generation has gone on from an older checkpoint."""
        newest = newest_generation(self.folder.parent)
        if 0 < self._host.generation < newest:
            raise Superseded(
                f"generation {self._host.generation} of this run was replaced by generation {newest}: nothing saved"
            )

    def _refusal(self, steps: list[int], error: Damaged, item: str, target: Any) -> Damaged:
        """The line for a damaged newest checkpoint. Nothing falls back silently: losing updates is the user's choice."""
        newest = self.folder / str(steps[-1])
        for step in reversed(steps[:-1]):
            try:
                self._read(step, item, target)
            except ConfigError:
                continue
            return Damaged(f"{error}; update {step} is intact: delete {newest} to go on from it")
        return Damaged(f"{error}; no older one is intact: start again with another --run-dir")

    def _read(self, step: int, item: str, target: Any) -> Saved:
        where = f"checkpoint {self.folder / str(step)}"
        meta = self._restore_item(step, where, meta=ocp.args.JsonRestore())
        if not isinstance(meta, dict) or meta.get("format") != _FORMAT or item not in meta.get("manifest", {}):
            raise ConfigError(f"{where} was not written by this version of podracer")
        _check_config(where, meta["config"], self._config)
        manifest = meta["manifest"][item]
        _check_shapes(where, manifest, _manifest(_shape_table(target)))
        wanted = {name: _empty(entry) for name, entry in manifest.items() if math.prod(entry["shape"])}
        table = self._restore_item(step, where, **{item: ocp.args.StandardRestore(wanted)})
        table |= {name: _empty(entry) for name, entry in manifest.items() if name not in table}
        for name, entry in manifest.items():
            if _crc(np.asarray(table[name])) != entry["crc32"]:
                raise Damaged(f"{where} is damaged ({name} fails its checksum)")
        return Saved(step=step, state=_rebuild(target, table), counters=meta["counters"])

    def _restore_item(self, step: int, where: str, **item: Any) -> Any:
        (name,) = item
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**item))[name]
        except Exception as error:  # Orbax and TensorStore raise what their readers raise
            reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
            raise Damaged(f"{where} is damaged ({reason})") from error
        if restored is None:
            raise Damaged(f"{where} is damaged ({name} is missing)")
        return restored


class Superseded(RuntimeError):
    """This process belongs to a group that another one has replaced."""


GENERATION_FILE = "generation.json"


def newest_generation(run_dir: Path) -> int:
    """The newest generation of processes that a launcher has started for a run, 0 where there was none."""
    path = run_dir / GENERATION_FILE
    return int(json.loads(path.read_text())["generation"]) if path.exists() else 0


def tree_sha256(tree: Any) -> str:
    """SHA-256 over the leaves in order of their paths: path, dtype, shape, bytes. Equal iff trees are equal bit for bit."""
    digest = hashlib.sha256()
    for name, leaf in sorted(_host_table(tree).items()):
        digest.update(f"{name}|{leaf.dtype}|{leaf.shape}|".encode())
        digest.update(_bytes(leaf))
    return digest.hexdigest()


def _leaves(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _host_table(tree: Any) -> dict[str, np.ndarray]:
    """Copies of all leaves on the host, PRNG keys as their data."""
    return {
        name: np.array(hosts.whole(jax.random.key_data(leaf) if rng.is_key(leaf) else leaf))
        for name, leaf in _leaves(tree).items()
    }


def _shape_table(tree: Any) -> dict[str, Any]:
    return {
        name: jax.eval_shape(jax.random.key_data, leaf) if rng.is_key(leaf) else leaf for name, leaf in _leaves(tree).items()
    }


def _manifest(table: Mapping[str, Any]) -> dict[str, Any]:
    entries = {}
    for name, leaf in table.items():
        entry = {"shape": list(np.shape(leaf)), "dtype": str(jnp.dtype(leaf.dtype))}
        entries[name] = entry | ({"crc32": _crc(leaf)} if isinstance(leaf, np.ndarray) else {})
    return entries


def _without_empty(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Orbax refuses arrays without elements; the manifest is enough to make them again."""
    return {name: leaf for name, leaf in table.items() if leaf.size}


def _empty(entry: Mapping[str, Any]) -> np.ndarray:
    return np.zeros(entry["shape"], jnp.dtype(entry["dtype"]))


def _bytes(leaf: np.ndarray) -> Any:
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data


def _crc(leaf: np.ndarray) -> int:
    return zlib.crc32(_bytes(leaf))


def _check_config(where: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in sorted(saved.keys() | wanted.keys()):
        if saved.get(key) != wanted.get(key):
            raise ConfigError(f"{where} belongs to another run: {key} is {saved.get(key)} there and {wanted.get(key)} here")


def _check_shapes(where: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved or name not in wanted:
            side = "has no" if name not in saved else "has an unknown"
            raise ConfigError(f"{where} does not fit this agent and environment: it {side} {name}")
        ours, theirs = wanted[name], saved[name]
        if (ours["shape"], ours["dtype"]) != (theirs["shape"], theirs["dtype"]):
            raise ConfigError(
                f"{where} does not fit this agent and environment: {name} is {theirs['dtype']}{theirs['shape']} there "
                f"and {ours['dtype']}{ours['shape']} here"
            )


def _rebuild(target: Any, table: Mapping[str, Any]) -> Any:
    """`table` in the structure of `target`."""

    def leaf(path: Any, like: Any) -> Any:
        value = table[jax.tree_util.keystr(path, simple=True, separator="/")]
        if rng.is_key(like):
            return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like))
        return value

    return jax.tree_util.tree_map_with_path(leaf, target)
