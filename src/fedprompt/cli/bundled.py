"""The commands `describe list`, `show` and `find`, and the review of the bundled descriptions files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Bundled = Annotated[str, typer.Argument(metavar="NAME", help="A file of: fedprompt describe list")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the file as it is, for programs.")]
ClassName = Annotated[list[str], typer.Argument(metavar="CLASS...", help="Class names.")]


def list_bundled() -> None:
    """List the bundled descriptions with the number of classes and phrases, and how many phrases are shared."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.descriptions.bundled import names, read
    from fedprompt.descriptions.bundled.quality import share_used_twice

    rows = []
    for name in names():
        known = read(name)
        phrases = sum(map(len, known.attributes.values()))
        shared = f"{share_used_twice(known.attributes):.0%}"
        rows.append([name, f"{len(known.attributes)}", f"{phrases:,}", shared, ", ".join(known.conditions) or "none"])
    plain_console().print(rows_table(["name", "classes", "phrases", "shared", "conditions"], rows))


def show(name: Bundled, as_json: AsJson = False) -> None:
    """Print a bundled descriptions file: classes, attributes, synonyms, conditions, licence and provenance."""
    from fedprompt.descriptions.bundled import path, read

    known = read(name)
    if as_json:
        typer.echo(path(name).read_text(encoding="utf-8"), nl=False)
        return
    typer.echo(f"{name}: {len(known.attributes)} classes. Licence: {known.licence}.")
    typer.echo(known.provenance.sentence)
    for one, phrases in known.attributes.items():
        also = f" ({', '.join(known.synonyms[one])})" if one in known.synonyms else ""
        typer.echo(f"{one}{also}: {'; '.join(phrases)}")
    if known.conditions:
        typer.echo(f"Conditions ({known.conditions_source}): {', '.join(known.conditions)}")


def find(names: ClassName) -> None:
    """Find classes in the bundled descriptions by name or synonym; exit code 2 if one is in none.

    The first file of a line is the one that descriptions.attributes = "bundled" takes for these classes.
    """
    from fedprompt.descriptions import bundled

    found = bundled.find(names)
    for name in names:
        if name in found.missing:
            typer.echo(f"{name.strip() or repr(name)}: in no bundled file{bundled.suggestion(name)}", err=True)
            continue
        held = bundled.holders(name)
        order = dict.fromkeys((found.origins[name], *held))
        places = ", ".join(file if held[file] == name else f"{file} ({held[file]})" for file in order)
        typer.echo(f"{name}: {'; '.join(found.attributes[name])}\n  in {places}")
    if found.missing:
        raise typer.Exit(2)


def review_bundled(names: tuple[str, ...], pages: Path | None) -> None:
    """Print the quality of bundled files as a table, and write their review pages; exit code 2 if a rule is broken."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.descriptions.bundled import names as known
    from fedprompt.descriptions.bundled import read
    from fedprompt.descriptions.bundled.quality import measure_bundled
    from fedprompt.descriptions.review import review, write_pages
    from fedprompt.errors import UserError, did_you_mean

    for name in names:
        if name not in known():
            hint = did_you_mean(name, known())
            raise UserError(f"{name} is neither a file nor a bundled one{hint} (known: {', '.join(known())}).")

    found = {name: measure_bundled(name) for name in names}
    head = ["name", "classes", "phrases", "shared", "grade", "tokens", "flags"]
    rows = [
        [
            *(name, f"{one.classes}", f"{one.phrases:,}", f"{one.shared:.0%}"),
            *(f"{one.grade:.1f}", f"{one.tokens}", f"{len(one.flags)}"),
        ]
        for name, one in found.items()
    ]
    plain_console().print(rows_table(head, rows))
    for name, one in found.items():
        for flag in one.flags:
            typer.echo(f"{name}: {flag.entry}: {flag.text}")
        if pages is not None:
            pages.mkdir(parents=True, exist_ok=True)
            title = f"Bundled descriptions {name}"
            written = write_pages(pages / f"{name}.json", review(read(name), title=title))
            typer.echo(f"Review: {', '.join(map(str, written))}")
    if any(one.flags for one in found.values()):
        raise typer.Exit(2)
