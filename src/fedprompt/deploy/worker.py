"""The resident worker of a site: `python -m fedprompt.deploy.worker FOLDER` keeps backbone and features in memory."""

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
    """Answer requests one after another, for ever or `requests` times; a caller that goes away changes nothing."""
    site, done = Site(folder), 0
    with listen(folder) as listener:
        while done != requests:
            done += _serve_one(listener, site)


def _serve_one(listener: Listener, site: Site) -> bool:
    busy = site.folder / BUSY
    try:
        with listener.accept() as line:
            request = receive(line)
            busy.touch()
            line.send_bytes(site.answer(request).to_bytes())
    except (OSError, EOFError, AuthenticationError, UserError) as error:
        _log.warning("A caller was lost or turned away: %s", type(error).__name__)
        return False
    finally:
        busy.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(Path(sys.argv[1]))
