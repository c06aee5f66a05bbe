"""Runs in the server's own environment, which has neither podracer nor (in its slim form) TensorFlow: imports neither.

The parent writes one line of JSON to standard input: tables (`Table.to_json`), port, host, checkpoint_dir. The script answers
with one line of JSON on standard output, `{"port": ...}` once the server listens or `{"error": ...}`, and then serves until
SIGTERM, SIGINT or the end of standard input: a parent that dies, however it dies, takes its server along.

Reverb's library is loaded without `import reverb`, which would import TensorFlow: a second instead of fifteen.
"""

import base64
import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import signal
import socket
import struct
import sys
import sysconfig
import threading
import types
from typing import Any

_LISTEN = "0A"  # a state in /proc/net/tcp


def load_library() -> Any:
    """Reverb's extension module, with TensorFlow's core library loaded for it."""
    import numpy  # noqa: F401  # the extension expects it to be there

    packages = sysconfig.get_paths()["platlib"]
    ctypes.CDLL(os.path.join(packages, "tensorflow", "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
    package = types.ModuleType("reverb")
    package.__path__ = [os.path.join(packages, "reverb")]
    sys.modules["reverb"] = package
    return importlib.import_module("reverb.libpybind")


def selector(library: Any, kind: str, exponent: float) -> Any:
    """One of `podracer.stores.reverb.tables.SELECTORS`."""
    if kind == "prioritized":
        return library.PrioritizedSelector(exponent)
    if kind in ("max_heap", "min_heap"):
        return library.HeapSelector(kind == "min_heap")
    return {"fifo": library.FifoSelector, "lifo": library.LifoSelector, "uniform": library.UniformSelector}[kind]()


def table(library: Any, values: Any) -> Any:
    """The library's table from the JSON of a `podracer.stores.reverb.tables.Table`."""
    signature = values["signature"]
    return library.Table(
        name=values["name"],
        sampler=selector(library, values["sampler"], values["priority_exponent"]),
        remover=selector(library, values["remover"], values["priority_exponent"]),
        max_size=values["max_size"],
        max_times_sampled=values["max_times_sampled"],
        rate_limiter=library.RateLimiter(
            values["samples_per_insert"], values["min_size_to_sample"], values["min_diff"], values["max_diff"]
        ),
        extensions=[],
        signature=base64.b64decode(signature) if signature is not None else None,
    )


def refuse_taken_port(port: int) -> None:
    """Raises OSError where something listens: gRPC would share the port with it (SO_REUSEPORT) and split the calls."""
    probe = socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET)
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("::" if socket.has_ipv6 else "0.0.0.0", port))


def listening() -> Any:
    """{(address in hex, port)} on which this process listens."""
    inodes = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink("/proc/self/fd/" + name))
    found = set()
    for path in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        if not os.path.exists(path):
            continue
        with open(path) as lines:
            for line in list(lines)[1:]:
                words = line.split()
                if words[3] == _LISTEN and "socket:[" + words[9] + "]" in inodes:
                    address, port = words[1].split(":")
                    found.add((address, int(port, 16)))
    return found


def confine(host: str, path: str) -> Any:
    """Makes the library listen on `host` (an IPv4 address) alone; it can only be told a port, and takes all interfaces.

    Its entry for `bind` in the table of imported functions is pointed at a function of ours, which puts the address in where
    the library asks for all. Returns what must be kept alive. Raises RuntimeError where the table is not as expected.
    """
    family_any = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}  # where in a sockaddr the address is, and its length
    libc = ctypes.CDLL(None, use_errno=True)
    libc.bind.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
    v4 = socket.inet_aton(host)

    def bind(descriptor: int, address: int, length: int) -> int:
        raw = bytearray(ctypes.string_at(address, length))
        family = struct.unpack_from("H", raw)[0]
        if family in family_any:
            start, size = family_any[family]
            if not any(raw[start : start + size]):
                raw[start : start + size] = v4 if size == 4 else b"\0" * 10 + b"\xff\xff" + v4  # IPv4 in an IPv6 socket
        result = libc.bind(descriptor, ctypes.addressof((ctypes.c_char * length).from_buffer(raw)), length)
        ctypes.set_errno(ctypes.get_errno())
        return result

    hook = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, use_errno=True)(bind)
    slot = import_slot(path, b"bind")
    page = os.sysconf("SC_PAGE_SIZE")
    start = slot & -page
    if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(page), 3):  # the table is made read-only once it is filled
        raise RuntimeError("its table of imported functions cannot be changed")
    ctypes.c_void_p.from_address(slot).value = ctypes.cast(hook, ctypes.c_void_p).value
    return hook


def import_slot(path: str, name: bytes) -> int:
    """The address where a loaded library (ELF, 64 bits, little-endian) holds its pointer to an imported function."""
    base = None
    with open("/proc/self/maps") as lines:
        for line in lines:
            words = line.split()
            if len(words) > 5 and words[2] == "00000000" and os.path.realpath(words[5]) == os.path.realpath(path):
                base = int(words[0].split("-")[0], 16)
                break
    if base is None or ctypes.string_at(base, 6) != b"\x7fELF\x02\x01":
        raise RuntimeError("it is not a library as expected")
    headers, count = (
        struct.unpack_from("<Q", ctypes.string_at(base + 32, 8))[0],
        struct.unpack("<H", ctypes.string_at(base + 56, 2))[0],
    )
    dynamic: Any = {}
    for i in range(count):
        kind, _, _, address = struct.unpack("<IIQQ", ctypes.string_at(base + headers + 56 * i, 24))
        if kind == 2:  # PT_DYNAMIC
            position = base + address
            while True:
                tag, value = struct.unpack("<qQ", ctypes.string_at(position, 16))
                if tag == 0:
                    break
                dynamic[tag] = value
                position += 16
    strings, symbols, relocations, size = (dynamic.get(tag) for tag in (5, 6, 23, 2))  # STRTAB, SYMTAB, JMPREL, PLTRELSZ
    if None in (strings, symbols, relocations, size):
        raise RuntimeError("it has no table of imported functions")
    for position in range(relocations, relocations + size, 24):
        offset, info = struct.unpack("<QQ", ctypes.string_at(position, 16))
        entry = struct.unpack("<I", ctypes.string_at(symbols + 24 * (info >> 32), 4))[0]
        if ctypes.string_at(strings + entry) == name:
            return base + offset
    raise RuntimeError("it does not import what was looked for")


def serve(request: Any, library: Any) -> Any:
    """Starts the server. Returns it, its port, and what must be kept alive."""
    host, port = request["host"], request["port"]
    if port:
        refuse_taken_port(port)
    kept = None
    everywhere = host == "0.0.0.0"
    if not everywhere:
        kept = confine(host, library.__file__)
    checkpointer = library.create_default_checkpointer(request["checkpoint_dir"], "", None)
    before = listening()
    server = library.Server([table(library, values) for values in request["tables"]], port, checkpointer)
    opened = listening() - before
    ports = {port for _, port in opened}
    if len(ports) != 1:
        raise RuntimeError(f"the server listens on {len(ports)} ports")
    little = socket.inet_aton(host)[::-1].hex().upper()
    if not everywhere and any(not address.endswith(little) for address, _ in opened):
        server.Stop()
        raise RuntimeError(f"the server does not stay on {host}; host 0.0.0.0 lets it listen on all interfaces")
    return server, ports.pop(), kept


def main() -> None:
    """See the module."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library's own talk
    try:
        request = json.loads(sys.stdin.readline())
        server, port, _kept = serve(request, load_library())
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        sys.exit(1)
    print(json.dumps({"port": port}), file=answers, flush=True)

    def watch_parent() -> None:
        while sys.stdin.read(1):
            pass
        stop.set()

    threading.Thread(target=watch_parent, daemon=True).start()
    stop.wait()
    # Stop waits for calls in progress, which may wait for their timeouts; nothing is saved there that a hard end would lose.
    threading.Timer(2.0, os._exit, (0,)).start()
    server.Stop()
    os._exit(0)


if __name__ == "__main__":
    main()
