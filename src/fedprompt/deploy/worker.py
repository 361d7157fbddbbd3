"""The worker of a site, which keeps backbone and features in memory: `python -m fedprompt.deploy.worker FOLDER`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from fedprompt.child_processes import end_with_parent
from fedprompt.deploy.site import Site
from fedprompt.deploy.worker_socket import BUSY, WorkerListener, listen, send

_log = logging.getLogger(__name__)


def serve(folder: Path, *, requests: int | None = None) -> None:
    """Answer requests one after another, forever or `requests` times; a lost connection is ignored."""
    site, done = Site(folder), 0
    with listen(folder) as listener:
        while done != requests:
            done += _serve_one(listener, site)


def _serve_one(listener: WorkerListener, site: Site) -> bool:
    busy = site.folder / BUSY
    with listener.next_request() as (connection, request):
        busy.touch()
        try:
            send(connection, site.answer(request))
        except OSError as error:
            _log.warning("A connection was lost: %s", type(error).__name__)
            return False
        finally:
            busy.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(Path(sys.argv[1]))
