"""The Flower ClientApp of a site: a process of a second that hands the work to the resident worker, or does it."""

from __future__ import annotations

from pathlib import Path

from fedprompt.deploy.worker_socket import NoWorkerError, ask
from fedprompt.runtimes.flower.apps import Settings, client_app
from fedprompt.runtimes.payload import DONE, REFUSED, SECURE, Payload


def answer(request: Payload, settings: Settings) -> Payload:
    """What the site whose folder the node's configuration names says to a request."""
    if request.fields.get("only") == "name":
        return Payload(DONE, {"site": str(settings.get("site", ""))})
    folder = Path(str(settings["home"]))
    try:
        return ask(folder, request)
    except NoWorkerError:
        if request.kind in SECURE:
            return Payload(
                REFUSED, {"reason": "secure sums need the site's worker, which remembers a round's secrets."}
            )
        from fedprompt.deploy.site import Site  # torch and transformers: seconds that the worker spares every message

        return Site(folder).answer(request)


app = client_app(answer)
