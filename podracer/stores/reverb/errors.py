"""What can go wrong with Reverb. Every text is one line that says what happened, where, and what to do where that is known."""

import grpc

TRANSIENT = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
)
"""Status codes after which the same call may well succeed: the server or the network between has gone, or came back."""


class ReverbError(Exception):
    """The base of all errors of this package."""


class Timeout(ReverbError, TimeoutError):
    """A wait ended without what was waited for. The text says who waited for whom, and for how long."""


class Unavailable(ReverbError, ConnectionError):
    """The server could not be reached, or not again after a loss, within the time given."""


class TableNotFound(ReverbError, KeyError):
    """The server has no table of this name. The text lists those that it has."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the text in quotes


class SignatureMismatch(ReverbError, ValueError):
    """Data whose structure, dtype or shape is not that of the table."""


class ItemTooLarge(ReverbError, ValueError):
    """An item that no gRPC message can carry (2 GiB - 1). The server would neither confirm nor refuse it."""


class NotInstalled(ReverbError):
    """The server's environment is missing. The text says how to install it."""


class ServerDied(ReverbError):
    """The server's process has ended by itself. The text has its exit code and its last words."""


class PortInUse(ServerDied):
    """The server could not start: something listens where it should."""
