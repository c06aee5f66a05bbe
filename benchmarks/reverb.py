"""Speed of our Reverb client against the official one: items/s inserted into and sampled from the same server.

    podracer reverb install                     # the official form: it has the official client
    python benchmarks/reverb.py [atari vector stacked] [--rounds 5] [--seconds 1.0]

Prints one JSON line a case. The two clients, each in its own process, take turns within each round; figures are medians over
rounds of items/s. Inserting ends when all items are confirmed. The official client inserts in two forms: an append for
each of the unroll's steps, and one append of the whole unroll; it samples with its C++ sampler bare and through its
TensorFlow dataset. `ratio_insert` and `ratio_sample` are ours over the faster of the two.

atari: frames `[20, 84, 84, 4] uint8` and four small columns. vector: five columns of `[20, 8] float32` and smaller. stacked:
the latter of 32 environments in one item.
"""

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

from podracer.stores.reverb import Client, ReverbServer, Table, install

OFFICIAL = """
import json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, reverb, tensorflow as tf
address, folder = sys.argv[1:]
client = reverb.Client(address)

def steps(case, count):
    data = dict(np.load(f"{folder}/{case}.npz"))
    rows = [{k: v[t] for k, v in data.items()} for t in range(20)]
    with client.trajectory_writer(num_keep_alive_refs=20) as writer:
        for _ in range(count):
            for row in rows:
                writer.append(row)
            writer.create_item(case, 1.0, {k: writer.history[k][-20:] for k in data})
            writer.flush(64)
        writer.flush()

def whole(case, count):
    data = dict(np.load(f"{folder}/{case}.npz"))
    with client.trajectory_writer(num_keep_alive_refs=1) as writer:
        for _ in range(count):
            writer.append(data)
            writer.create_item(case, 1.0, {k: writer.history[k][-1] for k in data})
            writer.flush(64)
        writer.flush()

def bare(case, count):
    sampler = client._client.NewSampler(case, count, 64)
    for _ in range(count):
        sampler.GetNextTrajectory()

def dataset(case, count):
    data = dict(np.load(f"{folder}/{case}.npz"))
    made = reverb.TrajectoryDataset(address, case, {k: tf.as_dtype(v.dtype) for k, v in data.items()},
        {k: tf.TensorShape(v.shape) for k, v in data.items()}, max_in_flight_samples_per_worker=64, num_workers_per_iterator=1)
    for _ in made.take(count).as_numpy_iterator():
        pass

print("ready", flush=True)
for line in sys.stdin:
    name, case, count = line.split()
    start = time.perf_counter()
    globals()[name](case, int(count))
    print(json.dumps(time.perf_counter() - start), flush=True)
"""
FORMS = ("steps", "whole", "bare", "dataset")


def data_of(case: str) -> dict[str, np.ndarray]:
    """An unroll of 20 steps, leaves `[20, ...]`."""
    rng = np.random.default_rng(0)
    small = {
        "action": np.zeros(20, np.int32),
        "reward": np.zeros(20, np.float32),
        "discount": np.ones(20, np.float32),
        "logits": rng.normal(size=(20, 6)).astype(np.float32),
    }
    if case == "atari":
        frames = np.full((20, 84, 84, 4), 87, np.uint8)
        for t, x, y in zip(range(20), rng.integers(0, 76, 20), rng.integers(0, 76, 20), strict=True):
            frames[t, x : x + 8, y : y + 8] = rng.integers(0, 256, (8, 8, 4))
        return {"frames": frames, **small}
    vector = {"observation": rng.normal(size=(20, 8)).astype(np.float32), **small}
    if case == "vector":
        return vector
    return {
        name: rng.permutation(np.stack([leaf] * 32, axis=1).ravel()).reshape(20, 32, *leaf.shape[1:])
        for name, leaf in vector.items()
    }


def insert_ours(client: Client, case: str, data: Any, count: int) -> float:
    """Seconds for so many items, confirmations included."""
    start = time.perf_counter()
    with client.writer(max_in_flight=64) as writer:
        for _ in range(count):
            writer.insert(case, data)
    return time.perf_counter() - start


def sample_ours(client: Client, case: str, count: int) -> float:
    """Seconds for so many decoded items."""
    start = time.perf_counter()
    with client.sampler(case, prefetch=64) as sampler:
        for _ in range(count):
            sampler.sample(60)
        seconds = time.perf_counter() - start
    return seconds


class Peer:
    """The official client's process."""

    def __init__(self, python: Path, address: str, folder: str):
        self._process = subprocess.Popen(
            [str(python), "-c", OFFICIAL, address, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ask("")

    def _ask(self, text: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if text:
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the official client ended with exit code {self._process.wait()}")
        return answer

    def run(self, form: str, case: str, count: int) -> float:
        """Seconds for so many items."""
        return float(self._ask(f"{form} {case} {count}"))

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def measure(client: Client, peer: Peer, case: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One line of results."""
    data = data_of(case)
    insert_ours(client, case, data, 200)  # fills the table
    rates: dict[str, list[float]] = {}
    runs: dict[str, Any] = {form: lambda count, form=form: peer.run(form, case, count) for form in FORMS}
    runs["insert"] = lambda count: insert_ours(client, case, data, count)
    runs["sample"] = lambda count: sample_ours(client, case, count)
    counts = {}
    for name, run in runs.items():
        run(20)
        counts[name] = max(int(100 * seconds / run(100)), 20)
    for _ in range(rounds):
        for name, run in runs.items():
            rates.setdefault(name, []).append(counts[name] / run(counts[name]))
    median = common.medians(rates)
    return {
        "case": case,
        "item_bytes": sum(leaf.nbytes for leaf in data.values()),
        "insert_per_s": round(median["insert"]),
        "official_insert_steps_per_s": round(median["steps"]),
        "official_insert_whole_per_s": round(median["whole"]),
        "sample_per_s": round(median["sample"]),
        "official_sample_bare_per_s": round(median["bare"]),
        "official_sample_dataset_per_s": round(median["dataset"]),
        "ratio_insert": median["insert"] / max(median["steps"], median["whole"]),
        "ratio_sample": median["sample"] / max(median["bare"], median["dataset"]),
    }


def main() -> None:
    """See the module."""
    cases = ("atari", "vector", "stacked")
    parser = common.parser(__doc__, cases)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one client in one round")
    parser.add_argument("--environment", type=Path, default=install.home() / "official", help="with the official client")
    options = common.parse(parser, cases)
    if not install.is_complete(options.environment):
        parser.error(f"{options.environment} has no official client: podracer reverb install")
    tables = [Table.uniform(case, 200) for case in options.cases]
    with (
        tempfile.TemporaryDirectory() as folder,
        ReverbServer(tables, environment=options.environment) as server,
        Client(server.address) as client,
    ):
        for case in options.cases:
            np.savez(f"{folder}/{case}.npz", **data_of(case))
        peer = Peer(install.interpreter(options.environment), server.address, folder)
        try:
            for case in options.cases:
                common.emit("reverb", **measure(client, peer, case, options.rounds, options.seconds))
        finally:
            peer.close()


if __name__ == "__main__":
    main()
