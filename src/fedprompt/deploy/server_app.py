"""The Flower ServerApp: one run over the sites of the deployment that the SuperLink was started for."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedprompt.deploy.settings import HOME, LINK, PROCESS, STOPPED, WAITING, load_deployment
from fedprompt.errors import UserError
from fedprompt.records.run_folder import write_atomic
from fedprompt.runtimes.flower.apps import Settings, server_app
from fedprompt.runtimes.flower.grid import GridChannel

TICK = 1.0  # seconds between looks at the SuperLink


def main(channel: GridChannel, settings: Settings) -> None:
    """Conduct what the run's configuration says: `recipe` is TOML text or a name, `out` the run's folder."""
    from fedprompt.config.recipe import find_recipe
    from fedprompt.deploy.server_run import conduct
    from fedprompt.experiments.run import free_folder

    home = Path(os.environ[HOME])
    recipe = str(settings["recipe"])
    text = recipe if "\n" in recipe else find_recipe(recipe).read_text(encoding="utf-8")
    out = Path(str(settings["out"])) if settings["out"] else free_folder(home / "runs" / "run")
    write_atomic(out / PROCESS, str(os.getpid()))
    (out / STOPPED).unlink(missing_ok=True)
    channel.on_wait = partial(_write_waiting, out)
    threading.Thread(target=_end_with_the_server, args=(home, out), daemon=True).start()
    try:
        conduct(text, out, channel, load_deployment(home), home=home)
    except BaseException as error:
        # The run's own record says it too, unless the run never came so far.
        write_atomic(out / STOPPED, str(error) if isinstance(error, UserError) else repr(error))
        raise


def _write_waiting(out: Path, names: Sequence[str], since: float) -> None:
    write_atomic(out / WAITING, json.dumps({"sites": list(names), "since": since}))


def _end_with_the_server(home: Path, out: Path) -> None:
    """End this process when the SuperLink is gone: Flower's own would wait for it, and hold the run's folder."""
    link = int((home / LINK).read_text(encoding="utf-8"))
    while True:
        time.sleep(TICK)
        try:
            os.kill(link, 0)
        except ProcessLookupError:
            write_atomic(out / STOPPED, f"The server went away; when it is up, go on with: fedprompt resume {out}")
            os._exit(1)


app = server_app(main)
