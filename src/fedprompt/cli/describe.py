"""`fedprompt describe`: words from language models on the command line; the pipeline itself is in `language`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.errors import UserError

if TYPE_CHECKING:  # every command imports what it needs itself: --help must not wait for torch
    from fedprompt.data.descriptions import Descriptions
    from fedprompt.descriptions.cost import Estimate
    from fedprompt.descriptions.endpoint import Endpoint
    from fedprompt.descriptions.pipeline import Made
    from fedprompt.experiments.class_names import ClassNames

describe = typer.Typer(no_args_is_help=True, help="Make, convert and review attributes and conditions.")

Output = Annotated[
    Path, typer.Option("--out", "-o", help="The descriptions file; pages and exchanges are written beside it.")
]
Model = Annotated[
    str, typer.Option("--llm", metavar="MODEL", help="A model of the server at --url, else of the llm library.")
]
Url = Annotated[
    str, typer.Option(help="An OpenAI-compatible server, e.g. http://localhost:11434/v1.", envvar="OPENAI_BASE_URL")
]
KeyEnv = Annotated[str, typer.Option(help="Environment variable with the server's key.")]
Classes = Annotated[Path | None, typer.Option(help="Text file with one class name a line.")]
Data = Annotated[str | None, typer.Option(metavar="RECIPE", help="A recipe whose data set has the classes.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of it.")]
Concurrent = Annotated[int, typer.Option(min=1, max=64, help="Questions at once; models on this machine take one.")]
PerMinute = Annotated[float, typer.Option(min=0, help="Questions a minute; 0 sets no limit.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds a server has for an answer.")]
Attempts = Annotated[int, typer.Option(min=1, max=20, help="Attempts at a question before giving up.")]
Temperature = Annotated[float, typer.Option(min=0, max=2)]
Seed = Annotated[int, typer.Option(help="Goes with every question, and draws combinations of labels.")]
Repairs = Annotated[int, typer.Option(min=0, max=10, help="Further questions about a bad answer.")]
Brief = Annotated[bool, typer.Option("--brief", help="One-line questions, for very small models.")]
PriceIn = Annotated[float, typer.Option(min=0, help="EpsilonFunction of a million tokens out, for the estimate.")]
PriceOut = Annotated[float, typer.Option(min=0, help="EpsilonFunction of a million tokens back, for the estimate.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace lists that were edited by hand, too.")]
Backbone = Annotated[
    str | None, typer.Option(help='A CLIP, or "demo": compare phrases, and measure how well they separate the classes.')
]


@describe.command()
def attributes(
    out: Output,
    llm: Model,
    classes: Classes = None,
    data: Data = None,
    settings: Settings = None,
    count: Annotated[int, typer.Option(min=1, max=30, help="Attributes a class.")] = 5,
    url: Url = "",
    key_env: KeyEnv = "OPENAI_API_KEY",
    concurrent: Concurrent = 4,
    per_minute: PerMinute = 0.0,
    timeout: Timeout = 60.0,
    attempts: Attempts = 5,
    temperature: Temperature = 0.3,
    seed: Seed = 0,
    repairs: Repairs = 2,
    brief: Brief = False,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    backbone: Backbone = None,
) -> None:
    """Ask a language model for visual attributes of every class. Only class names leave this machine."""
    from fedprompt.descriptions.pipeline import Job, make_attributes, open_endpoint
    from fedprompt.descriptions.requests import RateLimit
    from fedprompt.descriptions.validated_query import GenerationSettings

    known = _known_classes(classes, data, settings)
    endpoint = open_endpoint(llm, url=url, key_env=key_env, timeout=timeout)
    pace = RateLimit(concurrent=concurrent, per_minute=per_minute, attempts=attempts)
    with _asking(out, "describing classes") as on_done:
        job = Job(out, endpoint, pace, overwrite, _agree(endpoint, price_in, price_out, dry_run=dry_run), on_done)
        made = make_attributes(
            known.names, job, GenerationSettings(count, repairs, temperature, seed=seed, brief=brief)
        )
    if made is not None:
        _tell(out, made, known, backbone)


@describe.command()
def conditions(
    out: Output,
    llm: Model,
    data: Data = None,
    classes: Classes = None,
    settings: Settings = None,
    count: Annotated[int, typer.Option(min=1, max=20, help="Conditions in the end.")] = 5,
    combinations: Annotated[int, typer.Option(min=1, max=5000, help="Combinations of labels to ask about.")] = 60,
    sentences: Annotated[int, typer.Option(min=1, max=20, help="Sentences a combination.")] = 3,
    context: Annotated[int, typer.Option(min=1000, help="Characters of sentences in one question.")] = 6000,
    url: Url = "",
    key_env: KeyEnv = "OPENAI_API_KEY",
    concurrent: Concurrent = 4,
    per_minute: PerMinute = 0.0,
    timeout: Timeout = 60.0,
    attempts: Attempts = 5,
    temperature: Temperature = 0.3,
    seed: Seed = 0,
    repairs: Repairs = 2,
    brief: Brief = False,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    backbone: Backbone = None,
) -> None:
    """Ask a language model for conditions in which labels go together. Only class names leave this machine."""
    from fedprompt.descriptions.conditions import Plan
    from fedprompt.descriptions.pipeline import Job, make_conditions, open_endpoint
    from fedprompt.descriptions.requests import RateLimit
    from fedprompt.descriptions.validated_query import GenerationSettings

    known = _known_classes(classes, data, settings)
    chosen = known.combinations(combinations, seed=seed)
    endpoint = open_endpoint(llm, url=url, key_env=key_env, timeout=timeout)
    pace = RateLimit(concurrent=concurrent, per_minute=per_minute, attempts=attempts)
    plan = Plan(
        sentences, context, GenerationSettings(count, repairs, temperature, max_tokens=600, seed=seed, brief=brief)
    )
    with _asking(out, "describing scenes") as on_done:
        job = Job(out, endpoint, pace, overwrite, _agree(endpoint, price_in, price_out, dry_run=dry_run), on_done)
        made = make_conditions(known.names, chosen, job, plan)
    if made is not None:
        _tell(out, made, known, backbone)


@describe.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSON with attributes, FedMVP's kind.")],
    out: Output,
    classes: Classes = None,
    data: Data = None,
    settings: Settings = None,
    backbone: Backbone = None,
) -> None:
    """Make a descriptions file of attributes you already have; says which classes are missing and which keys are no class."""
    from fedprompt.descriptions.convert import convert as read
    from fedprompt.descriptions.edits import write_descriptions
    from fedprompt.descriptions.pipeline import Made
    from fedprompt.experiments.class_names import read_class_names

    known = read_class_names(classes, data, settings or ())
    if out.exists():
        raise UserError(f"{out} exists; move it away or write to another file.")
    found = read(source, known.names)
    write_descriptions(out, found.descriptions)
    for name in found.missing:
        typer.echo(f"Missing: {name}", err=True)
    for key in found.unused:
        typer.echo(f"Not a class: {key}", err=True)
    _tell(out, Made(found.descriptions, (), found.complaints), known, backbone)


@describe.command()
def review(
    words: Annotated[Path, typer.Argument(metavar="WORDS", help="A descriptions file.")],
    classes: Classes = None,
    data: Data = None,
    settings: Settings = None,
    backbone: Backbone = None,
) -> None:
    """Write the review pages of a descriptions file again, after editing it; exit code 2 if anything is flagged."""
    from fedprompt.data.descriptions import read_descriptions
    from fedprompt.experiments.class_names import read_class_names

    known = read_class_names(classes, data, settings or ())
    if _pages(words, read_descriptions(words), {}, known, backbone):
        raise typer.Exit(2)


def _known_classes(classes: Path | None, data: str | None, settings: list[str] | None) -> ClassNames:
    from fedprompt.experiments.class_names import read_class_names

    known = read_class_names(classes, data, settings or ())
    if not known.names:
        raise UserError("Say which classes: --classes FILE, or --data RECIPE.")
    return known


def _agree(endpoint: Endpoint, price_in: float, price_out: float, *, dry_run: bool) -> Callable[[Estimate], bool]:
    def agree(found: Estimate) -> bool:
        typer.echo(f"{endpoint.name}: {found.sentence(price_in, price_out)}")
        return not dry_run

    return agree


@contextmanager
def _asking(out: Path, text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line for every tenth elsewhere; Ctrl-C says how to go on."""
    from fedprompt.cli.console import counting, plain_console

    console = plain_console()

    def line(done: int, total: int) -> None:
        if done and (done == total or done % max(1, total // 10) == 0):
            typer.echo(f"{text}: {done}/{total}")

    try:
        if console.is_terminal:
            with counting(console, text) as bar:
                yield bar
        else:
            yield line
    except KeyboardInterrupt as error:
        typer.echo(f"Interrupted; answers so far are kept beside {out}. The same command goes on from there.", err=True)
        raise typer.Exit(130) from error


def _tell(out: Path, made: Made, known: ClassNames, backbone: str | None) -> None:
    flags = _pages(out, made.descriptions, made.complaints, known, backbone)
    if made.kept:
        typer.echo(f"Kept as edited by hand: {', '.join(made.kept)}")
    if flags:
        typer.echo(f"{flags} flag(s): read the page, edit {out.name}, then: fedprompt describe review {out}")


def _pages(
    path: Path,
    descriptions: Descriptions,
    complaints: Mapping[str, tuple[str, ...]],
    known: ClassNames,
    backbone: str | None,
) -> int:
    """Write both pages and return the number of flags."""
    from fedprompt.descriptions.review import review as examine
    from fedprompt.descriptions.review import write_pages
    from fedprompt.experiments.class_names import compare

    compared = compare(descriptions, known, backbone)
    found = examine(
        descriptions,
        title=f"Words in {path.name}",
        names=known.names,
        complaints=complaints,
        separations=compared.separations,
        overlaps=compared.overlaps,
    )
    markdown, page = write_pages(path, found)
    typer.echo(f"Descriptions: {path}")
    typer.echo(f"Review: {markdown}, {page}")
    for flag in found.flags[:10]:
        typer.echo(f"  {flag.entry}: {flag.text}")
    if len(found.flags) > 10:
        typer.echo(f"  and {len(found.flags) - 10} more")
    return len(found.flags)
