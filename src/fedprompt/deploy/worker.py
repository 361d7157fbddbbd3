"""The worker of a site, which keeps backbone and features in memory: `python -m fedprompt.deploy.worker FOLDER`."""

from __future__ import annotations

import logging
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from pathlib import Path

from fedprompt.deploy.site import Site
from fedprompt.deploy.worker_socket import BUSY, listen, receive
from fedprompt.errors import UserError

_log = logging.getLogger(__name__)


def serve(folder: Path, *, requests: int | None = None) -> None:
    """Answer requests one after another, forever or `requests` times; a lost connection is ignored."""
    site, done = Site(folder), 0
    with listen(folder) as listener:
        while done != requests:
            done += _serve_one(listener, site)


def _serve_one(listener: Listener, site: Site) -> bool:
    busy = site.folder / BUSY
    try:
        with listener.accept() as connection:
            request = receive(connection)
            busy.touch()
            connection.send_bytes(site.answer(request).to_bytes())
    except (OSError, EOFError, AuthenticationError, UserError) as error:
        _log.warning("A connection was lost or refused: %s", type(error).__name__)
        return False
    finally:
        busy.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(Path(sys.argv[1]))
