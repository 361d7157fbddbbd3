"""The evaluation protocol in words: who holds which images, how they train, and what the figures mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedprompt.config.recipe import Recipe
from fedprompt.data.partition.base import Shard, class_counts
from fedprompt.errors import plural
from fedprompt.experiments.deciding import threshold_in_words
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.keep import Keep
from fedprompt.experiments.server import describe_server
from fedprompt.experiments.test_sets import LOCAL, LOCAL_AMONG_ALL, TestSet
from fedprompt.records.run_record import figure_title

MOST_NAMED = 8  # clients whose domains the line before training names
MEASURED = "HM is the harmonic mean of Local, Base and New."
DECIDED = (
    "A label counts as present from {}. Unknown labels are ignored, and classes without a positive image are left out "
    "of mAP."
)


def protocol(experiment: Experiment) -> str:
    """The evaluation protocol in two paragraphs: clients, rounds and server; models, candidates and averaging."""
    recipe, clients = experiment.recipe, len(experiment.clients)
    train = recipe.train
    taking_part = max(math.floor(train.fraction * clients + 1e-9), 1)
    every = f"every {plural(recipe.evaluate.every, 'round')} and " if recipe.evaluate.every else ""
    when = f"{every}after {_kept_round(experiment.plan.keep, trains_on_all=not experiment.dataset.new)}"
    who = "all" if taking_part == clients else f"{taking_part:,} of them"
    return (
        f"{plural(clients, 'client')} (partition rule {recipe.partition.rule}), {who} in every round; "
        f"{_rounds(recipe)} of {plural(train.local_epochs, 'local epoch')}; "
        f"{describe_server(train.server, weighting=train.weighting)}. {training_images(experiment)} "
        "A method may override these settings; the report lists its own under Methods.\n\n"
        f"Scores are of the global model, {when}; no round, threshold or class order is chosen on test images. "
        f"{_remark(experiment)}"
    ).strip()


def _remark(experiment: Experiment) -> str:
    """What the figures mean; HM only where all that it is made of is measured."""
    dataset = experiment.dataset
    if dataset.space.kind == "multi":
        return DECIDED.format(threshold_in_words(experiment) or "probability 0.5")
    return MEASURED if dataset.new and experiment.recipe.evaluate.local else ""


def _rounds(recipe: Recipe) -> str:
    rounds = plural(recipe.train.rounds, "round")
    return f"at most {rounds}, as many as fit into {recipe.minutes:g} minutes," if recipe.minutes else rounds


def _kept_round(keep: Keep, *, trains_on_all: bool) -> str:
    if not keep.metric:
        return "the last round"
    name = figure_title(keep.metric, trains_on_all=trains_on_all)
    early = f", where training ends after {plural(keep.patience, 'scoring')} without a better one" * (keep.patience > 0)
    return f"the round with the best {name} on held-out images{early}"


def training_images(experiment: Experiment) -> str:
    """Who holds what: clients, their part of the training images, of how many classes, and what they hold out."""
    if experiment.plan.data_at_sites and not experiment.dataset.rows(split="train").numel():
        return "The sites hold the training images."
    held_out = experiment.clients.num_held_out
    return _holdings(experiment) + (f" {held_out:,} of these images are held out from training." if held_out else "")


def _holdings(experiment: Experiment) -> str:
    dataset, shards = experiment.dataset, experiment.partition.shards
    used = len({row for shard in shards for row in shard.rows})
    shots = experiment.plan.rule.options.get("shots", "all")
    drawn = f" ({plural(shots, 'shot')} per class)" if isinstance(shots, int) else ""
    held = f"{used:,} of {plural(len(dataset.rows(split='train')), 'training image')}{drawn}"
    if len(shards) == 1 or not used:  # images at sites are not seen here
        return f"{'One client holds' if len(shards) == 1 else 'Clients hold'} {held}."
    classes = (class_counts(experiment.partition, dataset) > 0).sum(dim=1).tolist()
    sizes, total = _span([len(shard.rows) for shard in shards]), plural(len(dataset.base), "class")
    alone = f" {_have(classes.count(1))} images of one class only." if 1 in classes and len(dataset.base) > 1 else ""
    return f"{len(shards):,} clients{_named(shards)} hold {held}: {sizes} each, of {_span(classes)} of {total}.{alone}"


def _have(clients: int) -> str:
    return f"{plural(clients, 'client')} {'has' if clients == 1 else 'have'}"


def _named(shards: Sequence[Shard]) -> str:
    """The clients' domains, if they are few and each client has one."""
    domains = [shard.domain for shard in shards]
    if not all(domains) or len(domains) > MOST_NAMED or len(set(domains)) < len(domains):
        return ""
    return f", one per domain ({', '.join(f'{shard.domain} {len(shard.rows):,}' for shard in shards)}),"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def may_predict_all(experiment: Experiment) -> bool:
    """Whether every client may predict all classes that are trained on, whatever images it holds."""
    dataset, shards = experiment.dataset, [shard for shard in experiment.partition.shards if shard.rows]
    return bool(shards) and all(set(shard.classes) == set(dataset.base_of(shard.rows[0])) for shard in shards)


def local_meaning(experiment: Experiment, test_sets: Sequence[TestSet]) -> str:
    """What the column Local shows: clients' candidates may be all that are trained on, whatever images they hold."""
    dataset = experiment.dataset
    if may_predict_all(experiment) and any(one.split == "base" for one in test_sets):
        title = figure_title("base", trains_on_all=not dataset.new)
        return LOCAL_AMONG_ALL.format("base " if dataset.new else "", title[:1].upper() + title[1:])
    return LOCAL[dataset.space.kind]
