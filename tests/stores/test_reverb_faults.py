"""Servers that are killed, frozen or cut off: nothing unconfirmed is lost, nothing waits for ever, nobody stays behind."""

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from podracer.stores.reverb import (
    Client,
    ReverbError,
    ReverbServer,
    ServerDied,
    Table,
    Timeout,
    Unavailable,
    Watch,
)

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("reverb_installed")]
TABLES = [Table.queue("queue", 2), Table.uniform("replay", 1000), Table.queue("long", 1000)]


@pytest.fixture
def server(tmp_path):
    with ReverbServer(TABLES, checkpoint_dir=tmp_path) as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address, timeout_s=20) as connected:
        yield connected


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def state(pid):
    """T for stopped, Z for ended; empty for gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


def take(client, table, count):
    with client.sampler(table, rate_limiter_timeout_s=0.5) as sampler:
        return [int(sampler.sample(20).data[0]) for _ in range(count)]


def test_unconfirmed_items_are_sent_again_after_a_crash(server, client):
    with client.writer(max_in_flight=8) as writer:
        for i in range(5):
            writer.insert("queue", [np.int64(i)])
        wait_for(lambda: writer.num_unconfirmed == 3)  # the queue holds two
        client.checkpoint()
        server.kill()
        for i in range(5, 7):
            writer.insert("queue", [np.int64(i)])  # nobody is there; they wait here
        with pytest.raises(ServerDied, match="has died \\(SIGKILL\\)"):
            server.check()
        server.restart()
        server.check()
        assert take(client, "queue", 7) == list(range(7))
        writer.flush(10)
        assert writer.num_reconnects == 1
    assert client.server_info().tables["queue"].current_size == 0


def test_what_was_confirmed_after_the_checkpoint_is_all_that_a_crash_loses(server, client):
    with client.writer() as writer:
        writer.insert("replay", [np.int64(1)])
        writer.flush()
        client.checkpoint()
        writer.insert("replay", [np.int64(2)])
        writer.flush()
        server.kill()
        server.restart()
        writer.insert("replay", [np.int64(3)])
    assert client.server_info().tables["replay"].current_size == 2
    assert set(take(client, "replay", 40)) == {1, 3}


def test_a_queue_hands_each_item_out_once_though_a_checkpoint_brings_it_again(server, client):
    with client.writer() as writer:
        for i in range(5):
            writer.insert("long", [np.int64(i)])
        writer.flush()
        client.checkpoint()
        with client.sampler("long", rate_limiter_timeout_s=0.5) as sampler:
            got = [int(sampler.sample(20).data[0]) for _ in range(5)]
            server.kill()
            server.restart()
            writer.insert("long", [np.int64(5)])
            got.append(int(sampler.sample(20).data[0]))
            assert sampler.num_repeated == 5
    assert got == list(range(6))


def test_windows_survive_a_crash_with_the_chunks_they_share(server, client):
    with client.window_writer(chunk_length=2, max_window=6, max_in_flight=100) as writer:
        for i in range(40):
            writer.append([np.int64(i)])
            if i == 20:
                writer.flush()
                server.kill()
            if i >= 5 and i % 2:
                writer.create_item("replay", 6)
        server.restart()
        writer.flush(20)
    with client.sampler("replay") as sampler:
        firsts = set()
        for _ in range(200):
            steps = sampler.sample(10).data[0].tolist()
            assert steps == list(range(steps[0], steps[0] + 6))
            firsts.add(steps[0])
    assert firsts == set(range(16, 36, 2))  # the windows from step 21 on


def test_a_port_that_is_free_only_after_a_moment_is_waited_for(server, client):
    server.kill()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", server.port))
        other.listen()
        threading.Timer(0.5, other.close).start()
        server.restart()
    assert client.server_info().tables.keys() == {table.name for table in TABLES}


def test_a_waiting_sampler_lives_through_a_restart(server, client):
    got = []
    with client.sampler("queue", rate_limiter_timeout_s=0.5) as sampler:
        waiting = threading.Thread(target=lambda: got.append(int(sampler.sample(30).data[0])))
        waiting.start()
        server.kill()
        server.restart()
        with client.writer() as writer:
            writer.insert("queue", [np.int64(4)])
        waiting.join(30)
    assert got == [4]


def test_writers_and_samplers_of_a_server_that_stays_away_fail(server, client):
    with (
        contextlib.suppress(Unavailable),  # of the writer's end
        client.writer(reconnect_s=1.5, max_in_flight=2) as writer,
        client.sampler("queue", reconnect_s=1.5) as sampler,
    ):
        writer.insert("replay", [1])
        writer.flush()
        server.kill()
        start = time.monotonic()
        writer.insert("replay", [1], timeout_s=10)
        with pytest.raises(Unavailable, match=r"no Reverb server answers at .*: gone for 1.5 s"):
            writer.flush(10)
        with pytest.raises(Unavailable, match="no Reverb server answers at"):
            sampler.sample(20)
        assert time.monotonic() - start < 10


def test_a_frozen_server_is_waited_for_no_longer_than_asked(server, client):
    with client.writer() as writer, client.sampler("long") as sampler:
        writer.insert("replay", [1])
        writer.flush()
        os.kill(server.pid, signal.SIGSTOP)
        wait_for(lambda: state(server.pid) == "T")
        try:
            writer.insert("long", [np.int64(2)], timeout_s=1)
            for wait in (lambda: client.server_info(0.5), lambda: writer.flush(0.5), lambda: sampler.sample(0.5)):
                start = time.monotonic()
                with pytest.raises(Timeout):
                    wait()
                assert time.monotonic() - start < 3
        finally:
            os.kill(server.pid, signal.SIGCONT)
        writer.flush(20)
        assert int(sampler.sample(20).data[0]) == 2


class Proxy:
    """A TCP connection between client and server that can be cut."""

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                inner = self._listener.accept()[0]
                outer = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((inner, outer))
                for source, sink in ((inner, outer), (outer, inner)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # closing is for the thread that reads: the number may be another's by then

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def test_a_network_that_breaks_loses_and_invents_nothing(server):
    proxy = Proxy(server.port)
    with contextlib.closing(proxy), Client(f"127.0.0.1:{proxy.port}", timeout_s=20) as client:
        with client.writer(max_in_flight=16) as writer:
            for i in range(200):
                writer.insert("replay", [np.int64(i), np.zeros(2000, np.uint8)])
                if i % 50 == 25:
                    proxy.cut()
            writer.flush(20)
            assert writer.num_reconnects >= 2
        assert client.server_info().tables["replay"].current_size == 200
        counts = collections.Counter()
        with client.sampler("replay", prefetch=16) as sampler:
            for i in range(3000):
                counts[int(sampler.sample(20).data[0])] += 1
                if i % 1000 == 500:
                    proxy.cut()
            assert sampler.num_reconnects >= 2
    assert len(counts) > 190
    assert set(counts) <= set(range(200))


def test_no_thread_or_connection_piles_up_over_restarts(server, client):
    with client.writer() as writer, client.sampler("long", rate_limiter_timeout_s=0.5) as sampler:
        sizes = []
        for i in range(4):
            writer.insert("long", [np.int64(i)])
            assert int(sampler.sample(20).data[0]) == i
            writer.flush(20)
            sizes.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
            if i < 3:
                server.kill()
                server.restart()
        assert sizes[-1][0] <= sizes[0][0] + 1
        assert sizes[-1][1] <= sizes[0][1] + 2


def test_close_ends_the_process_and_the_temporary_folder():
    server = ReverbServer(TABLES)
    pid, folder = server.pid, server.checkpoint_dir
    assert server.alive()
    assert folder.exists()
    with Client(server.address) as client, client.sampler("queue", rate_limiter_timeout_s=30):  # a call that waits
        time.sleep(0.2)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 6
        server.close()
        client.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ReverbError, match="closed"):
        server.restart()


def test_a_parent_that_dies_takes_its_server_along():
    code = """
import time
from podracer.stores.reverb import ReverbServer, Table
server = ReverbServer([Table.queue("q", 1)])
print(server.pid, server.checkpoint_dir, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid, folder = parent.stdout.readline().split()
        parent.kill()

    wait_for(lambda: state(pid) in ("", "Z"))  # Z: ended, and nobody has asked how
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def test_a_start_that_takes_too_long_is_ended(tmp_path):
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "python"
    fake.write_text("#!/bin/sh\necho not yet >&2\nexec sleep 60\n")
    fake.chmod(0o755)
    with pytest.raises(Timeout, match="waited 1 s for the Reverb server to listen, in vain; it said: not yet"):
        ReverbServer(TABLES, environment=tmp_path, start_timeout_s=1)
    fake.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(ServerDied, match="could not start: exit code 3; it said: broken"):
        ReverbServer(TABLES, environment=tmp_path)


def test_a_table_whose_checkpoint_has_another_size_is_refused(tmp_path):
    with ReverbServer([Table.uniform("replay", 10)], checkpoint_dir=tmp_path) as server, Client(server.address) as client:
        client.checkpoint()
    with pytest.raises(ReverbError, match=r"comes from a checkpoint in .* has max_size 10, not 20, .*: say 10, or use"):
        ReverbServer([Table.uniform("replay", 20)], checkpoint_dir=tmp_path)
    with ReverbServer([Table.uniform("replay", 10)], checkpoint_dir=tmp_path) as server:
        assert server.alive()


def test_a_watch_starts_a_dead_server_again_until_it_has_died_too_often(server, client):
    again = []
    watch = Watch(server, max_restarts=1, on_restart=lambda: again.append(server.pid))
    try:
        first = server.pid
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: again)
        assert again[0] != first
        assert client.server_info(10).tables
        watch.check()
        os.kill(server.pid, signal.SIGKILL)

        def given_up():
            try:
                watch.check()
            except ServerDied as died:
                return "1 restarts were not enough" in str(died)

        wait_for(given_up)
        assert watch.num_restarts == 1
    finally:
        watch.close()


def test_a_server_that_dies_while_it_is_made_ready_again_is_restarted_once_more(server, client):
    calls = []

    def on_restart():
        calls.append(server.pid)
        if len(calls) == 1:
            server.kill()
            raise Unavailable("it was there a moment ago")

    watch = Watch(server, on_restart=on_restart)
    try:
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: len(calls) == 2)
        watch.check()
        assert client.server_info(10).tables
        assert watch.num_restarts == 2
    finally:
        watch.close()
