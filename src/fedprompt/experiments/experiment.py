"""The experiment of a plan: backbone, data set, partition, clients and trials as values, built one after another."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from fedprompt.clip.devices import find_device
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.loading import family_of
from fedprompt.clip.model import Clip
from fedprompt.config.recipe import Recipe
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.config.tuned import PAPER
from fedprompt.data.annotation import draw_missing, mask_labels
from fedprompt.data.dataset import Dataset
from fedprompt.data.images import OnStep
from fedprompt.data.partition.base import Partition
from fedprompt.data.problems import ImageScan, find_problems
from fedprompt.data.quality import Pair, Ways, figure_warnings, near_pairs
from fedprompt.demo import DEMO, weights_folder
from fedprompt.errors import UserError, wording
from fedprompt.experiments.class_descriptions import (
    check_distinct_classes,
    cut_texts,
    describe_origin,
    templated_spaces,
    with_descriptions,
)
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.plan import Plan, Trial, check_adversaries
from fedprompt.experiments.unreadable import MOST_HASHED, UnreadableImage, exclude_unreadable, scan_used_images
from fedprompt.federated.client import Client
from fedprompt.file_system import is_file, is_folder

Backbone = Callable[[BackboneTable], Clip]  # opens a backbone


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs; `trials` are those of the plan that the backbone carries, and know the classes.

    `described` is the data set with the class descriptions of each trial, by its name; `of` is the experiment as a
    trial sees it. `origins` says which bundled descriptions a trial uses, if any. `hidden` [N, C] are the labels that
    [annotation] removes from the training images of `dataset`, if any. `left_out` are the images that cannot be read,
    and `looked` is what opening images has found.
    """

    plan: Plan
    clip: Clip
    dataset: Dataset
    partition: Partition
    clients: Clients
    trials: tuple[Trial, ...]
    described: Mapping[str, Dataset]
    origins: Mapping[str, str] = field(default_factory=dict)
    hidden: Tensor | None = None
    left_out: tuple[UnreadableImage, ...] = ()
    looked: ImageScan = ImageScan({}, {})  # noqa: RUF009  (frozen)

    @property
    def recipe(self) -> Recipe:
        """The recipe with every default written out."""
        return self.plan.recipe

    @cached_property
    def problems(self) -> Mapping[str, tuple[str, ...]]:
        """Sentences on the problems of the images that were opened, by kind, without those that cannot be read."""
        found: dict[str, tuple[str, ...]] = {}
        for problem in find_problems(self.dataset, self.looked) if self.looked.digests else ():
            if problem.kind != "unreadable":
                found[problem.kind] = (*found.get(problem.kind, ()), problem.message)
        return found

    @cached_property
    def cut_texts(self) -> tuple[str, ...]:
        """A sentence on the classes whose texts the backbone does not read to the end, if there are any."""
        return cut_texts(self.clip, list(templated_spaces(self.dataset)))

    @cached_property
    def near_pairs(self) -> Sequence[Pair]:
        """The training image that each other image almost looks like, as far as images were compared."""
        return near_pairs(self.dataset, self.looked)

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what makes figures too high or silent about a class, where images were opened."""
        if not self.looked.digests:
            return ()
        ways = Ways(_where_pairs_are(self.recipe))
        found = tuple(one.message for one in figure_warnings(self.dataset, self.near_pairs, ways=ways))
        if len(self.looked.digests) + len(self.looked.unreadable) <= MOST_HASHED:
            return found
        unhashed = "fedprompt check looks for images that are almost the same in training and test; this run did not."
        return (*found, unhashed)

    @property
    def not_carried(self) -> tuple[str, ...]:
        """Why methods that the main one was to be compared with are left out: the backbone cannot carry them."""
        reasons = (trial.refusal(self.clip.family) for trial in self.plan.trials)
        return tuple(reason for reason in reasons if reason)

    @property
    def merged(self) -> tuple[str, ...]:
        """Which methods are left out because, on these data, they are the same as another one."""
        twins = ((trial, twin) for trial, twin in _with_twins(self.plan, self.dataset) if twin is not None)
        return tuple(f"{one.name} is left out: on these data it is the same as {twin.name}." for one, twin in twins)

    def trainers(self, trial: Trial) -> Sequence[Client]:
        """Who trains in a trial: the clients, or one client that holds all their images."""
        if trial.sharing != "pooled":
            return self.clients
        return self.clients.pooled()

    def of(self, trial: Trial) -> Experiment:
        """The same images and clients with the trial's class descriptions."""
        dataset = self.described[trial.name]
        return replace(self, dataset=dataset, clients=self.clients.over(dataset))


def _where_pairs_are(recipe: Recipe) -> str:
    """A clause on how to list all near-duplicates; empty where no short command does."""
    if wording() != "shell":
        return "fp.check(data) has their rows"
    path = recipe.data.options.get("path")
    return f"{shlex.join(['fedprompt', 'check', str(path), '--json'])} lists all pairs" if path else ""


def assemble(
    plan: Plan,
    *,
    on_step: OnStep | None = None,
    backbone: Backbone | None = None,
    unreadable: Mapping[int, str] | None = None,
    validates: bool = False,
) -> Experiment:
    """Open data and backbone and build the experiment; UserError if anything is wrong, before anything is written.

    `on_step(done, total)` is called with the progress of listing and then of opening images. `backbone` opens the CLIP,
    for a process that keeps one over many experiments. `unreadable` are rows known to be unreadable, with reasons; no
    image is opened then. With `validates` images of the validation part are opened even if the plan chooses no round.
    """
    recipe = plan.recipe
    if backbone is None and recipe.backbone.path not in (DEMO, ""):  # "": one that was opened in Python
        # before data are read, which may take long
        plan.trials[0].require_carried(family_of(recipe.backbone.path))
    dataset, validates = plan.source(on_step=on_step), validates or bool(plan.keep.metric)
    plan.keep.check_kind(dataset.space.kind)
    _check_defaults(plan, dataset)
    trials = trials_on(plan, dataset)
    # differs: the release partitions images after labels are hidden; here all rates train the same clients
    partition = plan.partition(dataset)
    check_adversaries(trials, len(partition.shards))
    looked = ImageScan({}, unreadable or {})
    if unreadable is None:
        workers = recipe.backbone.workers
        looked = scan_used_images(
            dataset, partition, whole=recipe.check, workers=workers, validates=validates, on_step=on_step
        )
    dataset, partition, left_out = exclude_unreadable(
        dataset, partition, looked.unreadable, share=recipe.data.unreadable, validates=validates
    )
    dataset, hidden = hide_labels(recipe, dataset)
    described, origins = _describe(dataset, trials, seed=recipe.seed)
    clip = (backbone or load_backbone)(recipe.backbone)
    trials[0].require_carried(clip.family)
    trials = tuple(trial for trial in trials if not trial.refusal(clip.family))
    check_distinct_classes(clip, dataset)
    clients = Clients(
        dataset,
        partition,
        test=recipe.evaluate.local and recipe.evaluate.test,
        held_out=recipe.evaluate.held_out,
        candidates=plan.keep.candidates,
    )
    _check_held_out(plan, clients)
    return Experiment(plan, clip, dataset, partition, clients, trials, described, origins, hidden, left_out, looked)


def _check_defaults(plan: Plan, dataset: Dataset) -> None:
    """Raise UserError if the plan's tuned defaults are for another kind of task than the data."""
    fitting = {"single": "single-label", "multi": "multi-label"}[dataset.space.kind]
    if plan.recipe.defaults not in (PAPER, fitting):
        raise UserError(
            f'{plan.origin}: defaults = "{plan.recipe.defaults}", but images of {dataset.name!r} are {fitting}; write '
            f'defaults = "{fitting}"'
            + (f" (--set defaults={fitting})." if wording() == "shell" else " among the settings.")
        )


def trials_on(plan: Plan, dataset: Dataset) -> tuple[Trial, ...]:
    """The trials with the options that depend on the data, without those that become another one by that.

    So a baseline with a template of its own is left out where the data set has that template. Trials that were the same
    before are kept: who names a method twice wants it twice.
    """
    return tuple(trial for trial, twin in _with_twins(plan, dataset) if twin is None)


def _with_twins(plan: Plan, dataset: Dataset) -> Iterator[tuple[Trial, Trial | None]]:
    """Every trial with the options that depend on the data, and the one before it that it has become by that."""
    kept: list[tuple[Trial, Trial]] = []
    for before in plan.trials:
        trial = before.with_data(dataset)
        same = (other for was, other in kept if trial.is_same(other) and not before.is_same(was))
        twin = next(same, None)
        if twin is None:
            kept.append((before, trial))
        yield trial, twin


def _check_held_out(plan: Plan, clients: Clients) -> None:
    """Raise UserError if a round is to be chosen by held-out images and no client has any."""
    if not plan.keep.metric or plan.data_at_sites or any(client.held_out for client in clients):
        return
    sizes = [len(shard.rows) for shard in clients.partition.shards]
    raise UserError(
        f'[train] keep = "best:{plan.keep.metric}" needs images that no client trains on, but the data have no '
        f"validation part, and [evaluate] held_out = {plan.recipe.evaluate.held_out:g} of at most {max(sizes)} images "
        f'per client is none; raise held_out, or set keep = "last".'
    )


def _describe(
    dataset: Dataset, trials: Sequence[Trial], *, seed: int
) -> tuple[Mapping[str, Dataset], Mapping[str, str]]:
    """The data set with the descriptions of each trial, and the bundled descriptions that trials use."""
    described, origins = {}, {}
    for trial in trials:
        table, reads = trial.descriptions, trial.reads
        described[trial.name] = dataset.map_label_space(partial(with_descriptions, table=table, seed=seed, reads=reads))
        if origin := describe_origin(dataset, table, reads):
            origins[trial.name] = origin
    return described, origins


def backbone_elsewhere(path: str) -> str:
    """The backbone of a recipe as other libraries open it: a Hub id, or an absolute folder."""
    folder = weights_folder() if path == DEMO else Path(path).expanduser()
    return str(folder.resolve()) if is_folder(folder) else path


def with_absolute_backbone(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths in [backbone]: a run may be resumed from another folder. Hub ids stay as they are.

    Not for a recipe that goes to sites, where an id must not become the path of a folder here.
    """
    table = recipe.backbone
    disk = str(Path(table.disk).expanduser().resolve()) if table.disk else table.disk
    return recipe.model_copy(
        update={"backbone": table.model_copy(update={"path": absolute_backbone(table.path), "disk": disk})}
    )


def absolute_backbone(path: str) -> str:
    """The path of a backbone as a run and an adapter keep it: absolute if it is a folder or a file here."""
    place = Path(path).expanduser()
    here = path not in (DEMO, "") and (is_folder(place) or is_file(place))
    return str(place.resolve()) if here else path


def load_backbone(table: BackboneTable) -> Clip:
    """The CLIP that the table names, on its device, with its feature cache; UserError as `find_device`."""
    device = find_device(table.device, table.precision)
    folder = Path(table.disk).expanduser() if table.disk else None
    held_on = device if table.memory_on == "device" else None
    cache = FeatureCache(memory_bytes=int(table.memory_gb * 2**30), folder=folder, device=held_on)
    path = weights_folder() if table.path == DEMO else table.path
    return Clip.load(
        path,
        cache=cache,
        device=device,
        batch=table.batch,
        workers=table.workers,
        precision=table.precision,
        activation_bytes=int(table.activations_gb * 2**30),
        origin=absolute_backbone(table.path),
    )


def hide_labels(recipe: Recipe, dataset: Dataset) -> tuple[Dataset, Tensor | None]:
    """The data set with incomplete annotation, as [annotation] says, and the mask of the labels that are hidden."""
    form, rate = recipe.annotation.form, recipe.annotation.missing
    if not rate:
        return dataset, None
    hidden = draw_missing(dataset, form=form, rate=rate, seed=recipe.seed)
    return mask_labels(dataset, hidden, form=form), hidden
