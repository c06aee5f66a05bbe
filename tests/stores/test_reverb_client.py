"""The client against the real server."""

import dataclasses
import socket
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from podracer.stores.reverb import (
    Client,
    ItemTooLarge,
    ReverbServer,
    ServerDied,
    SignatureMismatch,
    Table,
    TableNotFound,
    Timeout,
    Unavailable,
)

pytestmark = pytest.mark.timeout(60)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unroll:
    observation: dict
    reward: np.ndarray
    state: tuple = ()


def unroll(value=0):
    return Unroll(
        observation={
            "frame": np.full((5, 8, 8), value, np.uint8),
            "vector": np.full((6, 3), value, ml_dtypes.bfloat16),
            "name": np.array([f"step {value}".encode()] * 5, object),
        },
        reward=np.float32(value),
        state=(np.full(4, value, np.int64),),
    )


TABLES = [
    Table.queue("queue", 3, unroll()),
    Table.queue("loose", 50),
    Table.uniform("uniform", 100),
    Table.prioritized("prioritized", 100, exponent=1.0, signature={"x": np.zeros((), np.int32)}),
    Table.uniform("waiting", 10, min_size=2),
    Table(name="heap", sampler="max_heap", remover="min_heap", max_size=2),
    Table(name="stack", sampler="lifo", remover="fifo", max_size=5),
]


@pytest.fixture(scope="module")
def server(reverb_installed):
    with ReverbServer(TABLES) as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        for table in TABLES:
            connected.reset(table.name)
        yield connected


def same(left, right):
    assert isinstance(left, Unroll)
    assert set(left.observation) == set(right.observation)
    for name, array in right.observation.items():
        assert left.observation[name].dtype == array.dtype
        np.testing.assert_array_equal(left.observation[name], array)
    np.testing.assert_array_equal(left.reward, right.reward)
    np.testing.assert_array_equal(left.state[0], right.state[0])


def test_a_queue_gives_each_tree_once_and_in_order(client):
    got = []

    def consume():
        with client.sampler("queue", like=unroll(), rate_limiter_timeout_s=0.5) as sampler:
            got.extend(sampler.sample(20) for _ in range(20))

    consumer = threading.Thread(target=consume)
    consumer.start()
    with client.writer(max_in_flight=4) as writer:
        keys = [writer.insert("queue", unroll(i)) for i in range(20)]
    consumer.join(20)
    assert [sample.key for sample in got] == keys
    for i, sample in enumerate(got):
        same(sample.data, unroll(i))
    info = client.server_info().tables["queue"]
    assert (info.current_size, info.num_inserted, info.num_sampled) == (0, 20, 20)


def test_the_signature_gives_the_containers_and_no_signature_a_list(client):
    with client.writer() as writer:
        writer.insert("queue", unroll(3))
        writer.insert("loose", {"x": np.arange(3), "y": 2.5})
    with client.sampler("queue") as sampler:
        data = sampler.sample(10).data
        assert type(data).__name__ == "Unroll"
        np.testing.assert_array_equal(data.observation["frame"], unroll(3).observation["frame"])
    with client.sampler("loose") as sampler:
        arrays = sampler.sample(10).data
        assert [array.tolist() for array in arrays] == [[0, 1, 2], 2.5]


def test_signatures_are_checked_on_both_sides(client):
    wrong = dataclasses.replace(unroll(), reward=np.float64(0))
    with client.writer() as writer:
        with pytest.raises(SignatureMismatch, match=r"^reward is float64\[\]; table 'queue' holds float32\[\]$"):
            writer.insert("queue", wrong)
        writer.insert("loose", {"x": np.arange(3)})
    with pytest.raises(SignatureMismatch, match=r"^reward is float32\[\] in table 'queue', not float64\[\]$"):
        client.sampler("queue", like=wrong)
    with (
        client.sampler("loose", like={"x": np.arange(4)}) as sampler,
        pytest.raises(SignatureMismatch, match=r"\['x'\] is int64\[3\]; what is wanted of table 'loose' holds int64\[4\]"),
    ):
        sampler.sample(10)


def test_priorities_decide_and_deleted_items_are_gone(client):
    with client.writer() as writer:
        keys = [writer.insert("prioritized", {"x": np.int32(i)}, priority=float(i)) for i in range(3)]
        writer.flush()
        client.update_priorities("prioritized", {keys[0]: 1.0, keys[1]: 0.0, keys[2]: 3.0, 12345: 1.0})
    with client.sampler("prioritized", prefetch=32) as sampler:
        samples = [sampler.sample(10) for _ in range(400)]
    counts = {key: sum(sample.key == key for sample in samples) for key in keys}
    assert counts[keys[1]] == 0
    assert 250 < counts[keys[2]] < 350
    for sample in samples:
        assert sample.table_size == 3
        assert sample.probability == pytest.approx({keys[0]: 0.25, keys[2]: 0.75}[sample.key])
        assert sample.priority == {keys[0]: 1.0, keys[2]: 3.0}[sample.key]
    client.delete("prioritized", [keys[2], 12345])
    with client.sampler("prioritized") as sampler:
        assert {sampler.sample(10).key for _ in range(5)} == {keys[0]}
    assert client.server_info().tables["prioritized"].current_size == 2
    client.reset("prioritized")
    assert client.server_info().tables["prioritized"].current_size == 0


def test_heaps_and_stacks(client):
    with client.writer() as writer:
        for priority in (2.0, 5.0, 3.0):
            writer.insert("heap", [np.float32(priority)], priority=priority)
            writer.insert("stack", [np.float32(priority)])
    with client.sampler("heap") as heap, client.sampler("stack") as stack:
        assert heap.sample(10).data == [5.0]
        assert stack.sample(10).data == [3.0]


def test_windows_share_chunks(client):
    with client.window_writer(chunk_length=3, max_window=7, max_in_flight=4) as writer:
        for episode in range(2):
            for i in range(20):
                writer.append({"i": np.int32(100 * episode + i), "frame": np.full((2, 2), i, np.uint8)})
                if i >= 6 and i % 3 == 0:
                    writer.create_item("loose", 7)
            writer.create_item("loose", 1)
            with pytest.raises(ValueError, match="a window of 8 steps"):
                writer.create_item("loose", 8)
            writer.end_episode()
        with pytest.raises(ValueError, match="the episode has 0"):
            writer.create_item("loose", 1)
    expected = []
    for start in (0, 100):
        expected += [list(range(start + i - 6, start + i + 1)) for i in range(6, 20, 3)] + [[start + 19]]
    with client.sampler("loose") as sampler:
        for steps in expected:
            frame, i = sampler.sample(10).data
            assert i.tolist() == steps
            assert frame[:, 0, 0].tolist() == [step % 100 for step in steps]
            assert frame.shape == (len(steps), 2, 2)


def test_every_wait_ends_and_says_who_waited_for_whom(client):
    with client.sampler("queue", rate_limiter_timeout_s=0.3) as sampler:
        start = time.monotonic()
        with pytest.raises(Timeout, match=r"a sampler of table 'queue' waited 1.0 s .*: table 'queue' holds 0 of 3 items"):
            sampler.sample(1.0)
        assert time.monotonic() - start < 3
        assert sampler.num_rate_limited >= 2
    with client.writer(max_in_flight=2) as writer:
        for i in range(5):
            writer.insert("queue", unroll(i))
        with pytest.raises(
            Timeout, match=r"a writer to table 'queue' waited 0.5 s .* to confirm 2 items: table 'queue' holds 3"
        ):
            writer.insert("queue", unroll(5), timeout_s=0.5)
        with pytest.raises(Timeout, match="to confirm 2 items"):
            writer.flush(0.2)
        with client.sampler("queue", prefetch=1) as sampler:
            assert [int(sampler.sample(10).data.reward) for _ in range(5)] == [0, 1, 2, 3, 4]
        writer.flush(10)
        writer.insert("waiting", [1])
    with client.sampler("waiting", rate_limiter_timeout_s=0.3) as sampler, pytest.raises(Timeout, match="holds 1 of 10 items"):
        sampler.sample(0.5)


def test_closing_a_sampler_loses_nothing(client):
    """A request that still waits at the server would take the next item, and send it to nobody."""
    sampler = client.sampler("queue", rate_limiter_timeout_s=0.5, prefetch=2)
    with pytest.raises(Timeout):
        sampler.sample(0.1)
    left = sampler.close()
    with client.writer() as writer:
        for i in range(3):
            writer.insert("queue", unroll(i))
    sampler = client.sampler("queue", prefetch=2)
    first = sampler.sample(10)
    left += [first, *sampler.close()]
    with client.sampler("queue") as rest:
        left += [rest.sample(10) for _ in range(3 - len(left))]
    assert [int(sample.data.reward) for sample in left] == [0, 1, 2]


def test_a_wrong_table_is_named_at_once(client):
    text = r"no table 'nowhere'; it has heap, loose, prioritized"
    with client.writer() as writer, pytest.raises(TableNotFound, match=text):
        writer.insert("nowhere", [1])
    with pytest.raises(TableNotFound, match=text):
        client.sampler("nowhere")
    for call in (lambda: client.reset("nowhere"), lambda: client.delete("nowhere", [1])):
        with pytest.raises(TableNotFound, match="no table 'nowhere'"):
            call()


def test_items_beyond_the_limit_are_refused_and_large_ones_pass(client):
    with client.writer() as writer:
        with pytest.raises(ItemTooLarge, match=r"2.00 GiB for table 'loose'"):
            writer.insert("loose", [np.zeros(2**31 - 1, np.uint8)])  # never touched, so never in memory
        noise = np.random.default_rng(0).integers(0, 256, 12_000_000, np.uint8)
        writer.insert("loose", [noise])
    with client.sampler("loose") as sampler:
        np.testing.assert_array_equal(sampler.sample(20).data[0], noise)


def test_the_caller_may_change_arrays_after_inserting(client):
    array = np.zeros(3)
    with client.writer() as writer, client.window_writer(chunk_length=2, max_window=2) as windows:
        for i in range(4):
            array[:] = i
            writer.insert("loose", [array])
            windows.append([array])
            array[:] = -1
        windows.create_item("uniform", 2)
    with client.sampler("loose") as sampler:
        assert [sampler.sample(10).data[0].tolist() for _ in range(4)] == [[i] * 3 for i in range(4)]
    with client.sampler("uniform") as sampler:
        assert sampler.sample(10).data[0].tolist() == [[2] * 3, [3] * 3]


def test_several_threads_share_a_writer_and_a_sampler(client):
    got = []
    with client.writer(max_in_flight=8) as writer, client.sampler("loose", prefetch=4) as sampler:

        def produce(start):
            for i in range(25):
                writer.insert("loose", [np.int64(start + i)])

        def consume():
            for _ in range(25):
                got.append(int(sampler.sample(20).data[0]))

        threads = [threading.Thread(target=produce, args=(100 * n,)) for n in range(4)]
        threads += [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(got) == sorted(100 * n + i for n in range(4) for i in range(25))


def test_nothing_is_left_behind(server):
    def ours():
        return [thread for thread in threading.enumerate() if thread.name.startswith("reverb-")]

    before = len(ours())
    client = Client(server.address)
    writer, sampler = client.writer(), client.sampler("waiting")
    assert len(ours()) == before + 2
    client.close()
    assert len(ours()) == before
    for call in (client.server_info, lambda: writer.insert("loose", [1]), lambda: sampler.sample(1)):
        with pytest.raises(Exception, match="is closed"):
            call()


def test_no_server_at_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with Client(address) as client:
        start = time.monotonic()
        with pytest.raises(Unavailable, match=r"no Reverb server answers at 127\.0\.0\.1"):
            client.server_info(0.5)
        assert time.monotonic() - start < 3


def test_the_server_says_why_it_cannot_start(server):
    with pytest.raises(ServerDied, match=f"port {server.port} of 127.0.0.1 is in use: choose another"):
        ReverbServer(TABLES[:1], port=server.port)
    with pytest.raises(ValueError, match="distinct names"):
        ReverbServer([TABLES[0], TABLES[0]])


def test_the_server_stays_on_its_interface(server):
    """127.0.0.2 is this machine too, but not the address it was given; left alone, Reverb listens on all there are."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=2).close()
    with ReverbServer(TABLES[:1], host="0.0.0.0") as everywhere:
        socket.create_connection(("127.0.0.2", everywhere.port), timeout=2).close()
