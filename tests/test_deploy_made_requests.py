"""What made states, fields and jobs without an end tell a lying server, and for how long they keep a site busy."""

from __future__ import annotations

import itertools
import math
import time
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fedprompt
from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.deploy.audit import read_audit
from fedprompt.deploy.identity import make_site_keys, public_line
from fedprompt.deploy.ledger import SiteLedger
from fedprompt.deploy.settings import SITE, Roster, load_site, save
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.secure.session import Identity
from fedprompt.runtimes.payload import (
    DONE,
    EVALUATE,
    EXPIRES,
    HELLO,
    MALFORMED,
    MASKED_INPUT,
    SHARE_KEYS,
    TRAIN,
    VALIDATE,
    VERSION,
    Payload,
    RawTensor,
)
from fedprompt.runtimes.tensor_codec import encode
from test_deploy_disclosure import CAT, DOG, Watched, make_site, recipe
from test_deploy_trust import LyingServer, reason, start

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")
__all__ = ["start"]

COCOOP = {"method.name": "fedcocoop", "train.keep": "best:base"}


def overflowing(clip: Clip, image: torch.Tensor, threshold: float) -> Mapping[str, RawTensor]:
    """A state of FedCoCoOp whose logits overflow for images that are more similar to this one than the threshold."""
    state, _ = initial_state(methods.load("fedcocoop")(clip, generator=torch.Generator().manual_seed(0)))
    made = {name: torch.zeros_like(tensor) if "shift" in name else tensor for name, tensor in state.items()}
    made["shift.0.weight"][0] = image * 1e3
    made["shift.0.bias"][0] = -threshold * 1e3
    made["shift.2.weight"][:, 0] = 3e38
    return encode(made)


@pytest.mark.parametrize("policy", [{}, {"scores": "exact"}, {"smallest_count": 1}])
@pytest.mark.parametrize("kind", [EVALUATE, VALIDATE, TRAIN])
def test_no_evaluation_tells_whether_an_image_is_there(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch, kind: str, policy: dict
) -> None:
    """A state whose logits overflow for one certain image must not be answered otherwise than any other."""
    server = Watched(make_site(tmp_path, **{"smallest_count": 2, **policy}), start, monkeypatch)
    assert server.job(HELLO, COCOOP, trial="fedcocoop").kind == DONE
    job = server.accepted[-1]
    clip, scored = job.experiment.clip, job.client.held_out["base"] if kind == VALIDATE else job.client.test
    features = clip.image_features(scored.images)
    others = clip.image_features(job.client.train.images)
    threshold = float(torch.cat([features[1:], others]).matmul(features[0]).max() + 1) / 2
    server.start = overflowing(clip, features[0], 2.0)  # for no image
    before = server.job(kind, COCOOP, trial="fedcocoop")
    server.start = overflowing(clip, features[0], threshold)
    made = server.job(kind, COCOOP, trial="fedcocoop")
    assert before.kind == made.kind == DONE, (before.fields, made.fields)
    assert made.fields.keys() == before.fields.keys()
    scores = [found.fields["validation" if kind == TRAIN else "score"] for found in (before, made)]
    assert None not in scores or scores == [None, None]
    if kind != TRAIN and scores[0] is not None:
        column = "base" if kind == VALIDATE else "accuracy"
        assert scores[1]["num_examples"] == scores[0]["num_examples"]
        assert 0 <= scores[1]["figures"][column] <= scores[0]["figures"][column], "one more answer is wrong at most"


@pytest.mark.parametrize("parts", [{}, {"val": (3, 1), "test": (1, 2)}])
def test_counts_per_class_do_not_depend_on_what_a_job_holds_out(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch, parts: dict
) -> None:
    """The difference of two preflights would be the held-out images of each class, few of which stay at the site."""
    server = Watched(make_site(tmp_path, smallest_count=2), start, monkeypatch)
    images = tmp_path / "images"
    for name, files in {name: sorted((images / name).iterdir()) for name in ("cat", "dog")}.items() if parts else ():
        for file in files:
            number = int(file.stem.removeprefix("patient-")) - (CAT if name == "dog" else 0)
            part = "val" if number in parts["val"] else "test" if number in parts["test"] else "train"
            (images / part / name).mkdir(parents=True, exist_ok=True)
            file.rename(images / part / name / file.name)
        (images / name).rmdir()
    if parts:
        (images / "val" / "cat" / "torn.png").write_bytes(b"no image")
    jobs: list[dict[str, object]] = [{}, {"evaluate.held_out": 0.2}, {"train.keep": "best:base"}]
    answers = [server.job(HELLO, changes) for changes in jobs]
    assert [answer.kind for answer in answers] == [DONE] * 3, [answer.fields for answer in answers]
    counts = [answer.fields["labels"] for answer in answers]
    tested = server.accepted[-1].client.test
    assert tested is not None and sum(counts[0]) == CAT + DOG - len(tested) and counts == counts[:1] * 3, counts
    assert len({answer.fields["unreadable"] for answer in answers}) == 1
    train, _, held = server.parts()
    assert len(train) + len(held) == sum(counts[0]) and held


def test_a_training_without_an_end_is_refused(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    server = LyingServer(make_site(tmp_path), start)
    for changes in ({"train.local_epochs": 101}, {"method.train": {"local_epochs": 10**7}}):
        assert "more than 100 local epochs (rule maximum_epochs)" in reason(server.ask(recipe=recipe(changes)))
    assert not SiteLedger(tmp_path).lines()
    make_site(tmp_path, maximum_epochs=1)
    assert "(rule maximum_epochs)" in reason(server.ask(recipe=recipe({"train.local_epochs": 2})))
    assert server.ask(recipe=recipe(), run="1" * 32).kind == DONE


def test_a_training_stops_when_its_message_expires(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    clock, steps = itertools.count(1000.0), recipe({"train.local_epochs": 50})
    assert server.ask(recipe=steps, **{EXPIRES: time.time() + 1e6}).kind == DONE
    monkeypatch.setattr("fedprompt.federated.client.time.time", lambda: next(clock))
    said = server.ask(recipe=steps, round=2, **{EXPIRES: 1015.0})
    assert "nobody waits for its answer (rule deadline)" in reason(said)
    assert next(clock) < 1030, "it stopped between two steps"
    monkeypatch.undo()
    assert "(rule deadline)" in reason(server.ask(HELLO, recipe=steps, **{EXPIRES: time.time() - 1}))
    rules = [entry.fields["rule"] for entry in read_audit(tmp_path)]
    assert rules == ["allowed", "deadline", "deadline"] and len(SiteLedger(tmp_path).lines()) == 2


@pytest.mark.parametrize("lifetime", [30.0, math.inf])
def test_a_message_carries_the_time_at_which_it_expires(lifetime: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the server says of it in the message's own fields."""
    flower = pytest.importorskip("fedprompt.runtimes.flower.apps")
    records = pytest.importorskip("fedprompt.runtimes.flower.records")
    content = records.to_records(Payload(TRAIN, {EXPIRES: 1e15}))
    message = SimpleNamespace(content=content, metadata=SimpleNamespace(message_type=TRAIN, ttl=lifetime))
    monkeypatch.setattr(flower.time, "time", lambda: 1000.0)
    found = flower._request(message)
    assert (found.kind, found.fields) == ((TRAIN, {EXPIRES: 1030.0}) if lifetime == 30 else (MALFORMED, {}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"upload": "load"}, "upload is none of float32, bfloat16, float16"),
        ({"upload": "bool"}, "upload is none of"),
        ({"upload": ["float32"]}, "upload is none of"),
        ({"since": -1}, "since is not a round from 0 to 40"),
        ({"since": 41}, "since is not a round"),
        ({"since": "../x"}, "since is not a round"),
        ({"since": True}, "since is not a round"),
        ({"recipe": 5}, "recipe is not a text"),
        ({"run": 5}, "run is not a text"),
        ({"trial": ["promptfl"]}, "trial is not a text"),
        ({"trial": "x" * 201}, "trial has too long a name"),
    ],
)
def test_fields_of_a_request_are_checked_before_anything_is_charged(
    tmp_path: Path, start: Mapping[str, RawTensor], fields: dict, said: str
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    refused = reason(server.ask(**{"recipe": recipe(), **fields}))
    assert said in refused and "(rule request)" in refused
    assert not SiteLedger(tmp_path).lines() and read_audit(tmp_path)
    assert server.ask(recipe=recipe(), since=40).kind == DONE


def test_a_job_has_one_method(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    """A list of thousands would keep the site busy before it trains, and each would have scores of its own."""
    server = LyingServer(make_site(tmp_path), start)
    several = recipe({"compare": [{"name": "promptfl", "label": f"again-{number}"} for number in range(9)]})
    assert "(rule methods)" in reason(server.ask(recipe=several, trial="again-7"))


@pytest.mark.parametrize(
    "changes",
    [
        {"train.server.attack": {"name": "sign_flip", "adversaries": 1}},
        {"train.sharing": "pooled"},
        {"train.sharing": "local"},
        {"method.train": {"sharing": "local"}},
    ],
)
def test_what_only_a_simulation_does_is_refused(
    tmp_path: Path, start: Mapping[str, RawTensor], changes: dict[str, object]
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    for kind in (HELLO, TRAIN):
        assert "(rule simulation)" in reason(server.ask(kind, recipe=recipe(changes)))
    assert not SiteLedger(tmp_path).lines()


def test_a_server_of_another_version_is_named_before_its_recipe_is_read(
    tmp_path: Path, start: Mapping[str, RawTensor]
) -> None:
    """A new key of a newer recipe would be said to be a mistake."""
    server, newer = LyingServer(make_site(tmp_path), start), "novel = 1\n" + recipe()
    ours = fedprompt.__version__
    for version, shown in (("9.1.0", "9.1.0"), (None, "an unknown version"), ("</script>\n", "an unknown version")):
        for kind in (HELLO, TRAIN, "train.of_next_year"):
            said = reason(server.ask(kind, recipe=newer, **{VERSION: version}))
            assert said == (
                f"the server has fedprompt {shown}, and this site has {ours}; install the same version at both "
                "(rule version)."
            )
    said = reason(server.ask(recipe=newer.replace("novel", "sed")))
    assert said == "job: has no key 'sed'; did you mean 'seed'? (rule recipe)."


def test_a_secure_sum_charges_no_training_for_keys_that_are_not_those_of_the_peers(
    tmp_path: Path, start: Mapping[str, RawTensor]
) -> None:
    site = make_site(tmp_path, minimum=2)
    make_site_keys(tmp_path, "east")
    settings = load_site(tmp_path)
    roster = Roster(sites={"north": public_line(Identity.generate().public, "north")})
    save(tmp_path / SITE, settings.model_copy(update={"roster": roster}))
    server = LyingServer(site, start)
    job = {"recipe": recipe({"train.server.secure": {"share": 0.6}}), "members": [0, 1], "nonce": "x"}
    for message in (5, "###", b64encode(b"x").decode()):
        assert server.ask(SHARE_KEYS, **job).kind == DONE
        assert "message" in reason(server.ask(MASKED_INPUT, message=message, **job))
    assert "out of order" in reason(server.ask(MASKED_INPUT, message=b64encode(b"x").decode(), **job))
    assert not SiteLedger(tmp_path).lines(), "nothing was trained"
