"""Both ways between our client and Reverb's own Python client, which runs in the server's official environment."""

import json
import subprocess

import numpy as np
import pytest

from podracer.stores.reverb import Client, ReverbServer, Table, install

pytestmark = pytest.mark.timeout(300)  # importing TensorFlow alone takes a quarter of a minute on a loaded machine

OFFICIAL = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, reverb, tensorflow as tf

client = reverb.Client(sys.argv[1])
out = {}

# What we have written.
out["signature"] = str(client.server_info()["ours"].signature)
sample = next(client.sample("ours", num_samples=1, emit_timesteps=False))
out["ours"] = [[np.asarray(x).dtype.name, np.asarray(x).tolist()] for x in sample.data]
windows = client.sample("windows", num_samples=3, emit_timesteps=False)
out["windows"] = [next(iter(x.data)).tolist() for x in windows]
out["priority"] = float(next(client.sample("priority", num_samples=1, emit_timesteps=False)).info.priority)

# What we shall read: overlapping windows, compressed and delta-encoded, of several dtypes; then the old writer's timesteps.
with client.trajectory_writer(num_keep_alive_refs=4) as writer:
    for i in range(6):
        writer.append({"i": np.int64(i), "frame": np.full((4, 4), i, np.uint8), "name": b"n%d" % i, "half": np.float16(i)})
        if i >= 3:
            history = writer.history
            writer.create_item("theirs", priority=i, trajectory={
                "i": history["i"][-4:], "frame": history["frame"][-2:],
                "last": history["name"][-1], "half": history["half"][-1:]})
    writer.flush()
with client.writer(max_sequence_length=3, delta_encoded=True, chunk_length=3) as writer:
    for i in range(3):
        writer.append([np.array([[100 - 60 * i, i]], np.int32), np.float32(i)])
    writer.create_item("deltas", num_timesteps=3, priority=1.0)
print(json.dumps(out))
"""
TABLES = [
    Table.queue(
        "ours", 10, {"x": np.zeros((2, 3), np.float32), "n": np.zeros((), np.int64), "empty": np.zeros((0, 2), np.int8)}
    ),
    Table.queue("windows", 10),
    Table.prioritized("priority", 10),
    Table.queue("theirs", 10),
    Table.queue("deltas", 10),
]


@pytest.fixture(scope="module")
def exchange():
    """What the official client has read of ours, and a client of ours to read what it wrote."""
    folder = install.home() / "official"
    if not install.is_complete(folder):
        pytest.skip("Reverb's own client is not installed (podracer reverb install, without --slim)")
    with ReverbServer(TABLES, environment=folder) as server, Client(server.address) as client:
        with client.writer(compression="always") as writer, client.window_writer(chunk_length=2, max_window=3) as windows:
            writer.insert(
                "ours", {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": 7, "empty": np.zeros((0, 2), np.int8)}
            )
            key = writer.insert("priority", [np.zeros(5000, np.uint8)], priority=1.0)
            for i in range(5):
                windows.append(np.full(2, i, np.int32))
                if i >= 2:
                    windows.create_item("windows", 3)
            writer.flush()
            client.update_priorities("priority", {key: 2.5})
        command = [str(install.interpreter(folder)), "-c", OFFICIAL, server.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        yield json.loads(done.stdout.splitlines()[-1]), client


def test_the_official_client_reads_what_ours_wrote(exchange):
    out, _ = exchange
    assert out["ours"] == [["int8", []], ["int64", 7], ["float32", [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]]
    assert out["windows"] == [[[i, i] for i in range(start, start + 3)] for start in range(3)]
    assert out["priority"] == 2.5
    assert "'x': TensorSpec(shape=(2, 3), dtype=tf.float32, name=None)" in out["signature"]


def test_ours_reads_what_the_official_client_wrote(exchange):
    _, client = exchange
    with client.sampler("theirs") as sampler:
        for i in range(3, 6):
            sample = sampler.sample(20)
            frame, half, steps, last = sample.data
            assert sample.priority == i
            assert steps.tolist() == [i - 3, i - 2, i - 1, i]
            assert frame.shape == (2, 4, 4)
            assert frame[:, 0, 0].tolist() == [i - 1, i]
            assert last.item() == b"n%d" % i
            assert half.dtype == np.float16
            assert half[-1] == i
    with client.sampler("deltas") as sampler:
        numbers, floats = sampler.sample(20).data
        assert numbers[:, 0].tolist() == [[100, 0], [40, 1], [-20, 2]]
        assert floats.tolist() == [0.0, 1.0, 2.0]
