"""A trial's adapter folder with its model card: data, clients, figures, protocol, privacy and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fedprompt.clip.hub import published_id
from fedprompt.data.partition.base import Shard
from fedprompt.errors import plural
from fedprompt.experiments.events import versions
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial
from fedprompt.records.adapter import TASKS, AdapterCard, save_adapter, to_json
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.records.run_folder import RunFolder
from fedprompt.records.run_record import Score, TrialRecord
from fedprompt.report import Run, read_run
from fedprompt.report.decisions import near_duplicates
from fedprompt.report.legend import meaning
from fedprompt.report.tables import privacy_text
from fedprompt.updates import State

ADAPTERS = "adapters"
LAST = "@last"  # ends the name of the last round's adapter, where another round is kept; no trial's name has an @
MOST_CLIENTS = 50  # rows of the card's table of clients
TASK = "zero-shot-image-classification"  # the Hub's name
UNTESTED = "Not tested."
MOST_SCORES = 1000  # in metrics.json
CARD = """# {title}

{idea}

A fedprompt adapter: {trainable}, without the backbone `{backbone}`.

```
fedprompt predict ADAPTER_FOLDER image.jpg --classes "cat,dog"
```

## Data
`{data}`: {base} {seen}, {new} held out. {clients}

Left out because they could not be read: {unreadable}.

## Figures
{figures}

## Protocol
{protocol}

## Privacy
{privacy}

## Left out
{left_out}

## Limits
Measured on the test images of `{data}` only. On other images or classes it may be worse than the backbone alone.{near}
"""


def adapter_folder(run_folder: Path, trial: str) -> Path:
    """The folder of a trial's adapter in a run."""
    return run_folder / ADAPTERS / trial


def save_trial_adapter(  # noqa: PLR0913  (the parts of an adapter, the last three by name)
    run: RunFolder,
    experiment: Experiment,
    trial: Trial,
    shared: State,
    *,
    exports: Mapping[str, str | bytes],
    threshold: float | None = None,
    suffix: str = "",
) -> None:
    """Write the adapter of a trial whose scores are recorded.

    `exports` are further files of its method; `threshold` is the decision threshold of multi-label data. With `suffix`
    it is that of another round than the scored one, and has no figures.
    """
    recorded = read_run(run.path)
    record = next(record for record in recorded.trials if record.name == trial.name)
    if suffix:
        record = replace(record, scores=(), kept=None)
    space = experiment.dataset.space
    names = tuple(space.names[label] for label in (*experiment.dataset.base, *experiment.dataset.new))
    card = AdapterCard(
        method=trial.method,
        task=TASKS[space.kind],
        base_model_name_or_path=experiment.recipe.backbone.path,
        base_model_sha256=experiment.clip.fingerprint,
        class_names=names,
        templates=(space.template,),
        params=dict(trial.options),
        precision=experiment.clip.precision,
        thresholds=None if threshold is None else (threshold,) * len(names),
        fitted_classes=len(experiment.dataset.base) if threshold is not None and experiment.dataset.new else None,
    )
    provenance = {
        "run": experiment.recipe.name,
        "trial": trial.name,
        "seed": experiment.recipe.seed,
        "recipe": experiment.recipe.model_dump(mode="json"),
        "versions": versions(),
        "data_fingerprint": experiment.dataset.source.fingerprint,
        "rounds": len(record.rounds),
        "kept_round": record.kept.round if record.kept else len(record.rounds),
        "left_out": _left_out(record),
    }
    metrics = {
        "figures": dict(record.figures),
        "scores": [
            {key: value for key, value in vars(score).items() if key not in ("classes", "per_class")}
            for score in _listed(record.scores)
        ],
    }
    save_adapter(
        adapter_folder(run.path, trial.name + suffix),
        card,
        shared,
        space=space,
        files={
            **exports,
            "README.md": _model_card(experiment, trial, recorded, record),
            "metrics.json": to_json(metrics),
            "provenance.json": to_json(provenance),
        },
    )


def _listed(scores: Sequence[Score]) -> Sequence[Score]:
    """All scores; of many those after the last round, of models that are not one client's."""
    if len(scores) <= MOST_SCORES:
        return scores
    return [score for score in scores if score.round == scores[-1].round and score.client is None]


def _left_out(record: TrialRecord) -> dict[str, list[int]]:
    """Round -> clients that were asked and sent no usable update."""
    return {str(event.round): sorted(event.failed) for event in record.rounds if event.failed}


def _model_card(experiment: Experiment, trial: Trial, run: Run, record: TrialRecord) -> str:
    recipe, dataset = experiment.recipe, experiment.dataset
    data = ModelCardData(
        license="unknown",  # the owner of the images decides, not this library
        library_name="fedprompt",
        base_model=published_id(recipe.backbone.path),
        pipeline_tag=TASK,
        tags=["federated-learning", "clip", "prompt-tuning"],
        model_name=f"{recipe.name}-{trial.name}",
        eval_results=[_result(dataset.name, run, column, value) for column, value in record.figures.items()],
    )
    body = CARD.format(
        title=f"{recipe.name}: {trial.name}",
        idea=record.about.idea,
        trainable=plural(record.about.trainable or 0, "trained parameter"),
        backbone=published_id(recipe.backbone.path) or Path(recipe.backbone.path).name,  # no path of this machine
        data=dataset.name,
        base=plural(len(dataset.base), "class"),
        new=len(dataset.new),
        seen="seen in training" if record.trains else "for the clients of the run",
        clients=_training(experiment, run, record),
        unreadable=plural(len(experiment.left_out), "image"),
        figures=_table(("split", "value", "meaning"), _figures(run, record)) if record.figures else UNTESTED,
        protocol=run.header.protocol if record.trains else f"Of the whole run: {run.header.protocol}",
        privacy=_privacy(record),
        near="".join(f" {sentence}" for sentence in near_duplicates(run)),
        left_out=", ".join(f"round {number}: {clients}" for number, clients in _left_out(record).items()) or "Nobody.",
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _training(experiment: Experiment, run: Run, record: TrialRecord) -> str:
    """What clients trained on and for how long, or that this method trains nothing."""
    if not record.trains:
        return "This method trains nothing."
    done, kept = len(record.rounds), record.kept
    which = f", of which the state after round {kept.round} was kept" if kept else ""
    clients = _table(("client", "classes", "training images"), _sites(experiment, run.header.partition))
    return f"It was trained for {plural(done, 'round')}{which}. What each client trained on:\n\n{clients}"


def _privacy(record: TrialRecord) -> str:
    if not record.trains:
        return "Nothing was trained, so nothing of any training image is in this folder."
    if spent := privacy_text(record):
        return f"{spent}. Losses and scores in this folder are not covered by it."
    return "None is promised: what clients trained went into this adapter without noise (epsilon: none)."


def _result(dataset: str, run: Run, column: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=column.partition(":")[2] or run.header.metric,
        metric_name=column,
        metric_value=round(value, 6),
    )


def _sites(experiment: Experiment, held: PartitionCounts | None) -> list[tuple[str, str, str]]:
    """Per client the number of classes that it has images of, and of training images."""
    shards, counts = experiment.partition.shards, held.counts if held else ()
    rows = [
        (shard.name, str(sum(map(bool, counts[row]))) if row < len(counts) else "", _images(shard, len(client.train)))
        for row, (shard, client) in enumerate(zip(shards[:MOST_CLIENTS], experiment.clients, strict=False))
    ]
    rest = len(shards) - len(rows)
    return [*rows, (f"and {rest} more", "", "")] if rest else rows


def _images(shard: Shard, trained: int) -> str:
    held_out = len(shard.rows) - trained
    return f"{trained} ({held_out} held out)" if held_out > 0 else str(trained)


def _figures(run: Run, record: TrialRecord) -> list[tuple[str, str, str]]:
    return [(run.title(column), f"{value:.4f}", meaning(run, column)) for column, value in record.figures.items()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Names come from clients and folders: a bar or a new line in one must not break the table.
    lines = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
