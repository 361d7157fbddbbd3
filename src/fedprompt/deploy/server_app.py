"""The Flower ServerApp: one run over the sites of the deployment that the SuperLink was started for."""

from __future__ import annotations

import os
from pathlib import Path

from fedprompt.deploy.settings import HOME, PROCESS, STOPPED, load_deployment
from fedprompt.errors import UserError
from fedprompt.records import write_atomic
from fedprompt.runtimes.flower.apps import Settings, server_app
from fedprompt.runtimes.flower.grid import GridMailbox


def main(mailbox: GridMailbox, settings: Settings) -> None:
    """Conduct what the run's configuration says: `recipe` is TOML text or a name, `out` the run's folder."""
    from fedprompt.build.runs import free_folder
    from fedprompt.config import find_recipe
    from fedprompt.deploy.conduct import conduct

    home = Path(os.environ[HOME])
    recipe = str(settings["recipe"])
    text = recipe if "\n" in recipe else find_recipe(recipe).read_text(encoding="utf-8")
    out = Path(str(settings["out"])) if settings["out"] else free_folder(home / "runs" / "run")
    write_atomic(out / PROCESS, str(os.getpid()))
    (out / STOPPED).unlink(missing_ok=True)
    try:
        conduct(text, out, mailbox, load_deployment(home), home=home)
    except BaseException as error:
        # The run's own record says it too, unless the run never came so far.
        write_atomic(out / STOPPED, str(error) if isinstance(error, UserError) else repr(error))
        raise


app = server_app(main)
