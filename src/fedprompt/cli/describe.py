"""The commands `describe`: generate, convert and review class descriptions; the work is in `fedprompt.descriptions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.bundled import find, list_bundled, review_bundled, show
from fedprompt.cli.config import TrustCode, finite
from fedprompt.cli.program import interrupt_code
from fedprompt.errors import UserError, plural

if TYPE_CHECKING:  # every command imports what it needs itself: --help must not wait for torch
    from fedprompt.data.descriptions import Descriptions
    from fedprompt.descriptions.cost import Estimate
    from fedprompt.descriptions.endpoint import Endpoint
    from fedprompt.descriptions.pipeline import GenerationResult
    from fedprompt.experiments.class_names import ClassNames

describe = typer.Typer(no_args_is_help=True, help="Make, convert and review attributes and conditions.")

Output = Annotated[
    Path, typer.Option("--out", "-o", help="The descriptions file; review pages and transcript are written beside it.")
]
Model = Annotated[
    str, typer.Option("--llm", metavar="MODEL", help="A model of the server at --url, else of the llm library.")
]
Url = Annotated[
    str, typer.Option(help="An OpenAI-compatible server, e.g. http://localhost:11434/v1.", envvar="OPENAI_BASE_URL")
]
KeyEnv = Annotated[str, typer.Option(help="Environment variable with the server's key.")]
Classes = Annotated[Path | None, typer.Option(help="Text file with one class name per line.")]
Data = Annotated[str | None, typer.Option(metavar="RECIPE", help="A recipe whose data set has the classes.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe.")
]
Concurrent = Annotated[int, typer.Option(min=1, max=64, help="Concurrent requests; models on this machine take one.")]
PerMinute = Annotated[float, typer.Option(callback=finite, min=0, help="Requests per minute; 0 sets no limit.")]
Timeout = Annotated[float, typer.Option(callback=finite, min=1, max=86_400, help="Timeout of a request in seconds.")]
Attempts = Annotated[int, typer.Option(min=1, max=20, help="Attempts per request before giving up.")]
Temperature = Annotated[float, typer.Option(callback=finite, min=0, max=2, help="Sampling temperature of the model.")]
Seed = Annotated[int, typer.Option(help="Seed of every request, and of the combinations of labels.")]
Repairs = Annotated[int, typer.Option(min=0, max=10, help="Further requests after an invalid answer.")]
Brief = Annotated[bool, typer.Option("--brief", help="One-line prompts, for very small models.")]
PriceIn = Annotated[
    float, typer.Option(callback=finite, min=0, help="Price of a million input tokens, for the estimate.")
]
PriceOut = Annotated[
    float, typer.Option(callback=finite, min=0, help="Price of a million output tokens, for the estimate.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the estimate, and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace lists that were edited by hand, too.")]
Backbone = Annotated[
    str | None, typer.Option(help='A CLIP, or "demo", to find near-duplicates and measure the separation of classes.')
]


@describe.command()
def attributes(
    out: Output,
    llm: Model,
    classes: Classes = None,
    data: Data = None,
    settings: Settings = None,
    trust_code: TrustCode = None,
    count: Annotated[int, typer.Option(min=1, max=30, help="Attributes per class.")] = 5,
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
    """Query a language model for visual attributes of every class. Only class names leave this machine."""
    from fedprompt.descriptions.llm_client import RateLimit
    from fedprompt.descriptions.pipeline import GenerationJob, generate_attributes, open_endpoint
    from fedprompt.descriptions.validated_query import GenerationSettings

    known = _known_classes(classes, data, settings, trust_code)
    endpoint = open_endpoint(llm, url=url, key_env=key_env, timeout=timeout)
    rate_limit = RateLimit(concurrent=concurrent, per_minute=per_minute, attempts=attempts)
    with _progress(out, "describing classes") as on_done:
        job = GenerationJob(
            out, endpoint, rate_limit, overwrite, _agree(endpoint, price_in, price_out, dry_run=dry_run), on_done
        )
        result = generate_attributes(
            known.names, job, GenerationSettings(count, repairs, temperature, seed=seed, brief=brief)
        )
    if result is not None:
        _report(out, result, known, backbone)


@describe.command()
def conditions(
    out: Output,
    llm: Model,
    data: Data = None,
    classes: Classes = None,
    settings: Settings = None,
    trust_code: TrustCode = None,
    count: Annotated[int, typer.Option(min=1, max=20, help="Conditions in the file.")] = 5,
    combinations: Annotated[int, typer.Option(min=1, max=5000, help="Combinations of labels to describe.")] = 60,
    sentences: Annotated[int, typer.Option(min=1, max=20, help="Sentences per combination.")] = 3,
    context: Annotated[int, typer.Option(min=1000, help="Characters of sentences in one request.")] = 6000,
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
    """Query a language model for co-occurrence conditions of labels. Only class names leave this machine."""
    from fedprompt.descriptions.conditions import ConditionSettings
    from fedprompt.descriptions.llm_client import RateLimit
    from fedprompt.descriptions.pipeline import GenerationJob, generate_conditions, open_endpoint
    from fedprompt.descriptions.validated_query import GenerationSettings

    known = _known_classes(classes, data, settings, trust_code)
    chosen = known.combinations(combinations, seed=seed)
    endpoint = open_endpoint(llm, url=url, key_env=key_env, timeout=timeout)
    rate_limit = RateLimit(concurrent=concurrent, per_minute=per_minute, attempts=attempts)
    generation = GenerationSettings(count, repairs, temperature, max_tokens=600, seed=seed, brief=brief)
    with _progress(out, "describing scenes") as on_done:
        job = GenerationJob(
            out, endpoint, rate_limit, overwrite, _agree(endpoint, price_in, price_out, dry_run=dry_run), on_done
        )
        result = generate_conditions(known.names, chosen, job, ConditionSettings(sentences, context, generation))
    if result is not None:
        _report(out, result, known, backbone)


@describe.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSON file of class names and attributes.")],
    out: Output,
    classes: Classes = None,
    data: Data = None,
    settings: Settings = None,
    trust_code: TrustCode = None,
    backbone: Backbone = None,
) -> None:
    """Convert existing attributes to a descriptions file; lists missing classes and keys that are no class."""
    from fedprompt.descriptions.convert import convert as read
    from fedprompt.descriptions.edits import write_descriptions
    from fedprompt.descriptions.pipeline import GenerationResult
    from fedprompt.experiments.class_names import read_class_names

    known = read_class_names(classes, data, settings or (), trusted=trust_code or ())
    if out.exists():
        raise UserError(f"{out} exists; move it away or write to another file.")
    found = read(source, known.names)
    write_descriptions(out, found.descriptions)
    for name in found.missing:
        typer.echo(f"Missing: {name}", err=True)
    for key in found.unused:
        typer.echo(f"Not a class: {key}", err=True)
    _report(out, GenerationResult(found.descriptions, (), found.rejections), known, backbone)


@describe.command()
def review(
    file: Annotated[
        str,
        typer.Argument(metavar="[FILE]", help="A descriptions file or a bundled one; by default all bundled."),
    ] = "",
    classes: Classes = None,
    data: Data = None,
    settings: Settings = None,
    trust_code: TrustCode = None,
    backbone: Backbone = None,
    pages: Annotated[Path | None, typer.Option(help="Folder for the review pages of bundled files.")] = None,
) -> None:
    """Write the review pages of a descriptions file again, after an edit; exit code 2 if anything is flagged.

    Of bundled files it prints their quality, rule by rule.
    """
    from fedprompt.data.descriptions import read_descriptions
    from fedprompt.descriptions import bundled
    from fedprompt.experiments.class_names import read_class_names

    path = Path(file)  # "" is the working folder, which is no file
    if not path.is_file():
        if classes or data or backbone:
            raise UserError("--classes, --data and --backbone are for the review of a file of your own.")
        review_bundled((file,) if file else bundled.names(), pages)
        return
    if pages is not None:
        raise UserError(f"--pages is for bundled files; the review pages of {file} are written beside it.")
    known = read_class_names(classes, data, settings or (), trusted=trust_code or ())
    if _write_pages(path, read_descriptions(path), {}, known, backbone):
        raise typer.Exit(2)


describe.command("list")(list_bundled)
describe.command()(show)
describe.command()(find)


def _known_classes(
    classes: Path | None, data: str | None, settings: list[str] | None, trust_code: list[str] | None
) -> ClassNames:
    from fedprompt.experiments.class_names import read_class_names

    known = read_class_names(classes, data, settings or (), trusted=trust_code or ())
    if not known.names:
        raise UserError("There are no classes; give --classes FILE, or --data RECIPE.")
    return known


def _agree(endpoint: Endpoint, price_in: float, price_out: float, *, dry_run: bool) -> Callable[[Estimate], bool]:
    def agree(found: Estimate) -> bool:
        typer.echo(f"{endpoint.name}: {found.sentence(price_in, price_out)}")
        return not dry_run

    return agree


@contextmanager
def _progress(out: Path, text: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress: a bar on a terminal, a line per tenth elsewhere; Ctrl-C prints how to continue."""
    from fedprompt.api.progress import counting, plain_console

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
        typer.echo(f"Interrupted; answers so far are kept beside {out}. The same command continues.", err=True)
        raise typer.Exit(interrupt_code()) from error


def _report(out: Path, result: GenerationResult, known: ClassNames, backbone: str | None) -> None:
    flags = _write_pages(out, result.descriptions, result.rejections, known, backbone)
    if result.kept:
        typer.echo(f"Kept as edited by hand: {', '.join(result.kept)}")
    if flags:
        typer.echo(f"{plural(flags, 'flag')}: read the page, edit {out.name}, then: fedprompt describe review {out}")


def _write_pages(
    path: Path,
    descriptions: Descriptions,
    rejections: Mapping[str, tuple[str, ...]],
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
        title=f"Descriptions in {path.name}",
        names=known.names,
        rejections=rejections,
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
