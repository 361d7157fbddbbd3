"""A site's processes for the tasks of a SuperNode, with fedprompt's own ClientApp: `... clientapp PORT MODULE FOLDER`.

Flower's own SuperExec starts, as the type of the run asks, a program that installs and imports the app which the server
sends with it, so whoever has the server could run any code at every site. This SuperExec starts one module for every
task; in its process nothing of the server's app is installed or imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

from flwr.clientapp import ClientApp
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor


class OneModule(SubprocessExecutor):  # type: ignore[misc]  # Flower's types are not read
    """Starts the same module for every task, whichever program its type names, with the arguments of `answer_one`."""

    def __init__(self, module: str, folder: str) -> None:
        self.module, self.folder = module, folder

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start a process for a task, which ends with this one."""
        task = [spec.runtime_api_address, spec.token, str(os.getpid())]
        subprocess.Popen([sys.executable, "-m", self.module, *task], cwd=self.folder)
        return LaunchResult.accepted()


def main(port: str, module: str, folder: str) -> None:
    """Start `module` for every task of the SuperNode whose Runtime API has this port of loopback, until stopped."""
    _replace(run_superexec, "get_executor", lambda *_, **__: OneModule(module, folder))
    run_superexec.run_superexec(runtime_api_address=f"127.0.0.1:{port}", insecure=True)


def answer_one(app: ClientApp, address: str, token: str, parent: str) -> None:
    """Answer the message of a task at a Runtime API; `app` takes the place of the server's. Ends with its parent."""
    from flwr.supernode.runtime import run_clientapp  # a fraction of what Flower's own program imports

    _replace(run_clientapp, "install_from_fab", lambda *_, **__: None)
    _replace(run_clientapp, "get_load_client_app_fn", lambda **_: lambda *_: app)
    run_clientapp.run_clientapp(
        runtime_api_address=address,
        token=token,
        insecure=True,  # on loopback
        parent_pid=int(parent),
        runtime_dependency_install=False,
    )


def _replace(module: ModuleType, name: str, own: object) -> None:
    """Replace a function of Flower; an unknown version, which may not call it, ends the process instead."""
    if not hasattr(module, name):
        raise SystemExit(f"This version of Flower has no {name}; install one that fedprompt was tested with.")
    setattr(module, name, own)


if __name__ == "__main__":
    main(*sys.argv[1:])
