"""Flower's commands, flags, environment and files, as of 1.41 and 1.42."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tomli_w

from fedprompt.text_files import json_text, load_json_object

OLDEST, NEWEST = (1, 41), (1, 42)  # minor versions tested
CONNECTION = "deployment"  # name of a deployment's SuperLink for Flower's command line

APP = """# A thin Flower app: the code is the installed fedprompt, at the server and at every site.
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedprompt-app"
version = "0.1.0"
description = "Federated prompt tuning over the sites of a deployment"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={oldest},<2.0", "fedprompt"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedprompt"
fab-format-version = 1
flwr-version-target = "{oldest}"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
recipe = "" # a recipe's file at the server, TOML text, or the name of a recipe that comes with fedprompt
set = ""    # keys of the recipe to change, such as "train.rounds=3 seed=2"
out = ""    # folder of the run at the server; empty: a new one in the deployment's folder
accept-changes = false # resume a run although its recipe, versions or images have changed
"""


@dataclass(frozen=True)
class Tls:
    """Files of a server with TLS."""

    authority: Path
    certificate: Path
    key: Path


def newer() -> str:
    """A warning if the installed Flower is newer than the one this package was tested with, else nothing."""
    installed = version("flwr")
    major, minor = (int(part) for part in installed.split(".")[:2])
    if (major, minor) <= NEWEST:
        return ""
    return f"Flower {installed} is newer than {'.'.join(map(str, NEWEST))}, the newest that fedprompt was tested with."


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of every Flower process: no telemetry, offline, its own home, polling for work every 0.25 s.

    No process imports a module from its working folder, which at a site may be as somebody else made it.
    """
    scripts = sysconfig.get_path("scripts")
    return {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def superlink(*, port: int, database: Path, tls: Tls | None) -> list[str]:
    """The command that starts the server, on loopback; the network reaches it through the reverse proxy alone."""
    safety = ["--insecure"]
    if tls is not None:
        safety = ["--ssl-ca-certfile", str(tls.authority), "--ssl-certfile", str(tls.certificate)]
        safety += ["--ssl-keyfile", str(tls.key), "--enable-supernode-auth"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--database", str(database)]
    program = [sys.executable, "-m", "fedprompt.runtimes.flower.superlink"]
    return [*program, *safety, *place, "--disable-runtime-dependency-installation"]


def supernode(*, address: str, port: int, folder: Path, authority: Path | None, key: Path | None) -> list[str]:
    """The command that starts a site's SuperNode, its own port on loopback; it starts no process for its tasks."""
    safety = ["--insecure"]
    if authority is not None and key is not None:
        safety = ["--root-certificates", str(authority), "--auth-supernode-private-key", str(key)]
    settings = f"home={json_text(str(folder))}"
    place = ["--superlink", address, "--host", "127.0.0.1", "--port", str(port)]
    return [_script("flower-supernode"), *safety, *place, "--isolation", "process", "--node-config", settings]


def client_processes(*, port: int, module: str, folder: Path) -> list[str]:
    """The command that starts a module in a site's folder for every task of the SuperNode with this port."""
    return [sys.executable, "-m", "fedprompt.runtimes.flower.clientapp", str(port), module, str(folder)]


def register(public_key: Path, name: str) -> list[str]:
    """The command that registers the site with this key under this name."""
    return [_script("flwr"), "supernode", "register", str(public_key), CONNECTION, "--name", name, "--format", "json"]


def unregister(node: str) -> list[str]:
    """The command that takes back the registration of the site with this node id."""
    return [_script("flwr"), "supernode", "unregister", node, CONNECTION, "--format", "json"]


def nodes() -> list[str]:
    """The command that lists the registered sites."""
    return [_script("flwr"), "supernode", "list", CONNECTION, "--format", "json"]


def run(app: Path, settings: Path) -> list[str]:
    """The command that starts a run with settings from a TOML file and prints its number as JSON."""
    return [_script("flwr"), "run", str(app), CONNECTION, "--run-config", str(settings), "--format", "json"]


def stop(run_id: str) -> list[str]:
    """The command that stops a run."""
    return [_script("flwr"), "stop", run_id, CONNECTION, "--format", "json"]


def ask(command: Sequence[str], folder: Path) -> dict[str, object]:
    """Run a Flower command; its JSON output, with `success`, and `error-message` if that is false."""
    environ = environment(folder / "flower")
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False)
    with suppress(ValueError):
        return load_json_object(done.stdout[max(done.stdout.find("{"), 0) :])
    return {"success": False, "error-message": (done.stdout + done.stderr).strip()[-500:]}


def connections(port: int, authority: Path | None) -> str:
    """The content of Flower's config.toml."""
    about: dict[str, str | bool] = {"address": f"127.0.0.1:{port}"}
    about |= {"insecure": True} if authority is None else {"root-certificates": str(authority)}
    return tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: about}})


def app_files(
    licence: str, *, server: str = "fedprompt.deploy.apps:server", client: str = "fedprompt.deploy.apps:client"
) -> Mapping[str, str]:
    """The files of the thin app, by name; `server` and `client` are the addresses of its ServerApp and ClientApp."""
    oldest = ".".join(map(str, (*OLDEST, 0)))
    return {"pyproject.toml": APP.format(oldest=oldest, server=server, client=client), "LICENSE": licence}


def _script(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)
