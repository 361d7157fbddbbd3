"""The command `site`: set up and run one site of a deployment, its roster and its audit trail."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedprompt.errors import UserError, plural
from fedprompt.text_files import LARGEST_TOML, json_text

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the deployment, or of the site.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; the fingerprints were compared.")]
site = typer.Typer(no_args_is_help=True, help="Set up and run one site of a deployment.")
roster = typer.Typer(no_args_is_help=True, help="The other sites that a site knows by their identity keys.")
site.add_typer(roster, name="roster")


@site.callback()
def need_flower() -> None:
    """Raise UserError if Flower is not installed."""
    if find_spec("flwr") is None:
        raise UserError("Federations over sites need Flower; install it with: pip install 'fedprompt[flower]'")


@site.command("init")
def site_init(folder: Folder) -> None:
    """Create a site's keys; the public keys go to the server's operator, the private keys stay at the site."""
    from fedprompt.deploy.init import changed_settings, init_site

    _say_keys(folder, init_site(folder))
    for setting in changed_settings(folder):
        typer.echo(f"Set by whoever sent you the folder: {setting}; see whether you want it so.")
    typer.echo(
        f"{folder / 'site.toml'} is yours: [policy] says which jobs this site accepts, [images] how it reads images."
    )


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: every field, with whole hashes.")] = False,
) -> None:
    """Verify a site's audit trail and privacy ledger, and print who asked what, which rule decided, and what left."""
    from fedprompt.api.progress import plain_console
    from fedprompt.deploy import site_report

    audit = site_report.site_audit(folder)
    if as_json:
        typer.echo(json_text(site_report.audit_json(audit, last=last), indent=2))
        return
    width = plain_console().width
    table = site_report.audit_lines(audit.messages[-last:], width=width) if audit.messages else ()
    for line in (*table, *site_report.audit_summary(audit, width=width)):
        typer.echo(line)


@site.command("recipe")
def site_recipe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe from `fedprompt deploy recipe --out`.")],
) -> None:
    """Show the SHA-256 of a recipe that this site was sent, for `recipes` in its policy, and what the recipe asks."""
    from fedprompt.config.recipe import parse_recipe
    from fedprompt.deploy.audit import text_hash
    from fedprompt.text_files import read_unicode

    text = read_unicode(file, most=LARGEST_TOML)
    recipe = parse_recipe(text, origin=file.name)
    typer.echo(f"{text_hash(text)}  {recipe.method.title}, {plural(recipe.train.rounds, 'round')}")
