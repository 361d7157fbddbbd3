"""The commands `deploy`, `server`, `site` and `status` of federations over real sites."""

from __future__ import annotations

from collections.abc import Sequence
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
deploy = typer.Typer(no_args_is_help=True, help="Set up a federation over real sites, or rehearse one on this machine.")
server = typer.Typer(no_args_is_help=True, help="Run the server of a deployment.")
site = typer.Typer(no_args_is_help=True, help="Set up and run one site of a deployment.")
roster = typer.Typer(no_args_is_help=True, help="The other sites that a site knows by their identity keys.")
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; the fingerprints were compared.")]


@deploy.callback()
@server.callback()
@site.callback()
def need_flower() -> None:
    """Raise UserError if Flower is not installed."""
    if find_spec("flwr") is None:
        raise UserError("Federations over sites need Flower; install it with: pip install 'fedprompt[flower]'")


def mount(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(deploy, name="deploy")
    app.add_typer(server, name="server")
    site.add_typer(roster, name="roster")
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


@site.command("init")
def site_init(folder: Folder) -> None:
    """Create a site's keys; the public keys go to the server's operator, the private keys stay at the site."""
    from fedprompt.deploy.init import init_site

    _say_keys(folder, init_site(folder))


@site.command("rotate")
def site_rotate(folder: Folder) -> None:
    """Replace a site's keys; it connects again when the operator has the new public keys."""
    from fedprompt.deploy.identity import rotate_site_keys
    from fedprompt.deploy.settings import load_site

    _say_keys(folder, rotate_site_keys(folder.resolve(), load_site(folder).name))
    typer.echo("Tell the other sites to add the new key to their rosters, and restart `fedprompt site up` here.")


def _say_keys(folder: Path, public: Path) -> None:
    from fedprompt.deploy.certificates import fingerprint
    from fedprompt.deploy.identity import load_identity
    from fedprompt.deploy.settings import load_site

    typer.echo(f"Send {public} to the server's operator.")
    typer.echo(f"Fingerprint of this site:   {fingerprint(load_identity(folder).public)}")
    if server := load_site(folder).roster.server:
        typer.echo(f"Fingerprint of the server:  {server}")
    typer.echo("Compare them by telephone with the other sites and the operator.")


@roster.command("show")
def roster_show(folder: Folder) -> None:
    """Show the fingerprints of this site, its peers and the server."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.deploy.roster import members
    from fedprompt.deploy.settings import load_site

    rows = [(one.name, one.fingerprint) for one in members(folder)]
    if server_key := load_site(folder).roster.server:
        rows.append(("(server)", server_key))
    plain_console().print(rows_table(("site", "fingerprint"), rows))


@roster.command("add")
def roster_add(
    folder: Folder,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="roster.pub, or files of single sites.")],
    yes: Yes = False,
) -> None:
    """Add peers, or their new keys, from files of public keys, after their fingerprints were compared."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.deploy.roster import accept, proposed

    found = proposed(folder, files)
    if not found:
        typer.echo("The roster has all of these keys already.")
        return
    rows = [(one.name, one.fingerprint, one.replaces or "new") for one in found]
    plain_console().print(rows_table(("site", "fingerprint", "replaces"), rows))
    if not yes:
        typer.confirm("Has each of these sites read out this fingerprint as its own?", abort=True)
    accept(folder, found)
    typer.echo(f"Added {', '.join(one.name for one in found)}.")


@roster.command("remove")
def roster_remove(folder: Folder, name: Annotated[str, typer.Argument(help="Name of the site.")]) -> None:
    """Remove a peer; this site takes part in no secure sum with it any more."""
    from fedprompt.deploy.roster import remove

    remove(folder, name)
    typer.echo(f"Removed {name}.")


@site.command("up")
def site_up(
    folder: Folder,
    data: Annotated[
        Path | None, typer.Option(help="The site's images, one folder per class; remembered for the next start.")
    ] = None,
) -> None:
    """Run a site until Ctrl-C: its worker and its connection to the server."""
    from fedprompt.deploy import daemons

    daemons.site_up(folder, data=data, say=typer.echo)


@site.command("audit")
def site_audit(
    folder: Folder,
    last: Annotated[int, typer.Option(min=0, help="Messages to print, the newest; 0 for all.")] = 50,
) -> None:
    """Verify a site's audit trail and privacy ledger, and print who asked what, which rule decided, and what left."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.deploy.site_report import audit_rows, ledger_sentences

    head, rows = audit_rows(folder)
    plain_console().print(rows_table(head, rows[-last:] if last else rows))
    typer.echo(f"{len(rows)} messages; every line of the audit trail and of the ledger is as it was written.")
    for sentence in ledger_sentences(folder):
        typer.echo(sentence)


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
