"""What a job can decide about a site's images, and what scores, losses and survivors can tell a lying server."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
import torch

from fedprompt.config.recipe import parse_recipe, recipe_keys
from fedprompt.config.registry import PARTITION_RULES, SOURCES, is_at_sites
from fedprompt.deploy import job_keys, jobs
from fedprompt.deploy.disclosure import in_steps, releasable_counts, releasable_score, rounded_share
from fedprompt.deploy.job_keys import OWNERS, keys_of, local_recipe, overruled, owner
from fedprompt.deploy.ledger import SiteLedger
from fedprompt.deploy.settings import SITE, OwnImagesTable, Policy, SiteFile, save
from fedprompt.deploy.site import Site
from fedprompt.experiments.plan import block_options, resolve
from fedprompt.federated.evaluate import Score
from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.runtimes.payload import DONE, EVALUATE, FAILED, HELLO, TRAIN, VALIDATE, Payload, RawTensor
from fedprompt.seeding import numpy_stream
from fedprompt.testing import tiny_images
from test_deploy_trust import LyingServer, noisy, reason, start

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")
__all__ = ["start"]

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "12"))
CAT, DOG = 9, 8  # images of the site


def make_site(folder: Path, *, images: Mapping[str, object] | None = None, **policy: object) -> Site:
    """A site whose folder does not say which images are for testing."""
    for number in range(CAT + DOG):
        place = folder / "images" / ("cat" if number < CAT else "dog")
        place.mkdir(parents=True, exist_ok=True)
        tiny_images(CAT + DOG).open(number).save(place / f"patient-{number}.png")
    own = {"device": "cpu", "data": str(folder / "images"), "images": OwnImagesTable(**(images or {}))}
    save(folder / SITE, SiteFile(name="east", superlink="localhost:1", policy=Policy(**policy), **own))
    return Site(folder)


def recipe(changes: Mapping[str, object] | None = None) -> str:
    """A job; `changes` sets dotted keys."""
    tables: dict[str, dict[str, object]] = {
        "data": {"source": "sites", "classes": ["cat", "dog"]},
        "partition": {"rule": "by_site", "sites": ["east", "north"]},
        "method": {"name": "promptfl"},
        "train": {"rounds": 40, "batch_size": 4},
    }
    for key, value in (changes or {}).items():
        place: dict[str, object] = tables  # type: ignore[assignment]
        *outer, last = key.split(".")
        for name in outer:
            place = place.setdefault(name, {})  # type: ignore[assignment]
        place[last] = value
    return tomli_w.dumps({"name": "job", **tables})


class Watched(LyingServer):
    """A server that lies to a site, and what the site used for each of its messages."""

    def __init__(self, site: Site, start: Mapping[str, RawTensor], patch: pytest.MonkeyPatch) -> None:
        super().__init__(site, start)
        self.accepted: list[jobs.Job] = []
        accept = jobs.Jobs.accept

        def kept(own: jobs.Jobs, request: Payload, settings: SiteFile) -> jobs.Job:
            self.accepted.append(accept(own, request, settings))
            return self.accepted[-1]

        patch.setattr(jobs.Jobs, "accept", kept)

    def job(self, kind: str, changes: Mapping[str, object] | None = None, **fields: object) -> Payload:
        return self.ask(kind, **{"recipe": recipe(changes), "run": f"{len(self.messages):032x}", **fields})

    def parts(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """The files that the last job trained on, tested on, and held out."""
        job = self.accepted[-1]
        source = job.experiment.dataset.source
        examples = (job.client.train, job.client.test, job.client.held_out.get("base"))
        return tuple(
            frozenset(source.describe(row) for row in one.images.rows) if one is not None else frozenset()
            for one in examples
        )  # type: ignore[return-value]


def test_no_job_moves_an_image_between_training_test_and_held_out_images(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores under many splits would tell single images: a job names shares, seeds, sites and rules."""
    draws, server = numpy_stream(0, "splits"), Watched(make_site(tmp_path, smallest_count=1), start, monkeypatch)
    assert server.job(EVALUATE).kind == DONE
    train, test, _ = server.parts()
    assert server.job(VALIDATE, {"train.keep": "best:base"}).kind == DONE
    rest, same, held = server.parts()
    assert test and test == same and held and held | rest == train and not held & rest and not test & train
    seen = set()
    for _ in range(TRIES):
        others = [f"{name}{draws.integers(99)}" for name in draws.choice(["a", "m", "z"], size=draws.integers(1, 3))]
        sites = sorted({"east", *others})
        changes = {
            "seed": int(draws.integers(2**30)),
            "data.seed": int(draws.integers(2**30)),
            "data.test_fraction": float(draws.choice([0.0, 0.05, 0.5, 0.95])),
            "data.validation_fraction": float(draws.choice([0.0, 0.1, 0.9])),
            "evaluate.held_out": float(draws.choice([0.0, 0.06, 0.12, 0.9])),
            "train.keep": str(draws.choice(["last", "best:base"])),
            "partition.sites": sites,
            "evaluate.batch_size": int(draws.integers(1, 9)),
        }
        kind = str(draws.choice([EVALUATE, VALIDATE, TRAIN]))
        answer = server.job(kind, changes, client=sites.index("east"))
        assert answer.kind == DONE, answer.fields
        assert server.parts() in {(train, test, frozenset()), (rest, test, frozenset()), (rest, test, held)}
        if kind == EVALUATE:
            seen.add(str(answer.fields["score"]))
        server.site = Site(tmp_path) if draws.integers(4) == 0 else server.site
    assert len(seen) <= 1, "one model has one score, whatever the job says"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"partition": {"rule": "iid", "clients": 2, "shots": 1}}, "partition"),
        ({"partition": {"rule": "by_domain", "shots": 1}}, "partition"),
        ({"data.window": "minmax"}, "window"),
        ({"data.window": [0.0, 9.0]}, "window"),
    ],
)
def test_a_job_chooses_no_images_by_a_rule_or_a_window(
    tmp_path: Path, start: Mapping[str, RawTensor], changes: dict, rule: str
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert f"(rule {rule})" in reason(server.ask(recipe=recipe(changes)))


def test_the_site_sets_its_own_split(tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch) -> None:
    server = Watched(make_site(tmp_path, images={"test_fraction": 0.5, "seed": 7}), start, monkeypatch)
    assert server.job(EVALUATE).kind == DONE
    one = server.parts()
    make_site(tmp_path, images={"test_fraction": 0.5, "seed": 8})
    assert server.job(EVALUATE).kind == DONE and server.parts() != one


def keys_of_schema() -> list[str]:
    """Every key that a recipe for images at sites can have, with the options of the blocks that are at sites."""
    options = [
        f"{table}.{name}"
        for table, registry in (("data", SOURCES), ("partition", PARTITION_RULES))
        for block, builder in registry.builders.items()
        if is_at_sites(builder)
        for name in block_options(table, block, {}) or ()
    ]
    return [*recipe_keys(), "compare", *options]


def test_every_key_of_a_recipe_has_an_owner() -> None:
    missing = [key for key in keys_of_schema() if owner(key) is None]
    assert not missing, f"say in deploy/job_keys.py who decides {missing}"
    assert {key for key in OWNERS if not key.endswith(".*")} <= set(keys_of_schema()), "an owner of no key"


@pytest.mark.parametrize("key", ["train.momentum", "data.template", "evaluate.every"])
def test_a_key_without_an_owner_is_refused(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(job_keys, "OWNERS", {name: one for name, one in OWNERS.items() if name != key})
    assert f"'{key}'" in (said := reason(LyingServer(make_site(tmp_path), start).ask(recipe=recipe()))), said
    assert "(rule keys)" in said


def test_no_job_changes_a_key_of_the_site(tmp_path: Path) -> None:
    """Attack 20 and its kind: links out of the folder, processes, memory, a cache on disk, folders of images."""
    settings = SiteFile(name="east", superlink="localhost:1", data=str(tmp_path), device="cpu", backbone=str(tmp_path))
    hostile: dict[str, object] = {
        "check": True,
        "backbone": {"workers": 1024, "batch": 65_536, "memory_gb": 1e6, "disk": "/srv/other", "device": "cuda"},
        "evaluate.held_out": 0.9,
        "data.links": True,
        "data.unreadable": 1.0,
        "data.test_fraction": 0.9,
        "data.validation_fraction": 0.9,
        "data.seed": 9,
        "data.folders": {"east": "/srv/other", "north": "/etc"},
        "data.test": "/etc",
    }
    mine, theirs = (
        local_recipe(resolve(parse_recipe(recipe(changes))).recipe, settings)
        for changes in ({"evaluate.held_out": 0.1}, hostile)
    )
    tested = {key for key in keys_of(theirs) if owner(key) == "site"} | {"data.test", "backbone.disk"}
    assert tested >= {key for key, one in OWNERS.items() if one == "site"} - {"data.window"}

    def value(found: object, key: str) -> object:
        for name in key.split("."):
            found = getattr(found, name, None)
        return found

    for key in tested:
        assert value(mine, key) == value(theirs, key), key
    assert theirs.data.options["folders"] == {"east": str(tmp_path)} and theirs.backbone.path == str(tmp_path)
    assert not theirs.data.options["links"] and not theirs.backbone.workers


def test_a_link_out_of_the_folder_is_followed_only_if_the_site_says_so(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside.png"
    tiny_images(1).open(0).save(outside)
    server = Watched(make_site(tmp_path), start, monkeypatch)
    (tmp_path / "images" / "cat" / "linked.png").symlink_to(outside)
    for links, allowed in ((False, False), (True, True)):
        make_site(tmp_path, images={"links": links})
        answer = server.job(HELLO, {"data.links": not links})
        train, test, _ = server.parts() if answer.kind == DONE else ((), (), ())
        assert any("linked" in file for file in (*train, *test)) == allowed, answer.fields


def test_a_recipe_says_which_of_its_keys_sites_ignore() -> None:
    assert not overruled(parse_recipe(recipe()))
    assert not overruled(resolve(parse_recipe(recipe({"train.keep": "best:hm", "seed": 4}))).recipe)
    changes = {"data.test_fraction": 0.5, "data.links": True, "data.unreadable": 0.5, "evaluate.held_out": 0.5}
    assert overruled(parse_recipe(recipe(changes))) == [*changes]


def constant(class_counts: tuple[int, ...], predicted: int) -> tuple[Score, SimpleNamespace]:
    """The score of a model that predicts one class for all test images, and those images."""
    targets = torch.tensor([label for label, count in enumerate(class_counts) for _ in range(count)])
    share = class_counts[predicted] / sum(class_counts)
    per_class = tuple(float(label == predicted) for label in range(len(class_counts)))
    figures = {"accuracy": share, "base": share, "macro_f1": 2 * share / (1 + share) / len(class_counts)}
    return Score("east", len(targets), figures, per_class), SimpleNamespace(
        targets=targets, space=range(len(per_class))
    )


def test_a_model_that_predicts_one_class_tells_no_count_below_the_limit() -> None:
    """Accuracy times test images is the number of images of a class; every count up to the limit looks like none."""
    draws, policy = numpy_stream(0, "one class"), Policy()
    for _ in range(10 * TRIES):
        others = tuple(int(count) for count in draws.integers(1, 30, size=draws.integers(1, 4)))
        steps = 5 - sum(others) % 5  # room before the number of all images reaches the next step
        leaves = set()
        for count in range(min(policy.smallest_count, steps)):
            score, tested = constant((count, *others), 0)
            leaves.add(str(releasable_score(score, tested, policy)))
        assert len(leaves) == 1
        found = releasable_score(score, tested, policy)
        if found is not None:
            assert found["figures"] == {"accuracy": 0.0, "base": 0.0, "macro_f1": None}
            assert found["num_examples"] % 5 == 0 and set(found["per_class"]) == {None}
    assert releasable_score(*constant((2, 30), 0), Policy(scores="exact"))["figures"]["accuracy"] == 2 / 32


def test_a_rounded_score_stands_for_as_many_counts_as_the_limit() -> None:
    for smallest, total in itertools.product((1, 2, 5, 7), (7, 20, 23, 35)):
        found: dict[float, list[int]] = {}
        for right in range(total + 1):
            found.setdefault(rounded_share(right / total, total, smallest), []).append(right)
        assert {len(counts) for share, counts in found.items() if share < 1} == {smallest}
        assert found[1.0][0] == in_steps(total, smallest) and found[1.0][-1] == total
    assert math.isnan(rounded_share(math.nan, 10, 5))


def test_scores_that_leave_are_limited_per_run(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    site = make_site(tmp_path, smallest_count=1, maximum_scores=3)
    server = LyingServer(site, start)
    assert [server.ask(kind, recipe=recipe()).kind for kind in (EVALUATE, TRAIN, EVALUATE)] == [DONE] * 3
    server.site = Site(tmp_path)
    assert "(rule maximum_scores)" in reason(server.ask(EVALUATE, recipe=recipe()))
    trained = server.ask(recipe=recipe(), round=2)
    assert trained.kind == DONE and trained.fields["validation"] is None, "it trains on, without a score"
    other = recipe({"method.label": "other"})
    assert "(rule maximum_scores)" in reason(server.ask(EVALUATE, recipe=other, trial="other")), "of all trials"
    make_site(tmp_path, smallest_count=1)
    assert server.ask(EVALUATE, recipe=recipe()).kind == DONE
    assert server.ask(EVALUATE, recipe=other, trial="other").kind == DONE


def test_without_a_limit_of_its_own_a_site_gives_each_trial_as_many_scores_as_an_honest_run_needs() -> None:
    before = {"a": 99, "b": 3}
    assert Policy().allows_score(before, "a", rounds=40) and not Policy().allows_score(before, "a", rounds=39)
    assert Policy().allows_score(before, "c", rounds=1) and not Policy(maximum_scores=102).allows_score(
        before, "c", rounds=40
    )


def broken(start: Mapping[str, RawTensor]) -> Mapping[str, RawTensor]:
    """A state with which no loss is finite."""
    return {name: replace(raw, data=np.full(len(raw.data) // 4, 3e38, "<f4").tobytes()) for name, raw in start.items()}


def with_noise(privacy: str = noisy()) -> str:
    return recipe() + privacy


@pytest.mark.parametrize("scores", [None, "withheld", "rounded"])
def test_no_loss_score_or_count_leaves_beside_a_privacy_budget(
    tmp_path: Path, start: Mapping[str, RawTensor], scores: str | None
) -> None:
    """Losses and scores of models that the server chooses are exact, and no epsilon covers them."""
    pytest.importorskip("dp_accounting")
    server = LyingServer(make_site(tmp_path, smallest_count=2, epsilon=9.0, scores=scores), start)
    hello = server.ask(HELLO, recipe=with_noise())
    trained = server.ask(recipe=with_noise())
    server.start = broken(start)
    diverged = server.ask(recipe=with_noise(), round=2)
    server.start = start
    tested = server.ask(EVALUATE, recipe=with_noise())
    assert [answer.kind for answer in (hello, trained, diverged, tested)] == [DONE] * 4, diverged.fields
    assert trained.fields["loss"] is None and trained.fields["num_examples"] % 2 == 0
    assert {*trained.fields} == {"num_examples", "loss", "seconds", "validation", "facts", "serial"}
    assert diverged.fields["loss"] is None and diverged.fields.keys() == trained.fields.keys()
    assert len(SiteLedger(tmp_path).lines()) == 2
    withheld = scores != "rounded"
    assert (tested.fields["score"] is None) == (trained.fields["validation"] is None) == withheld
    assert hello.fields["scores"] == ("withheld" if withheld else "rounded")
    assert (hello.fields["labels"] == [None, None]) == withheld


def test_the_administrator_can_let_losses_and_scores_leave_exactly(
    tmp_path: Path, start: Mapping[str, RawTensor]
) -> None:
    pytest.importorskip("dp_accounting")
    server = LyingServer(make_site(tmp_path, smallest_count=2, epsilon=9.0, scores="exact"), start)
    trained = server.ask(recipe=with_noise())
    assert trained.fields["loss"] > 0 and 0 <= trained.fields["validation"] <= 1
    server.start = broken(start)
    assert server.ask(recipe=with_noise(), round=2).kind not in (DONE, FAILED), "it diverges, and says so"


def test_what_the_images_are_is_a_hash_that_nobody_can_guess(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    """Two sites with the same images, and two runs at one, send different hashes; one run always the same."""
    one, other = (LyingServer(make_site(tmp_path / name, epsilon=None), start) for name in ("a", "b"))
    found = [one.ask(HELLO, recipe=recipe(), run="0" * 32).fields["facts"]["data"] for _ in range(2)]
    found.append(one.ask(HELLO, recipe=recipe(), run="1" * 32).fields["facts"]["data"])
    found.append(other.ask(HELLO, recipe=recipe(), run="0" * 32).fields["facts"]["data"])
    assert found[0] == found[1] and len(set(found)) == 3
    again = LyingServer(Site(tmp_path / "a"), start)
    again.numbers = one.numbers
    assert again.ask(HELLO, recipe=recipe(), run="0" * 32).fields["facts"]["data"] == found[0], "it outlives the worker"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.template": "{} " * 1000}, "has more than 2,000 characters"),
        ({"data.template": "{}" + "x" * 1900, "data.classes": [f"class {n}" for n in range(20_000)]}, "together"),
        ({"data.classes": ["cat", "d" * 400_000]}, "has more than 1,000 characters"),
    ],
)
def test_texts_that_fill_the_memory_are_refused(
    tmp_path: Path, start: Mapping[str, RawTensor], changes: Mapping[str, object], said: str
) -> None:
    assert said in reason(LyingServer(make_site(tmp_path), start).ask(HELLO, recipe=recipe(changes)))


def test_counts_are_withheld_with_scores() -> None:
    assert releasable_counts([7, 8], Policy()) == [7, 8] and releasable_counts([7, 2], Policy()) == [None, None]
    assert releasable_counts([7, 8], Policy(scores="withheld")) == [None, None]


def test_a_list_of_members_with_a_site_twice_is_refused_as_such() -> None:
    secure = SecureSum(identities={0: b"0" * 32, 1: b"1" * 32}, minimum=3)
    with pytest.raises(RefusedUpdateError, match="the list of members names a site twice"):
        secure.session(1, [0, 1, 1], length=3)
