"""The exchange: as many unrolls under way as allowed, each taken once, whatever dies meanwhile."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest

from podracer.stores.exchange import Exchange, Remote
from podracer.stores.reverb import Client, ReverbError

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("reverb_installed")]
UNROLL = {"x": np.zeros((3, 2), np.float32), "n": (np.int64(0),)}
PARAMS = {"layer": {"w": np.zeros(4, np.float32)}}


@contextlib.contextmanager
def opened(max_in_flight=2, timeout=60.0):
    exchange = Exchange(
        unroll=UNROLL,
        params=PARAMS,
        job=b'{"job": 1}',
        max_in_flight=max_in_flight,
        receive=lambda tree: int(tree["n"][0]),
        timeout=timeout,
    )
    try:
        exchange.start()
        exchange.publish(0, params(0), wait=True)
        remote = Remote(exchange.address, reconnect_s=20)
        remote.expect(UNROLL, PARAMS)
        try:
            yield exchange, remote
        finally:
            remote.close()
    finally:
        exchange.close()


def params(version):
    return {"layer": {"w": np.full(4, version, np.float32)}}


def unroll(number):
    return {"x": np.full((3, 2), number, np.float32), "n": (np.int64(number),)}


def begin(remote, seconds=15.0):
    deadline = time.monotonic() + seconds
    return remote.begin(lambda: time.monotonic() > deadline)


def get(exchange):
    deadline = time.monotonic() + 20
    while (found := exchange.get(0.2)) is None:
        assert time.monotonic() < deadline, "nothing came"
    return found


def test_no_more_are_under_way_than_allowed_and_all_arrive_in_order():
    with opened(max_in_flight=2) as (exchange, remote):
        assert remote.job == b'{"job": 1}'
        first, second = begin(remote), begin(remote)
        assert begin(remote, 0.1) is None
        assert remote.put(first, unroll(10))
        assert not remote.put(first, unroll(11))  # a ticket is for one unroll
        ticket, number = get(exchange)
        assert number == 10
        assert begin(remote, 0.1) is None  # it has arrived, and is not learned from
        exchange.publish(1, params(1), wait=True)
        exchange.cancel(ticket)
        third = begin(remote)
        assert (second.version, third.version) == (0, 1)
        assert remote.put(second, unroll(20))
        assert remote.put(third, unroll(30))
        assert [get(exchange)[1], get(exchange)[1]] == [20, 30]


def test_the_newest_parameters_are_fetched_and_only_where_they_are_newer():
    with opened() as (exchange, remote):
        version, found = remote.fetch(0)
        assert version == 0
        np.testing.assert_array_equal(found["layer"]["w"], np.zeros(4))
        for number in range(1, 5):
            exchange.publish(number, params(number), wait=True)
        assert remote.fetch(0) is None
        version, found = remote.fetch(1)
        assert version == 4
        np.testing.assert_array_equal(found["layer"]["w"], np.full(4, 4))


def test_a_ticket_given_back_goes_to_the_next():
    with opened(max_in_flight=1) as (_, remote):
        ticket = begin(remote)
        remote.cancel(ticket)
        again = begin(remote)
        assert again.number == ticket.number
        assert not remote.put(ticket, unroll(1))
        assert remote.put(again, unroll(2))


def test_a_ticket_that_is_lost_is_replaced_and_its_unroll_still_taken_once():
    with opened(max_in_flight=1, timeout=1.5) as (exchange, remote):
        time.sleep(2)
        assert exchange.get(0.1) is None
        assert exchange.num_replaced == 0  # nobody had taken it
        lost = begin(remote)
        deadline = time.monotonic() + 20
        while not exchange.num_replaced:
            assert exchange.get(0.2) is None
            assert time.monotonic() < deadline
        other = begin(remote)
        assert other.number != lost.number
        number = lost.number
        remote.put(lost, unroll(1))
        lost.valid, lost.number = True, number
        remote.put(lost, unroll(1))
        remote.put(other, unroll(2))
        late, found = get(exchange)
        assert found == 1
        exchange.cancel(late)
        assert begin(remote, 0.1) is None  # it did not count any more: still one is under way
        assert get(exchange)[1] == 2
        assert exchange.get(0.5) is None
        assert exchange.num_repeated == 1


def test_a_server_that_is_killed_comes_back_with_what_actors_need(capfd):
    with opened(max_in_flight=2) as (exchange, remote):
        exchange.publish(3, params(3), wait=True)
        held = begin(remote)
        os.kill(exchange.server.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while exchange.num_restarts < 1 or exchange.num_replaced < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "has died (SIGKILL): it starts again" in capfd.readouterr().err
        assert remote.put(held, unroll(5))
        assert get(exchange)[1] == 5
        fresh = begin(remote)
        assert fresh.version == 3
        assert remote.fetch(3)[0] == 3
        assert remote.put(fresh, unroll(6))
        assert get(exchange)[1] == 6
        with Client(exchange.address) as client:
            assert client.server_info().tables["job"].current_size == 1


def test_everyone_hears_that_the_run_is_over():
    with opened() as (exchange, remote):
        other = Remote(exchange.address)
        try:
            exchange.close()
            deadline = time.monotonic() + 10
            while not (remote.over and other.over):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert begin(remote) is None
            assert remote.failure is None
        finally:
            other.close()


def test_another_shape_is_refused_in_one_line():
    with opened() as (_, remote):
        with pytest.raises(
            ReverbError, match=r"learner's unrolls are not those of this process: .*x.*\[3, 2\] there, .*\[3, 5\] here; is it"
        ):
            remote.expect({"x": np.zeros((3, 5), np.float32), "n": (np.int64(0),)}, PARAMS)
        with pytest.raises(ReverbError, match="the learner's parameters are not"):
            remote.expect(UNROLL, {})


def test_nobody_there_is_said_in_time():
    started = time.monotonic()
    with pytest.raises(ReverbError, match=r"no Reverb server answers at 127\.0\.0\.1:1"):
        Remote("127.0.0.1:1", reconnect_s=1)
    assert time.monotonic() - started < 10
