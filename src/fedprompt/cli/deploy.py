"""The commands `deploy`, `server` and `status` of federations over real sites; `site` is in `cli.site`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import RecipeName, Settings, TrustCode, load
from fedprompt.cli.site import Folder, need_flower, site

if TYPE_CHECKING:
    from fedprompt.config.recipe import Recipe
    from fedprompt.experiments.context import RunCallbacks

deploy = typer.Typer(no_args_is_help=True, help="Set up a federation over real sites, or rehearse one on this machine.")
server = typer.Typer(no_args_is_help=True, help="Run the server of a deployment.")


deploy.callback()(need_flower)
server.callback()(need_flower)


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
    sites: Annotated[list[str], typer.Option("--site", help="Name of a site; repeat the option for each.")],
    name: Annotated[str, typer.Option(help="Name of the deployment.")] = "sites",
    port: Annotated[int, typer.Option(help="Port of the reverse proxy.")] = 8443,
    local_port: Annotated[int, typer.Option(help="Port of the server on its own loopback.")] = 8000,
    quorum: Annotated[int, typer.Option(help="Sites whose updates a round needs; with fewer it changes nothing.")] = 1,
    deadline: Annotated[float, typer.Option(help="Seconds that a site has for a round.")] = 600.0,
) -> None:
    """Create the server's folder: certificates, proxy and service files, the app, and a folder to hand to each site."""
    from fedprompt.config.recipe import checked
    from fedprompt.deploy.init import init_deployment
    from fedprompt.deploy.settings import Deployment

    tables = {"name": name, "address": address, "port": port, "local_port": local_port, "sites": tuple(sites)}
    deployment = checked(Deployment, tables | {"quorum": quorum, "deadline": deadline}, origin="deploy init")
    init_deployment(folder, deployment)
    typer.echo(
        f"Created {folder}. Hand each site its folder: {', '.join(str(folder / 'sites' / one) for one in sites)}."
    )
    typer.echo(f"Put the sites' public keys into {folder / 'keys'}.")
    typer.echo(f"Start the server with: fedprompt server up {folder}")


@deploy.command("renew")
def renew(
    folder: Folder,
    authority_key: Annotated[Path | None, typer.Option(help="The authority's key, if it was moved elsewhere.")] = None,
) -> None:
    """Renew the server's certificate, which is valid for two years."""
    from fedprompt.deploy.init import renew_certificates

    for step in renew_certificates(folder, authority_key=authority_key):
        typer.echo(step)


@deploy.command("remove")
def remove_site(folder: Folder, name: Annotated[str, typer.Argument(help="Name of the site.")]) -> None:
    """Remove a site from a deployment; its key is refused from then on."""
    from fedprompt.deploy.init import remove_site as remove

    remove(folder, name)
    typer.echo(f"Removed {name}. Each other site removes it with: fedprompt site roster remove FOLDER {name}")


@deploy.command("roster")
def deploy_roster(folder: Folder) -> None:
    """Write the sites' identity keys to roster.pub, to hand to every site, and show their fingerprints."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.deploy.roster import ROSTER, write_roster

    found = write_roster(folder)
    plain_console().print(rows_table(("site", "fingerprint"), [(one.name, one.fingerprint) for one in found]))
    typer.echo(f"Hand {folder / ROSTER} to every site.")


@deploy.command("recipe")
def deploy_recipe(
    folder: Folder,
    recipe: RecipeName,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the recipes, a file per method.")] = None,
    trust_code: TrustCode = None,
) -> None:
    """Show the SHA-256 of the recipes that sites would receive, for `recipes` in their policies; nobody is asked."""
    plan = load(recipe, settings, trust_code)
    from urllib.parse import quote

    from fedprompt.deploy.audit import text_hash
    from fedprompt.deploy.server_run import job_recipes
    from fedprompt.deploy.settings import load_deployment
    from fedprompt.records.atomic_files import write_atomic
    from fedprompt.records.output_folder import require_output_folder

    if out is not None:
        require_output_folder(out)
    for trial, text in job_recipes(plan.recipe, load_deployment(folder)).items():
        typer.echo(f"{text_hash(text)}  {trial}")
        if out is not None:
            write_atomic(out / f"{quote(trial, safe='')}.toml", text)


@deploy.command("rehearse")
def rehearse(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the rehearsal; must be empty.")] = Path(
        "rehearsal"
    ),
    full: Annotated[bool, typer.Option("--full", help="Also kill worker and server, and suspend a site.")] = False,
    attacks: Annotated[bool, typer.Option("--attacks", help="Play the attacks of docs/privacy.md instead.")] = False,
    settings: Settings = None,
    prepare: Annotated[
        str, typer.Option(metavar="HOST", help="Only make the folders, for containers: the server's is HOST.")
    ] = "",
) -> None:
    """Rehearse a federation on this machine: server, proxy and three sites as real processes, one of them killed."""
    from fedprompt.deploy.rehearsal.checks import rehearse as run_checks
    from fedprompt.deploy.rehearsal.processes import prepare_containers

    if prepare:
        prepare_containers(out, address=prepare)
        typer.echo(f"Made the folders of the server and of three sites in {out / 'machines'}.")
        return
    if attacks:
        _play_attacks(out, settings or ())
        return
    results = run_checks(out, full=full, say=typer.echo, settings=settings or ())
    failed = [one.what for one in results if not one.met]
    typer.echo(
        f"{len(results) - len(failed)} of {len(results)} criteria met"
        + (f"; not met: {', '.join(failed)}" if failed else ".")
    )
    if failed:
        raise typer.Exit(2)


def _play_attacks(out: Path, settings: Sequence[str]) -> None:
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.deploy.rehearsal.attacks import play_attacks

    found = play_attacks(out, say=typer.echo, settings=settings)
    rows = [(one.attack, one.threat, one.happened, "held" if one.held else "FAILED") for one in found]
    plain_console().print(rows_table(("attack", "threat model", "what happened", "guarantee"), rows))
    if not all(one.held for one in found):
        raise typer.Exit(2)


@server.command("up")
def server_up(folder: Folder) -> None:
    """Run the server of a deployment until Ctrl-C."""
    from fedprompt.deploy import daemons

    daemons.server_up(folder, say=typer.echo)


def status(folder: Folder) -> None:
    """Show the sites of a deployment and the status of its runs."""
    need_flower()
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.deploy.init import expiry_warnings
    from fedprompt.deploy.submit import runs_of, sites_of

    console = plain_console()
    console.print(rows_table(("site", "status"), [(one.name, one.status) for one in sites_of(folder)]))
    rows = [
        (one.folder.name, one.status, one.trial, f"{one.round_number}/{one.rounds}", str(one.waiting or ""))
        for one in runs_of(folder)
    ]
    if rows:
        console.print(rows_table(("run", "status", "trial", "rounds", "waiting for"), rows))
    for warning in expiry_warnings(folder.resolve()):
        console.print(warning)


def run_over_sites(recipe: Recipe, deployment: Path, out: Path, *, callbacks: RunCallbacks) -> None:
    """`fedprompt run --on DEPLOYMENT`."""
    need_flower()
    from fedprompt.deploy.submit import run_on_deployment

    run_on_deployment(recipe, deployment, out, callbacks=callbacks)


def resume_over_sites(out: Path, *, callbacks: RunCallbacks, accept_changes: bool) -> bool:
    """Resume a run over sites; False for a simulated run."""
    if not (out / "federation.json").exists():  # checked without importing what only deployments need
        return False
    need_flower()
    from fedprompt.deploy.submit import resume_on_deployment

    resume_on_deployment(out, callbacks=callbacks, accept_changes=accept_changes)
    return True
