"""Reverb without TensorFlow: a typed client, and the real server as a process of its own that is started and watched.

    with ReverbServer([Table.queue("online", 64)]) as server, Client(server.address) as client:
        with client.writer() as writer:
            writer.insert("online", {"observation": numpy.zeros([20, 4], numpy.float32)})
        with client.sampler("online") as sampler:
            sample = sampler.sample(timeout_s=10)

Nothing here imports JAX or TensorFlow; trees of numpy (or any array-like) leaves go in and come out. No wait is without an
end: each raises `Timeout`, which says who waited for whom. The server is dm-reverb's own (`podracer reverb install`).

Modules: `wire` messages, `tensors` codec, `structure` trees and signatures, `tables` descriptions of tables, `connection`
and its short calls, `stream` what breaks and is opened anew, `writer` inserts, `sampler` samples, `client` all of these,
`server`, `watch` and `install` the server's process and its environment.
"""

from podracer.stores.reverb.client import Client
from podracer.stores.reverb.connection import ServerInfo, TableInfo
from podracer.stores.reverb.errors import (
    ItemTooLarge,
    NotInstalled,
    PortInUse,
    ReverbError,
    ServerDied,
    SignatureMismatch,
    TableNotFound,
    Timeout,
    Unavailable,
)
from podracer.stores.reverb.sampler import Sample, Sampler
from podracer.stores.reverb.server import ReverbServer
from podracer.stores.reverb.structure import Spec
from podracer.stores.reverb.tables import Table
from podracer.stores.reverb.watch import Watch
from podracer.stores.reverb.writer import WindowWriter, Writer

__all__ = [
    "Client",
    "ItemTooLarge",
    "NotInstalled",
    "PortInUse",
    "ReverbError",
    "ReverbServer",
    "Sample",
    "Sampler",
    "ServerDied",
    "ServerInfo",
    "SignatureMismatch",
    "Spec",
    "Table",
    "TableInfo",
    "TableNotFound",
    "Timeout",
    "Unavailable",
    "Watch",
    "WindowWriter",
    "Writer",
]
