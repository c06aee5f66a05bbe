"""The commands `podracer reverb install` and `podracer reverb serve`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

_POLL_S = 0.2


@click.group()
def reverb() -> None:
    """Reverb's server, for trajectories between hosts and for replay.

    \b
    Examples:
      podracer reverb install
      podracer reverb serve --port 8000 --tables online=queue:64 --tables replay=uniform:1e5 --checkpoint-dir replay
    """


@reverb.command()
@click.option(
    "--slim", is_flag=True, help="170 MB instead of 1.3 GB, and 1 minute instead of 2; Reverb's authors do not support it."
)
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Where.  [default: in podracer's cache]")
def install(slim: bool, folder: Path | None) -> None:
    """Make the environment of Reverb's server.

    The server cannot share one with a current JAX. --folder needs PODRACER_REVERB_ENV=FOLDER later, so that it is found.
    """
    from podracer.stores.reverb import install as installation
    from podracer.stores.reverb.errors import ReverbError

    try:
        made = installation.install(slim=slim, folder=folder, say=lambda text: print(text, flush=True))
    except (ReverbError, OSError) as error:
        raise click.ClickException(str(error)) from error
    print(f"Reverb's server is in {made}")


@reverb.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="IPv4 address to listen on; 0.0.0.0 is all.")
@click.option(
    "--tables",
    metavar="TABLE",
    multiple=True,
    required=True,
    help="NAME=KIND:SIZE[:KEY=VALUE...], KIND queue, uniform or prioritized; or a JSON file with a list of them. Repeat it.",
)
@click.option(
    "--checkpoint-dir", type=click.Path(path_type=Path, file_okay=False), help="Go on from here, and save here at the end."
)
@click.option("--max-restarts", type=click.IntRange(0), default=10, show_default=True, help="Of a server that dies by itself.")
def serve(port: int, host: str, tables: Sequence[str], checkpoint_dir: Path | None, max_restarts: int) -> None:
    """Run Reverb's server until Ctrl-C or SIGTERM. One that dies starts again from its newest checkpoint.

    There is neither encryption nor a password: with another --host than loopback, everyone who can reach it can read,
    write and delete.

    \b
    Keys of tables: min_size, samples_per_insert, tolerance; exponent for prioritized.
    Example:
      podracer reverb serve --port 8000 --tables online=queue:64 --tables replay=prioritized:1e5:exponent=0.8:min_size=1000
    """
    from podracer.launch.signals import StopRequests
    from podracer.stores.reverb import Client, ReverbError, ReverbServer, Watch

    with StopRequests() as requests:
        try:
            with ReverbServer(_tables(tables), port=port, host=host, checkpoint_dir=checkpoint_dir) as server:
                print(f"Reverb's server listens on {server.address}", flush=True)
                watch = Watch(server, max_restarts)
                while not requests.pending:
                    watch.check()
                    time.sleep(_POLL_S)
                watch.close()
                if checkpoint_dir is not None:
                    with Client(server.address) as client:
                        print(f"saved {client.checkpoint(60.0)}", flush=True)
        except (ReverbError, ValueError, TypeError, OSError) as error:
            raise click.ClickException(str(error)) from error
        sys.exit(requests.stop().exit_code)


def _tables(texts: Sequence[str]) -> list[Any]:
    import json

    from podracer.stores.reverb import Table

    found = []
    for text in texts:
        if "=" in text or not Path(text).is_file():
            found.append(Table.parse(text))
        else:
            found += [Table.from_json(values) for values in json.loads(Path(text).read_text())]
    return found
