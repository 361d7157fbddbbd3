"""Flower's entry points: the ServerApp of a run over sites, and the ClientApp of a site, which is a process too.

Flower starts a process per message, so nothing here imports torch before it is needed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedprompt.deploy.audit import AuditTrail, Verdict
from fedprompt.deploy.worker_socket import NoWorkerError, request_worker
from fedprompt.errors import UserError
from fedprompt.runtimes.flower.apps import Settings, client_app, server_app
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.runtimes.payload import FAILED, MALFORMED, REFUSED, SECURE, Payload

POLL = 1.0  # seconds between checks of the SuperLink


def answer(request: Payload, settings: Settings) -> Payload:
    """Answer a request at the site whose folder the node's configuration names, in its worker if there is one."""
    folder = Path(str(settings["home"]))
    if request.kind == MALFORMED:
        return _refused(folder, request, "the message is malformed", rule="request")
    try:
        return request_worker(folder, request)
    except UserError:  # it has recorded nothing, as it records a message when it answers it
        failed = Payload(FAILED, {"reason": "the worker stopped before it answered; see the site's log."})
        return _recorded(folder, request, failed, rule="failure")
    except NoWorkerError:
        if request.kind in SECURE:
            sentence = "secure sums need the site's worker, which remembers a round's secrets"
            return _refused(folder, request, sentence, rule="secure sums")
        from fedprompt.deploy.site import Site  # imports torch and transformers, which takes seconds

        return Site(folder).answer(request)


def _refused(folder: Path, request: Payload, sentence: str, *, rule: str) -> Payload:
    return _recorded(folder, request, Payload(REFUSED, {"reason": f"{sentence} (rule {rule})."}), rule=rule)


def _recorded(folder: Path, request: Payload, answer: Payload, *, rule: str) -> Payload:
    """The answer, after it was recorded; what cannot be recorded does not leave."""
    AuditTrail(folder).record(request, answer, Verdict(rule))
    return answer


def run(channel: GridChannel, settings: Settings) -> None:
    """Run the recipe of the run's configuration over the deployment's sites; simulate it in Flower's simulation.

    `out` is the run's folder, and empty for a new one in the deployment's folder.
    """
    from fedprompt.deploy.flower_run import FlowerLog, recipe_text, simulate

    text, accept = recipe_text(settings), bool(settings.get("accept-changes", False))
    if channel.simulated:
        simulate(text, str(settings["out"]), callbacks=FlowerLog(), accept_changes=accept)
        return
    from fedprompt.deploy.server_run import run_on_sites
    from fedprompt.deploy.settings import HOME, PROCESS, load_deployment
    from fedprompt.deploy.stopped import reserve, write_stopped
    from fedprompt.experiments.run import free_folder
    from fedprompt.records.atomic_files import write_atomic

    if HOME not in os.environ:
        raise UserError("This SuperLink serves no deployment; start one with: fedprompt server up FOLDER")
    home = Path(os.environ[HOME])
    out = Path(str(settings["out"])) if settings["out"] else free_folder(home / "runs" / "run")
    write_atomic(out / PROCESS, str(os.getpid()))
    reserve(out)
    channel.on_wait = partial(_write_waiting, out)
    threading.Thread(target=_end_with_superlink, args=(home, out), daemon=True).start()
    try:
        deployment, log = load_deployment(home), FlowerLog()
        run_on_sites(text, out, channel, deployment, home=home, callbacks=log, accept_changes=accept)
    except BaseException as error:
        # The run's own record has the error too, unless the run failed before it had one.
        write_stopped(out, str(error) if isinstance(error, UserError) else repr(error))
        raise


def _write_waiting(out: Path, names: Sequence[str], since: float) -> None:
    from fedprompt.deploy.settings import WAITING
    from fedprompt.records.atomic_files import write_atomic
    from fedprompt.text_files import json_text

    write_atomic(out / WAITING, json_text({"sites": list(names), "since": since}))


def _end_with_superlink(home: Path, out: Path) -> None:
    """Exit when the SuperLink is gone: Flower's own process would wait for it and keep the run's folder locked."""
    from fedprompt.deploy.settings import LINK
    from fedprompt.deploy.stopped import write_stopped

    link = int((home / LINK).read_text(encoding="utf-8"))
    while True:
        time.sleep(POLL)
        try:
            os.kill(link, 0)
        except ProcessLookupError:
            write_stopped(out, f"The server stopped; once it is up, continue with: fedprompt resume {out}")
            os._exit(1)


client = client_app(answer)
server = server_app(run)

if __name__ == "__main__":
    from fedprompt.runtimes.flower.clientapp import answer_one

    answer_one(client, *sys.argv[1:])
