"""What made states, fields and jobs without an end tell a lying server, and for how long they keep a site busy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.federated.rounds import initial_state
from fedprompt.runtimes.payload import DONE, EVALUATE, HELLO, TRAIN, VALIDATE, RawTensor
from fedprompt.runtimes.tensor_codec import encode
from test_deploy_disclosure import CAT, DOG, Watched, make_site
from test_deploy_trust import start

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
