"""Data sets and clients: any source by name, function or object, and any partition rule by name or function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedprompt.api.progress import counting, plain_console, warn
from fedprompt.arguments import flag, require, shown, whole
from fedprompt.config.blocks import Block, bind, option_parameters, require_options
from fedprompt.config.registry import PARTITION_RULES, SOURCES, Registry, sources_of
from fedprompt.data.dataset import Dataset
from fedprompt.data.images import ImageSource
from fedprompt.data.in_memory import dataset_of_columns, image_source
from fedprompt.data.intake.table_columns import IMAGE_COLUMNS
from fedprompt.data.joined import partitioned
from fedprompt.data.partition.base import Partition
from fedprompt.data.problems import find_problems, scan_images
from fedprompt.data.quality import Remark, Ways, quality_warnings
from fedprompt.data.sources.huggingface import undecoded
from fedprompt.data.splits import is_drawn
from fedprompt.data.table_source import TableSource
from fedprompt.demo import SOURCES as EMBEDDED
from fedprompt.errors import UserError, did_you_mean, series, worded
from fedprompt.experiments.clients import Clients
from fedprompt.file_system import is_file

if TYPE_CHECKING:
    import pandas

    from fedprompt.clip.model import Clip

TAKES = (
    "load_dataset takes the name of a source, a function, a DataFrame, a datasets.Dataset or a list of pairs "
    "(image, label)"
)
GIVE_SPLIT = 'as in load_dataset(splits["train"]), or join them in one table with a column `split`'
DATA = "make one with load_dataset(...)"  # where an argument is no data set
PATIENCE = 2.0  # seconds before a bar shows how far reading is
LABEL_COLUMNS = ("label", "labels", "class")
Source = "str | Callable[..., Dataset] | pandas.DataFrame | datasets.Dataset | Sequence[tuple[object, object]]"


@worded("keywords")
def load_dataset(source: Any = EMBEDDED[0], /, **options: Any) -> Dataset:
    """Load a data set.

    `source` is one of

    - the name of a source (`"image_folder"`, `"label_table"`, `"coco"`, `"published"`, ...) with its options as
      keywords, as a recipe's table [data] has them;
    - a function that returns a `Dataset`, with its keywords;
    - a pandas DataFrame with a column of images (`image` or `path`: paths, PIL images or arrays) and one of labels
      (`label` or `labels`: names, numbers with `classes=`, or lists for several per image), and `split` and `domain`
      if there are any; the keywords `image`, `label`, `split` and `domain` name other columns;
    - a `datasets.Dataset` of Hugging Face, read in the same way; its class names are used;
    - a list of pairs (path or image, label).

    Without `source` it is the embedded drawings with one label each, with so many images per class: `train`, `test`.
    Raises UserError for an unknown source or option and for everything in the data that cannot be understood.

    Examples:
        >>> import fedprompt as fp
        >>> data = fp.load_dataset(train=4, test=4)
        >>> data.space.kind, len(data.space) == len(data.base) + len(data.new)
        ('single', True)
    """
    if isinstance(source, str | os.PathLike):
        return _named(os.fspath(source), options)
    if callable(source):
        return _of_function(source, options)
    if hasattr(source, "column_names") and isinstance(source, Mapping):
        raise UserError(f"This {type(source).__name__} has the splits {', '.join(source)}; give one, {GIVE_SPLIT}.")
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return _of_hub_table(source, options)
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        return _of_frame(source, options)
    return _of_pairs(source, options)


def _named(name: str, options: Mapping[str, Any]) -> Dataset:
    if name not in SOURCES.names() and ":" not in name and os.path.exists(name):
        raise UserError(f"{name!r} is a path; name its form too, {_forms(name)}.")
    block = _block(SOURCES, name, options, place="load_dataset")
    with counting(plain_console(stderr=True), "Reading the data set", after=PATIENCE) as on_step:
        dataset = cast("Dataset", block.returning(Dataset)(on_step=on_step))
    return replace(dataset, table={"source": name, **block.written})


def _forms(path: str) -> str:
    """The call that reads a file or folder, as far as names and heads of files say which source it is for."""
    found = sources_of(Path(path))
    calls = [f"load_dataset({source!r}, path={path!r})" for source in found]
    if calls:
        return f"as in {' or '.join(calls)}"
    return f"load_dataset(SOURCE, path={path!r}), where SOURCE is one of {', '.join(SOURCES.names())}"


def _of_function(source: Callable[..., object], options: Mapping[str, Any]) -> Dataset:
    block = _own_block(SOURCES, source, options, place="load_dataset")
    return cast("Dataset", block.returning(Dataset)())


def _block(registry: Registry, name: str, options: Mapping[str, Any], *, place: str) -> Block[Any]:
    return bind(name, registry.find(name, place=place), options, place=place)


def _own_block(
    registry: Registry, builder: Callable[..., object], options: Mapping[str, Any], *, place: str
) -> Block[Any]:
    name = getattr(builder, "__name__", type(builder).__name__)
    return bind(name, registry.own(builder, name, place=place), options, place=place)


def _of_pairs(pairs: Any, options: Mapping[str, Any]) -> Dataset:
    if not isinstance(pairs, Iterable):
        raise UserError(f"{TAKES}, not this {type(pairs).__name__}.")
    rows = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"{TAKES}; item {number} is {shown(pair)}, no pair.")
        rows.append(pair)
    if rows and all(_is_reversed(*pair) for pair in rows):
        raise UserError("The pairs are (label, image); give pairs (image, label), the image first.")
    source = image_source([image for image, _ in rows])
    return _of_columns(source, {**_taken(options), "label": [label for _, label in rows]}, options)


def _is_reversed(first: object, second: object) -> bool:
    """Whether a pair has a label first: a text that is no file, then an image or the path of a file."""
    if not isinstance(first, str) or is_file(Path(first).expanduser()):
        return False
    if isinstance(second, str | os.PathLike):
        return is_file(Path(os.fsdecode(second)).expanduser())
    return hasattr(second, "size") and hasattr(second, "__array_interface__")


def _taken(options: Mapping[str, Any]) -> dict[str, Sequence[object]]:
    """The columns beside a list of pairs, which are given as options."""
    given = {name: options.get(f"{name}s") for name in ("split", "domain")}
    return {name: values for name, values in given.items() if values is not None and not isinstance(values, Mapping)}


def _of_columns(source: ImageSource, columns: Mapping[str, Sequence[object]], options: Mapping[str, Any]) -> Dataset:
    rest = {name: value for name, value in options.items() if name not in ("splits", "domains")}
    block = bind("load_dataset", dataset_of_columns, rest, place="load_dataset")
    declared = options["splits"] if isinstance(options.get("splits"), Mapping) else None
    return cast("Dataset", block(source, columns["label"], columns.get("split"), columns.get("domain"), declared))


def _of_frame(frame: Any, options: Mapping[str, Any]) -> Dataset:
    known = [str(name) for name in frame.columns]
    if not known:
        raise UserError("The table has no columns; give one of images, such as 'image', and one of labels.")
    chosen, rest = _chosen_columns(known, options)
    if twice := next((name for name in chosen.values() if known.count(name) > 1), None):
        raise UserError(f"The table has {known.count(twice)} columns {twice!r}; rename or drop all but one of them.")
    columns = {name: list(frame[column]) for name, column in chosen.items()}
    return _of_columns(image_source(columns["image"]), columns, rest)


def _of_hub_table(table: Any, options: Mapping[str, Any]) -> Dataset:
    from datasets import Image

    chosen, rest = _chosen_columns(table.column_names, options)
    image = chosen["image"]
    columns = {name: list(table[column]) for name, column in chosen.items() if name != "image"}
    feature = table.features[chosen["label"]]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names and "classes" not in rest:
        rest = {**rest, "classes": tuple(names)}
    if isinstance(table.features[image], Image):  # decoded one by one: an image that cannot be is left out of a run
        return _of_columns(TableSource(undecoded(table, image, "the table"), image), columns, rest)
    return _of_columns(image_source(list(table[image])), columns, rest)


def _chosen_columns(known: Sequence[str], options: Mapping[str, Any]) -> tuple[Mapping[str, str], Mapping[str, Any]]:
    """The columns that hold images, labels, splits and domains, and the options that name none of them."""
    usual = {"image": IMAGE_COLUMNS, "label": LABEL_COLUMNS, "split": ("split",), "domain": ("domain",)}
    chosen: dict[str, str] = {}
    taken = (*usual, "splits", *option_parameters(dataset_of_columns))
    require_options("a table", options, taken, place="load_dataset")
    for what, names in usual.items():
        alike = (column for name in names for column in known if column.casefold() == name)
        column = options.get(what) or next(alike, "")
        if column and column not in known:
            hint = did_you_mean(str(column), known)
            raise UserError(f"The table has no column {column!r}{hint} (columns: {', '.join(known)}).")
        if column:
            chosen[what] = column
    if lacking := [what for what in ("image", "label") if what not in chosen]:
        others = [column for column in known if column not in chosen.values()]
        named = {what: options[what] for what in ("image", "label") if options.get(what)}
        proposed = {**dict(zip(lacking, others, strict=False)), **named}
        fix = f"name it, as in load_dataset(table, {_keywords(proposed)})" if len(others) >= len(lacking) else "add it"
        raise UserError(
            f"The table has no column {' or '.join(map(repr, usual[lacking[0]][:2]))} (columns: {', '.join(known)}); "
            f"{fix}."
        )
    if twice := next((one for one in chosen if list(chosen.values()).count(chosen[one]) > 1), None):
        both = series(f"the {what}s" for what in chosen if chosen[what] == chosen[twice])
        raise UserError(f"The column {chosen[twice]!r} cannot hold {both} at once; name a column for each.")
    return chosen, {name: value for name, value in options.items() if name not in usual}


def _keywords(values: Mapping[str, object]) -> str:
    """The values as keywords of a call, in the order of `load_dataset`'s."""
    return ", ".join(f"{name}={values[name]!r}" for name in ("image", "label") if name in values)


@worded("keywords")
def check(
    data: Dataset,
    /,
    *,
    clip: Clip | None = None,
    duplicates: bool = True,
    workers: int = 0,
    side: int | None = None,
) -> pandas.DataFrame:
    """Open every image that is in a split and list what is wrong or worth a look, as `fedprompt check` does.

    A row per finding: `kind` ("unreadable", "leak", "attributes", "labels", or "warning"), `rows` of the data set that
    it is about (of near-duplicates those that are not for training), and `message`. `duplicates` looks for
    near-duplicates of training images, `workers` processes open images. Images much smaller than what the backbone
    reads are told by `clip`, a backbone that is open, or by `side`, that of its input in pixels; without either, none
    are. Raises UserError for arguments of another type.

    Examples:
        >>> import fedprompt as fp
        >>> found = fp.check(fp.load_dataset(train=1, test=1), duplicates=False, side=32)
        >>> list(found.columns)
        ['kind', 'rows', 'message']
    """
    import pandas

    require(data, Dataset, "data", DATA)
    flag(duplicates, "duplicates")
    whole(workers, "workers", least=0)
    rows_read = [row for row in range(len(data.source)) if row not in data.excluded]
    scan = scan_images(data.source, rows_read, workers=workers, perceptual=duplicates)
    rows = [{"kind": one.kind, "rows": one.rows, "message": one.message} for one in find_problems(data, scan)]
    can = data.table.get("names_together") is False and is_drawn(data.intake.origins)
    ways = Ways("leave them out by data.without(rows)", "load_dataset(..., names_together=True)" if can else "")
    remarks = quality_warnings(data, scan, input_side=_side(clip, side), ways=ways)
    warnings = (*map(Remark, data.report.all_warnings()), *remarks)
    rows += [{"kind": "warning", "rows": one.rows, "message": one.message} for one in warnings]
    return pandas.DataFrame(rows, columns=["kind", "rows", "message"])


def _side(clip: Clip | None, side: int | None) -> int:
    """The side in pixels of what the backbone reads, 0 if it is not known."""
    if clip is None:
        return 0 if side is None else whole(side, "side")
    from fedprompt.clip.model import Clip

    require(clip, Clip, "clip", "open one with load_clip(...)")
    if side is not None:
        raise UserError("`clip` says how large the images of the backbone are; leave `side` out.")
    return clip.image_tower.side


@worded("keywords")
def partition(
    data: Dataset,
    rule: str | Callable[..., Partition] = "domains_or_dirichlet",
    /,
    *,
    held_out: float = 0.0,
    **options: Any,
) -> Clients:
    """Distribute the training images over clients by a partition rule.

    `rule` is the name of a rule (`"iid"`, `"dirichlet"`, `"class_chunks"`, `"by_domain"`, ...) or a function
    `(dataset, *, options) -> Partition`; `options` are its keywords. Without a rule there is a client per domain or,
    where there are no domains, label skew by Dirichlet(0.5). A share `held_out` of each client's images is not
    trained on. The result is a sequence of clients: `len(clients)`, `clients[0].train`, `clients.plot()`,
    `clients.to_pandas()`. What the rule warns of is a Python warning (UserWarning). Raises UserError for an unknown
    rule or option, more clients than images, or a rule of one's own that hands out an image twice or one that is not to
    be trained on.

    Examples:
        >>> import fedprompt as fp
        >>> data = fp.load_dataset(train=4, test=4)
        >>> clients = fp.partition(data, "iid", clients=3)
        >>> len(clients), clients[0].name
        (3, 'client-0')
    """
    require(data, Dataset, "data", DATA)
    if isinstance(held_out, bool) or not isinstance(held_out, Real) or not 0 <= held_out < 1:
        raise UserError(f"`held_out` is {shown(held_out)}; give a share of at least 0 and less than 1.")
    if not (isinstance(rule, str) or callable(rule)):
        raise UserError(f"`rule` is {rule!r}; give the name of a rule or a function that returns a Partition.")
    block = (
        _block(PARTITION_RULES, rule, options, place="partition")
        if isinstance(rule, str)
        else _own_block(PARTITION_RULES, rule, options, place="partition")
    )
    found = partitioned(data, block, name=block.name)
    for sentence in found.warnings:
        warn(sentence)
    table = {"rule": rule, **block.written} if isinstance(rule, str) else {}
    return Clients(data, replace(found, table=table), test=True, held_out=held_out)


def given_in_python(*, name: str = "") -> Dataset:
    """Stands in a recipe for a data set that was given from Python, which no recipe can read; raises UserError."""
    raise UserError(
        f"The data set{f' {name!r}' if name else ''} of this run was given from Python; continue with "
        "fedprompt.resume(folder, data=..., clients=...)."
    )


def partition_in_python(dataset: Dataset, *, by: str = "") -> Partition:
    """Stands in a run's recipe for a partition by a function of one's own; raises UserError."""
    raise UserError(
        f"The partition{f' by {by!r}' if by else ''} of this run was given from Python; continue with "
        "fedprompt.resume(folder, data=..., clients=...)."
    )
