"""The commands of real federations: deploy, server, site and status, beside those of `fedprompt.cli.main`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import Settings
from fedprompt.errors import UserError

if TYPE_CHECKING:
    from fedprompt.config.recipe import Recipe
    from fedprompt.experiments.context import RunCallbacks

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the deployment, or of the site.")]
deploy = typer.Typer(no_args_is_help=True, help="Prepare a federation over machines, or rehearse one on this machine.")
server = typer.Typer(no_args_is_help=True, help="The server of a deployment.")
site = typer.Typer(no_args_is_help=True, help="One site of a deployment.")


@deploy.callback()
@server.callback()
@site.callback()
def need_flower() -> None:
    """Say what to install before anything fails on it."""
    if find_spec("flwr") is None:
        raise UserError("Federations over machines need Flower; install it with: pip install 'fedprompt[flower]'")


def mount(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(deploy, name="deploy")
    app.add_typer(server, name="server")
    app.add_typer(site, name="site")
    app.command()(status)


@deploy.command("init")
def init(
    folder: Folder,
    address: Annotated[str, typer.Option(help="Host name or IP address that sites connect to.")],
    sites: Annotated[list[str], typer.Option("--site", help="A site's name; give one for each.")],
    name: Annotated[str, typer.Option(help="Name of the deployment.")] = "sites",
    port: Annotated[int, typer.Option(help="Port of the reverse proxy.")] = 8443,
    local_port: Annotated[int, typer.Option(help="Port of the server on its own loopback.")] = 8000,
    quorum: Annotated[int, typer.Option(help="Answers without which a round changes nothing.")] = 1,
    deadline: Annotated[float, typer.Option(help="Seconds a site has for a round.")] = 600.0,
) -> None:
    """Make authority, server certificate, proxy and service files, the app, and a folder to hand to each site."""
    from fedprompt.config.recipe import checked
    from fedprompt.deploy.init import init_deployment
    from fedprompt.deploy.settings import Deployment

    tables = {"name": name, "address": address, "port": port, "local_port": local_port, "sites": tuple(sites)}
    deployment = checked(Deployment, tables | {"quorum": quorum, "deadline": deadline}, origin="deploy init")
    init_deployment(folder, deployment)
    typer.echo(f"Made {folder}. Hand each site its folder: {', '.join(str(folder / 'sites' / one) for one in sites)}.")
    typer.echo(f"Put the public keys that come back into {folder / 'keys'}.")
    typer.echo(f"Start the server with: fedprompt server up {folder}")


@deploy.command("rehearse")
def rehearse(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for it all; must be empty.")] = Path("rehearsal"),
    full: Annotated[bool, typer.Option("--full", help="Also kill worker and server, and freeze a site.")] = False,
    settings: Settings = None,
) -> None:
    """Play a federation on this machine: a server, a proxy and three sites as real processes, one of them killed."""
    from fedprompt.deploy.rehearsal.checks import rehearse as play

    rows = play(out, full=full, say=typer.echo, settings=settings or ())
    failed = [row.what for row in rows if not row.held]
    typer.echo(
        f"{len(rows) - len(failed)} of {len(rows)} bars held" + (f"; not: {', '.join(failed)}" if failed else ".")
    )
    if failed:
        raise typer.Exit(2)


@server.command("up")
def server_up(folder: Folder) -> None:
    """Keep the server of a deployment running, until Ctrl-C."""
    from fedprompt.deploy import daemons

    daemons.server_up(folder, say=typer.echo)


@site.command("init")
def site_init(folder: Folder) -> None:
    """At the site: make its key pair; the public key goes to the server's operator, the private one nowhere."""
    from fedprompt.deploy.init import init_site

    typer.echo(f"Send {init_site(folder)} to the server's operator.")


@site.command("up")
def site_up(
    folder: Folder,
    data: Annotated[Path | None, typer.Option(help="Folder with one folder of pictures a class.")] = None,
) -> None:
    """Keep a site running: its worker and its connection to the server, until Ctrl-C."""
    from fedprompt.deploy import daemons

    daemons.site_up(folder, data=data, say=typer.echo)


def status(folder: Folder) -> None:
    """Show who is connected to a deployment and how its runs stand."""
    need_flower()
    from fedprompt.cli.console import plain_console, rows_table
    from fedprompt.deploy.submit import runs_of, sites_of

    console = plain_console()
    console.print(rows_table(("site", "status"), [(one.name, one.status) for one in sites_of(folder)]))
    rows = [
        (one.folder.name, one.status, one.trial, f"{one.round_number}/{one.rounds}", str(one.waiting or ""))
        for one in runs_of(folder)
    ]
    if rows:
        console.print(rows_table(("run", "status", "trial", "rounds", "waiting for"), rows))


def run_over(recipe: Recipe, deployment: Path, out: Path, *, callbacks: RunCallbacks) -> None:
    """The half of `fedprompt run` that has a deployment."""
    need_flower()
    from fedprompt.deploy.submit import run_on

    run_on(recipe, deployment, out, callbacks=callbacks)


def resume_over(out: Path, *, callbacks: RunCallbacks) -> bool:
    """Go on with a run over sites; False if the run is none."""
    if not (out / "federation.json").exists():  # one of ours, known without importing what only deployments need
        return False
    need_flower()
    from fedprompt.deploy.submit import resume_on

    resume_on(out, callbacks=callbacks)
    return True
