"""A site: its policy, its state on disk, its worker, and the fields that leave it."""

from __future__ import annotations

import itertools
import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import fedprompt
from fedprompt.config.recipe import parse_recipe
from fedprompt.data.labels import LabelSpace
from fedprompt.deploy import preflight
from fedprompt.deploy import worker_socket as worker_socket
from fedprompt.deploy.preflight import class_list, mismatches
from fedprompt.deploy.settings import SITE, Deployment, Policy, SiteFile, load_deployment, load_site, save
from fedprompt.deploy.site import Site
from fedprompt.deploy.site_policy import RefusedError, check_job, check_site
from fedprompt.deploy.site_state import KEPT, SiteState
from fedprompt.deploy.worker import serve
from fedprompt.errors import UserError
from fedprompt.experiments.keep import Keep
from fedprompt.federated.client import TrainSettings
from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.runtimes.payload import DONE, EVALUATE, FAILED, HELLO, REFUSED, TRAIN, VERSION, Payload
from fedprompt.updates import Update

pytestmark = pytest.mark.usefixtures("kept_backbone")

RUN = "0" * 32
NUMBERS = itertools.count(1)
RECIPE = """
name = "job"
[data]
source = "{source}"
classes = ["secret-class", "b"]
[partition]
rule = "by_site"
sites = ["east", "north"]
[method]
name = "{method}"
[train]
rounds = 20
{server}
"""


def fields(method: str = "promptfl", source: str = "sites", server: str = "", **more: object) -> dict[str, object]:
    recipe = RECIPE.format(method=method, source=source, server=server)
    return {
        VERSION: fedprompt.__version__,
        "recipe": recipe,
        "run": RUN,
        "trial": method,
        "round": 1,
        "client": 0,
        "since": 0,
        "upload": "float32",
        "serial": [1, next(NUMBERS)],
        **more,
    }


@pytest.mark.parametrize(
    ("policy", "job", "rule"),
    [
        ({"methods": ("fedmvp",)}, {}, "methods"),
        ({}, {"method": "os.path"}, "methods"),
        ({"maximum_rounds": 19}, {}, "maximum_rounds"),
        ({}, {"source": "os:system"}, "own code"),
        ({"secure_aggregation": True}, {}, "secure_aggregation"),
        ({"secure_aggregation": True}, {"server": "[train.server.secure]"}, None),
        ({}, {"server": "[train.server.aggregate]\nname = 'os:system'"}, "own code"),
        ({}, {"server": "[descriptions]\nattributes = '/etc/passwd'"}, "descriptions"),
        ({}, {"server": "[descriptions]\nattributes = 'none'\nconditions = ['at night']"}, None),
        ({"methods": ("promptfl",), "maximum_rounds": 20}, {}, None),
    ],
)
def test_the_site_policy_refuses_jobs(policy: dict, job: dict, rule: str | None) -> None:
    said = fields(**job)
    recipe = parse_recipe(said["recipe"])
    if rule is None:
        check_job(Policy(**policy), recipe)
        return
    with pytest.raises(RefusedError, match=rf"\(rule {rule}\)"):
        check_job(Policy(**policy), recipe)


def test_the_policy_checks_images_and_backbones() -> None:
    policy = Policy(minimum_images=5, backbones=("abc",))
    check_site(policy, "abcdef", 5)
    for fingerprint, images in (("bcd", 5), ("abc", 4)):
        with pytest.raises(RefusedError):
            check_site(policy, fingerprint, images)


def site(folder: Path, **settings: object) -> Site:
    save(folder / SITE, SiteFile(name="east", superlink="localhost:1", device="cpu", **settings))
    return Site(folder)


def test_a_class_that_was_not_agreed_on_is_refused_without_paths_names_and_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images" / "secret-clas").mkdir(parents=True)
    (tmp_path / "images" / "secret-clas" / "patient-7.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        answer = site(tmp_path, data=str(tmp_path / "images")).answer(Payload(TRAIN, fields()))
    assert answer.kind == REFUSED and "(rule classes)" in answer.fields["reason"] and not answer.tensors
    for secret in ("secret", "patient", str(tmp_path), "images"):
        assert secret not in str(answer.fields)
    assert "secret-clas" in caplog.text, "the site's own log has the details"


def test_a_refusal_names_the_rule(tmp_path: Path) -> None:
    answer = site(tmp_path, policy=Policy(maximum_rounds=3)).answer(Payload(TRAIN, fields()))
    assert answer.kind == REFUSED and "maximum_rounds" in answer.fields["reason"]


def test_a_site_with_its_own_images_opens_no_others(tmp_path: Path) -> None:
    job = fields(source="emoji")
    job["recipe"] = str(job["recipe"]).replace('classes = ["secret-class", "b"]', "")
    answer = site(tmp_path, data=str(tmp_path)).answer(Payload(TRAIN, job))
    assert answer.kind == REFUSED and "data" in answer.fields["reason"]


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("[data]", '[backbone]\npath = "{}"\n[data]', "backbone"),
        ("[data]", '[backbone]\npath = "../{}"\n[data]', "backbone"),
        ("[data]", '[backbone]\npath = "~/a/b"\n[data]', "backbone"),
        ("[partition]", 'folders = {{ east = "{}" }}\n[partition]', "data"),
        ('source = "sites"\nclasses = ["secret-class", "b"]', 'source = "image_folder"\npath = "{}"', "data"),
        ('source = "sites"\nclasses = ["secret-class", "b"]', 'source = "huggingface"\npath = "{}"', "data"),
    ],
)
def test_a_job_names_no_path_at_a_site(tmp_path: Path, before: str, after: str, rule: str) -> None:
    """Attack 20: a path of the site's in a job."""
    job = fields()
    job["recipe"] = str(job["recipe"]).replace(before, after.format(tmp_path), 1)
    answer = site(tmp_path).answer(Payload(TRAIN, job))
    assert answer.kind == REFUSED and f"(rule {rule})" in answer.fields["reason"], answer.fields


def test_small_counts_and_scores_stay_at_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "versions", dict)
    for place, count in (("train/secret-class", 6), ("train/b", 2), ("test/b", 3)):
        (tmp_path / "images" / place).mkdir(parents=True)
        for number in range(count):
            shade = (30 * number, 9 * len(place), 0)
            Image.new("RGB", (8, 8), shade).save(tmp_path / "images" / place / f"{number}.png")
    own = site(tmp_path, data=str(tmp_path / "images"))
    hello, score = (own.answer(Payload(kind, fields(method="zeroshot"))) for kind in (HELLO, EVALUATE))
    assert (hello.kind, score.kind) == (DONE, DONE), (hello.fields, score.fields)
    assert hello.fields["labels"] == [None, None] and hello.fields["images"] == 5
    assert score.fields["score"] is None


@pytest.mark.parametrize("names", [("cat", "dog"), ("Dog", "cat"), ("dog", "cats")])
def test_different_class_lists_fail_the_preflight(names: tuple[str, ...]) -> None:
    ours = {"classes": class_list(LabelSpace(("dog", "cat")))}
    (found,) = mismatches(ours, {"classes": class_list(LabelSpace(names))})
    assert found.startswith("classes is ") and "spelling and order" in found
    assert not mismatches(ours, ours)


@pytest.mark.parametrize("malformed", [{}, {"recipe": 3}, fields(client="0"), fields(run="../x"), fields(trial="none")])
def test_a_malformed_request_is_answered(malformed: dict, tmp_path: Path) -> None:
    assert site(tmp_path).answer(Payload(TRAIN, malformed)).kind in (FAILED, REFUSED)


def test_the_site_state_keeps_a_few_rounds_to_go_back_to(tmp_path: Path) -> None:
    state, start = SiteState(tmp_path, RUN, "../.."), {"own": torch.zeros(2)}
    assert state.load(0, start) is start
    for number in range(1, 9):
        state.save(number, {"own": torch.full((2,), float(number))})
    assert state.load(7, start)["own"].tolist() == [7, 7]
    assert len(list(tmp_path.rglob("*.safetensors"))) == KEPT and not list(tmp_path.parent.glob("*.safetensors"))
    assert state.load(1, start) is start, "a deleted state starts anew"
    for number in range(9, 16):
        state.save(number, {"own": torch.full((2,), float(number))}, since=8)
    assert state.load(8, start)["own"].tolist() == [8, 8], "however many rounds after it did not count"
    state.save(16, start, since=15)
    assert len(list(tmp_path.rglob("*.safetensors"))) == KEPT
    with pytest.raises(UserError):
        SiteState(tmp_path, "../" * 10 + "a", "t")


def test_the_worker_answers_only_with_the_secret(tmp_path: Path) -> None:
    site(tmp_path, policy=Policy(maximum_rounds=3))
    with pytest.raises(worker_socket.NoWorkerError):
        worker_socket.request_worker(tmp_path, Payload(TRAIN, fields()))
    worker = threading.Thread(target=serve, args=(tmp_path,), kwargs={"requests": 1}, daemon=True)
    worker.start()
    address = tmp_path / worker_socket.ADDRESS
    while not address.exists():
        worker.join(0.01)
    assert address.stat().st_mode & 0o077 == 0
    content = address.read_text()
    address.write_text(content.replace('"secret": "', '"secret": "00'))
    with pytest.raises(worker_socket.NoWorkerError):
        worker_socket.request_worker(tmp_path, Payload(TRAIN, fields()))
    address.write_text(content)
    assert worker_socket.request_worker(tmp_path, Payload(TRAIN, fields())).kind == REFUSED
    worker.join(10)
    assert not worker.is_alive()


def test_errors_in_settings_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="deploy init"):
        load_deployment(tmp_path)
    (tmp_path / SITE).write_text('name = "a b"\nsuperlink = "host"\n')
    with pytest.raises(UserError, match=r"site\.toml: name"):
        load_site(tmp_path)
    ordered = Deployment(name="x", address="h", sites=("b", "a"))
    assert ordered.sites == ("a", "b") and ordered.remote_settings(("a",)).quorum == 1


@pytest.mark.parametrize("epsilon", [None, 4.0])
def test_a_personal_state_that_is_not_finite_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epsilon: float | None
) -> None:
    spoiled = Update(0, 5, {"all": torch.ones(1)}, {"own": torch.tensor([torch.nan])}, 0.5, 0.0)
    monkeypatch.setattr("fedprompt.deploy.site.train_client", lambda *objects, **keywords: spoiled)
    monkeypatch.setattr(Site, "_charge", lambda *objects: None)
    job = SimpleNamespace(
        trial=SimpleNamespace(settings=TrainSettings(), name="mine"),
        experiment=SimpleNamespace(clip=None, plan=SimpleNamespace(keep=Keep())),
        client=None,
        settings=SimpleNamespace(policy=Policy(epsilon=epsilon)),
        state=SiteState(tmp_path, RUN, "mine"),
        fields={"round": 1, "since": 0},
    )
    task = SimpleNamespace(job=job, method=None, shared={}, personal={"own": torch.zeros(1)})
    if epsilon is None:
        with pytest.raises(RefusedUpdateError, match="not finite: NaN or infinity in 'own'"):
            Site(tmp_path)._train(task, [])
        assert not list(tmp_path.rglob("*.safetensors"))
        return
    sent = Site(tmp_path)._train(task, [])
    assert sent.shared == {}, "a refusal would tell the server something about the images"
    assert job.state.load(1, {"own": torch.ones(1)})["own"].tolist() == [0]
