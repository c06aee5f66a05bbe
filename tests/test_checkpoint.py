"""Checkpoints give back what was saved, bit for bit, or refuse in one line."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.checkpoint import Checkpoints, Damaged, tree_sha256
from podracer.config import ConfigError

pytestmark = pytest.mark.quick

PARAMS = [np.ones(3, np.float32)]


class Opt(NamedTuple):
    mu: Any
    count: Any


def _state(fill: float = 1.0) -> Any:
    return {
        "params/a.b": {"w": jnp.full((3, 2), fill), "half": jnp.full((3,), fill, jnp.bfloat16)},
        "opt": Opt(mu=(jnp.arange(4), ()), count=jnp.int32(7)),
        "key": jax.random.split(jax.random.key(3), 2),
        "mask": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "host": np.array(2**40),
    }


def _damage(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and "d" in path.relative_to(folder).parts[:-1] and "state" in path.parts:
            data = bytearray(path.read_bytes())
            data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
            path.write_bytes(bytes(data))


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state, counters = _state(), {"num_agent_steps": 2**70, "seconds": 1.5}
    checkpoints = Checkpoints(tmp_path, {"a": 1})
    checkpoints.save(5, state, [state["params/a.b"]], counters, wait=True)
    checkpoints.close()
    saved = Checkpoints(tmp_path, {"a": 1}).restore(_state(0.0))
    assert saved is not None
    assert (saved.step, saved.counters) == (5, counters)
    assert jax.tree.structure(saved.state) == jax.tree.structure(state)
    assert tree_sha256(saved.state) == tree_sha256(state) != tree_sha256(_state(0.0))
    assert jnp.issubdtype(saved.state["key"].dtype, jax.dtypes.prng_key)
    params = Checkpoints(tmp_path, {"a": 1}).restore_params([jax.eval_shape(lambda: _state()["params/a.b"])])
    assert tree_sha256(params.state) == tree_sha256([state["params/a.b"]])


def test_a_save_holds_what_it_was_given_although_the_memory_is_reused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = jnp.zeros((1000, 1000))
    checkpoints.save(1, state, PARAMS, {})
    for _ in range(5):
        state = update(state)
    checkpoints.wait()
    saved = checkpoints.restore(state)
    assert saved is not None
    assert not np.any(saved.state)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    for step in (1, 2, 3):
        checkpoints.save(step, _state(float(step)), PARAMS, {}, wait=True)
    assert checkpoints.steps() == [2, 3]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, {}).restore(_state()) is None
    with pytest.raises(ConfigError, match="no checkpoint"):
        Checkpoints(tmp_path, {}).restore_params([])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore, after a read that failed
def test_damage_is_refused_and_names_the_older_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    for step in (1, 2):
        checkpoints.save(step, _state(float(step)), PARAMS, {}, wait=True)
    _damage(tmp_path / "2")
    with pytest.raises(Damaged, match=r"2 is damaged .*update 1 is intact: delete .*2 to go on") as caught:
        Checkpoints(tmp_path, {}).restore(_state())
    assert "\n" not in str(caught.value)
    _damage(tmp_path / "1")
    with pytest.raises(Damaged, match="no older one is intact"):
        Checkpoints(tmp_path, {}).restore(_state())


def test_a_flipped_bit_fails_the_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, _state(), PARAMS, {}, wait=True)
    real = checkpoints._restore_item

    def flip(step: int, where: str, **item: Any) -> Any:
        table = real(step, where, **item)
        if "state" in item:
            table["mask"] = ~table["mask"]
        return table

    monkeypatch.setattr(checkpoints, "_restore_item", flip)
    with pytest.raises(Damaged, match="mask fails its checksum"):
        checkpoints.restore(_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "more": jnp.zeros(1)}, "has no more"),
        (lambda s: {k: v for k, v in s.items() if k != "mask"}, "has an unknown mask"),
        (lambda s: {**s, "mask": jnp.zeros(2)}, r"mask is bool\[2\] there and float32\[2\] here"),
    ],
)
def test_another_structure_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, _state(), PARAMS, {}, wait=True)
    with pytest.raises(ConfigError, match=message):
        checkpoints.restore(change(_state()))


def test_another_run_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"agent.lr": 1.0})
    checkpoints.save(1, _state(), PARAMS, {}, wait=True)
    with pytest.raises(ConfigError, match=r"another run: agent.lr is 1.0 there and 2.0 here"):
        Checkpoints(tmp_path, {"agent.lr": 2.0}).restore(_state())


def test_the_hash_sees_values_shapes_dtypes_and_names() -> None:
    trees = [
        {"a": jnp.zeros(4)},
        {"a": jnp.zeros((2, 2))},
        {"a": jnp.zeros(4, jnp.int32)},
        {"b": jnp.zeros(4)},
        {"a": jnp.full(4, -0.0)},
    ]
    assert len({tree_sha256(tree) for tree in trees}) == len(trees)
    assert tree_sha256({"a": 1 * jnp.ones(2), "b": jnp.ones(1)}) == tree_sha256({"b": np.ones(1, "f4"), "a": np.ones(2, "f4")})
