"""Choose the tuned defaults of methods: `python -m benchmarks.tune_defaults` draws images, trains, writes tuned.toml.

Every method is trained with every learning rate of one grid on several drawn data sets, with the embedded CLIP and the
recipes for images of one's own. A method's default is the rate with the largest mean gain over zero-shot CLIP. To be
run again when the embedded CLIP changes, with another folder; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.own_images import TUNED, draw
from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.config import tuned
from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.config.recipe_tables import MethodTable
from fedprompt.demo import weights_folder
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.plan import Trial, resolve
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.federated.evaluate import evaluate
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.records.atomic_files import append_line, write_atomic
from fedprompt.runtimes.simulator import Simulator
from fedprompt.text_files import json_text

GRID = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
SEED = 100
SETTINGS = ("backbone.path=demo", "train.rounds=10", "evaluate.local=false", f"seed={SEED}")
REFERENCE = "zeroshot"
METRIC = {"single": "accuracy", "multi": "mean_average_precision"}
TARGET = Path(tuned.__file__).with_suffix(".toml")
OPTIONS = {"multi-label": {"fedmvp": "lora = false, "}}  # its threshold is a cross-entropy, which these tasks lack
HEAD = """# Learning rates of AdamW per method, and the mean gain over zero-shot CLIP in points on the drawn data sets.
# Written by: python -m benchmarks.tune_defaults
"""
Scores = dict[tuple[str, str], float]  # (data set, trial) -> figure


@functools.cache
def experiment_on(name: str, settings: Sequence[str], chosen: Sequence[str]) -> Experiment:
    """The search on one data set: the reference, and each method with each rate."""
    recipe = load_recipe(find_recipe(TUNED[name].recipe), [*SETTINGS, *settings])
    trials = tuple(
        MethodTable(name=method, label=f"{method}-{rate:g}", train={"lr": rate}) for method in chosen for rate in GRID
    )
    return assemble(resolve(recipe.model_copy(update={"method": MethodTable(name=REFERENCE), "compare": trials})))


def trained_methods() -> list[str]:
    """The methods that train something, without those whose package is not installed."""
    clip = Clip.load(weights_folder())
    return [name for name in methods.installed() if tuple(methods.load(name)(clip).parameters())]


def score(experiment: Experiment, trial: Trial) -> float:
    """Train a trial and return its headline figure on the test images, for personal methods of the first client."""
    experiment, method = experiment.of(trial), trial.make_method(experiment.clip)
    transport = Simulator(method, experiment.clip, experiment.trainers(trial), trial.settings)
    shared, settings = initial_state(method)[0], trial.settings
    clients, rounds = range(len(experiment.clients)), settings.rounds if shared else 0
    for record in federate(method, transport, clients=clients, rounds=rounds, seed=settings.seed):
        shared = record.shared
    examples = make_test_sets(experiment.dataset)[0].examples
    model = transport.restore(shared, transport.owners[0])
    return evaluate(model, experiment.clip, examples, name="test").figures[METRIC[examples.space.kind]]


def gains(scores: Scores, name: str, method: str) -> dict[float, float]:
    """Rate -> a method's figure on a data set less that of the reference, in points."""
    return {rate: 100 * (scores[name, f"{method}-{rate:g}"] - scores[name, REFERENCE]) for rate in GRID}


def choose(found: Sequence[Mapping[float, float]]) -> tuple[float, float]:
    """The rate with the largest mean gain, the largest of equal ones, and that gain."""
    means = {rate: fmean(one[rate] for one in found) for rate in GRID}
    best = max(means, key=lambda rate: (round(means[rate], 1), rate))
    return best, means[best]


def table(scores: Scores) -> str:
    """The defaults of all methods that were trained with all rates on all data sets, as TOML."""
    text = HEAD
    for kind, recipe in (("single-label", "own_folder"), ("multi-label", "own_table")):
        text += f"\n[{kind}]\n"
        names = [name for name, one in TUNED.items() if one.recipe == recipe]
        for method in methods.names():
            if all((name, f"{method}-{rate:g}") in scores for name in names for rate in GRID):
                rate, gain = choose([gains(scores, name, method) for name in names])
                options = OPTIONS.get(kind, {}).get(method, "")
                text += f"{method} = {{ gain = {round(gain, 1) + 0.0}, {options}train = {{ lr = {rate:g} }} }}\n"
    return text


def main() -> None:
    """Draw, train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs") / "tune-defaults", help="folder of images and scores")
    parser.add_argument("--methods", nargs="*", help="train only these")
    given = parser.parse_args()
    log, scores = given.out / "scores.jsonl", Scores()
    settings = draw(TUNED, given.out / "images", seed=SEED)
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        name, trial, value = json.loads(line)
        scores[name, trial] = value
    every = trained_methods()
    for method in given.methods or every:
        for name in TUNED:
            experiment = experiment_on(name, settings[name], tuple(every))
            for trial in experiment.trials:
                if trial.method in (REFERENCE, method) and (name, trial.name) not in scores:
                    scores[name, trial.name] = score(experiment, trial)
                    append_line(log, json_text([name, trial.name, scores[name, trial.name]]).encode() + b"\n")
        write_atomic(TARGET, table(scores))


if __name__ == "__main__":
    main()
