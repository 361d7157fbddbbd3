"""Compare rules for the decision threshold: `python -m benchmarks.thresholds` draws tables of labels and trains.

A threshold is fitted on the held-out images, a tenth of a client's, or on 200 of the images that clients hold; figures
are those of the test images, means over data sets and methods.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean

from torch import Tensor

from benchmarks.own_images import OwnImages, draw, scene_table, shape_table
from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.config.recipe_tables import MethodTable
from fedprompt.data.dataset import Examples
from fedprompt.experiments.deciding import FEWEST
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.plan import Trial, resolve
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.federated.evaluate import predict
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.ops.metrics import best_threshold, micro_f1
from fedprompt.runtimes.simulator import Simulator

SETS = {
    f"{name}-{count}": OwnImages("own_table", partial(table, images=count, clutter=0.2))
    for name, table in (("scenes", scene_table), ("shapes", shape_table))
    for count in (125, 400)
}
METHODS = ("zeroshot", "fedmpt", "fedram")
MOST = {"best OF1": math.inf, "best OF1 with at most 1.5 times the labels": 1.5, "with at most 1.25 times": 1.25}
MOST |= {"as many labels as there are": 1.0}
Decided = tuple[float, float, float]  # OF1, predicted labels per image, true ones


def decided(experiment: Experiment, trial: Trial) -> dict[str, Decided]:
    """Train a trial; the test figures at probability 0.5 and at thresholds fitted by each rule."""
    experiment, method = experiment.of(trial), trial.make_method(experiment.clip)
    transport = Simulator(method, experiment.clip, experiment.trainers(trial), trial.settings)
    shared = initial_state(method)[0]
    clients, rounds = range(len(experiment.clients)), trial.settings.rounds if shared else 0
    for record in federate(method, transport, clients=clients, rounds=rounds, seed=trial.settings.seed):
        shared = record.shared
    model = transport.restore(shared)

    def probabilities(examples: Examples) -> Tensor:
        return predict(model, experiment.clip, examples.images, examples.space).sigmoid()

    test, found = make_test_sets(experiment.dataset)[0].examples, {}
    scores = probabilities(test)
    thresholds = {"probability 0.5": 0.5}
    for where, fewest in (("held-out images", 0), (f"{FEWEST} images", FEWEST)):
        fitted = experiment.clients.deciding(fewest)
        assert fitted is not None, "a tenth of the images is held out"
        own = probabilities(fitted)
        thresholds |= {
            f"{rule}, {where}": best_threshold(own, fitted.targets, most=most) for rule, most in MOST.items()
        }
    for rule, threshold in thresholds.items():
        present = scores >= threshold
        f1 = micro_f1(present, test.targets)
        found[rule] = (f1, float(present.sum()) / len(scores), float((test.targets == 1).sum()) / len(scores))
    return found


def main() -> None:
    """Draw, train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs") / "thresholds", help="folder of the images")
    given = parser.parse_args()
    found = defaultdict(list)
    for name, settings in draw(SETS, given.out, seed=1).items():
        recipe = load_recipe(find_recipe("own_table"), ["backbone.path=demo", "train.rounds=5", *settings])
        main_method, *others = (MethodTable(name=method) for method in METHODS)
        plan = resolve(recipe.model_copy(update={"method": main_method, "compare": tuple(others)}))
        experiment = assemble(plan)
        for trial in experiment.trials:
            for rule, one in decided(experiment, trial).items():
                found[rule].append(one)
            print(f"{name}, {trial.name}: done", flush=True)
    lines = ["| threshold | OF1 | labels per image | true | most times as many |", "|---|---|---|---|---|"]
    for rule, all_of_it in found.items():
        f1, predicted, there = (fmean(column) for column in zip(*all_of_it, strict=True))
        most = max(one[1] / one[2] for one in all_of_it)
        lines.append(f"| {rule} | {100 * f1:.1f} | {predicted:.1f} | {there:.1f} | {most:.1f} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
