"""A site's side: its policy, its state of personal states, its worker, and the fields it lets out."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedprompt.config.recipe import parse_recipe
from fedprompt.data.labels import LabelSpace
from fedprompt.deploy import preflight
from fedprompt.deploy import worker_socket as line
from fedprompt.deploy.preflight import class_list, mismatches
from fedprompt.deploy.settings import SITE, Deployment, Policy, SiteFile, load_deployment, load_site, save
from fedprompt.deploy.site import Site
from fedprompt.deploy.site_policy import RefusedError, check_job, check_site
from fedprompt.deploy.site_state import KEPT, SiteState
from fedprompt.deploy.worker import serve
from fedprompt.errors import UserError
from fedprompt.runtimes.payload import DONE, EVALUATE, FAILED, HELLO, REFUSED, TRAIN, Payload

RUN = "0" * 32
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


def privacy(epsilon: str) -> str:
    return f"[train.server.privacy]\nname = 'sample'\nepsilon = {epsilon}"


def fields(method: str = "promptfl", source: str = "sites", server: str = "", **more: object) -> dict[str, object]:
    recipe = RECIPE.format(method=method, source=source, server=server)
    return {
        "recipe": recipe,
        "run": RUN,
        "trial": method,
        "round": 1,
        "client": 0,
        "since": 0,
        "upload": "float32",
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
        ({"epsilon": 3.0}, {}, "epsilon"),
        ({"epsilon": 3.0}, {"server": privacy("3.5")}, "epsilon"),
        ({"epsilon": 3.0}, {"server": privacy("true")}, "epsilon"),
        ({"epsilon": 3.0}, {"server": privacy("2.5")}, None),
        ({"secure_aggregation": True}, {"server": "[train.server.secure]"}, None),
        ({}, {"server": "[train.server.aggregate]\nname = 'os:system'"}, "own code"),
        ({}, {"server": "[descriptions]\nattributes = '/etc/passwd'"}, "descriptions"),
        ({}, {"server": "[descriptions]\nattributes = 'none'\nconditions = ['at night']"}, None),
        ({"methods": ("promptfl",), "maximum_rounds": 20}, {}, None),
    ],
)
def test_the_sites_policy_beats_the_job(policy: dict, job: dict, rule: str | None) -> None:
    said = fields(**job)
    recipe = parse_recipe(said["recipe"])
    if rule is None:
        check_job(Policy(**policy), recipe)
        return
    with pytest.raises(RefusedError, match=rf"\(rule {rule}\)"):
        check_job(Policy(**policy), recipe)


def test_pictures_and_backbones_have_rules_too() -> None:
    policy = Policy(minimum_images=5, backbones=("abc",))
    check_site(policy, "abcdef", 5)
    for fingerprint, images in (("bcd", 5), ("abc", 4)):
        with pytest.raises(RefusedError):
            check_site(policy, fingerprint, images)


def site(folder: Path, **settings: object) -> Site:
    save(folder / SITE, SiteFile(name="east", superlink="localhost:1", device="cpu", **settings))
    return Site(folder)


def test_what_goes_wrong_leaves_the_site_without_paths_names_and_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures" / "secret-clas").mkdir(parents=True)
    (tmp_path / "pictures" / "secret-clas" / "patient-7.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        answer = site(tmp_path, data=str(tmp_path / "pictures")).answer(Payload(TRAIN, fields()))
    assert answer.kind == FAILED and not answer.tensors
    for secret in ("secret", "patient", str(tmp_path), "pictures"):
        assert secret not in str(answer.fields)
    assert "secret-clas" in caplog.text, "the site's own log says all"


def test_a_refused_job_says_which_rule(tmp_path: Path) -> None:
    answer = site(tmp_path, policy=Policy(maximum_rounds=3)).answer(Payload(TRAIN, fields()))
    assert answer.kind == REFUSED and "maximum_rounds" in answer.fields["reason"]


def test_a_site_with_pictures_of_its_own_opens_no_others(tmp_path: Path) -> None:
    answer = site(tmp_path, data=str(tmp_path)).answer(Payload(TRAIN, fields(source="pictograms")))
    assert answer.kind == REFUSED and "data" in answer.fields["reason"]


def test_counts_and_scores_of_a_handful_stay_at_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "versions", dict)
    for place, count in (("train/secret-class", 6), ("train/b", 2), ("test/b", 3)):
        (tmp_path / "pictures" / place).mkdir(parents=True)
        for number in range(count):
            shade = (30 * number, 9 * len(place), 0)
            Image.new("RGB", (8, 8), shade).save(tmp_path / "pictures" / place / f"{number}.png")
    own = site(tmp_path, data=str(tmp_path / "pictures"))
    hello, score = (own.answer(Payload(kind, fields(method="zeroshot"))) for kind in (HELLO, EVALUATE))
    assert (hello.kind, score.kind) == (DONE, DONE), (hello.fields, score.fields)
    assert hello.fields["labels"] == [6, None] and hello.fields["images"] == 5
    assert score.fields == {"score": None}


@pytest.mark.parametrize("names", [("cat", "dog"), ("Dog", "cat"), ("dog", "cats")])
def test_class_lists_that_differ_stop_the_preflight(names: tuple[str, ...]) -> None:
    now, ours = time.time(), {"classes": class_list(LabelSpace(("dog", "cat")))}
    said = {"classes": class_list(LabelSpace(names)), "time": now}
    (found,) = mismatches(ours, said, asked=now, answered=now, skew=1.0)
    assert found.startswith("classes is ") and "spelling and order" in found
    assert not mismatches(ours, {**ours, "time": now}, asked=now, answered=now, skew=1.0)


@pytest.mark.parametrize("mess", [{}, {"recipe": 3}, fields(client="0"), fields(run="../x"), fields(trial="none")])
def test_a_messy_request_is_answered(mess: dict, tmp_path: Path) -> None:
    assert site(tmp_path).answer(Payload(TRAIN, mess)).kind in (FAILED, REFUSED)


def test_the_shelf_keeps_a_few_rounds_and_goes_back(tmp_path: Path) -> None:
    state, start = SiteState(tmp_path, RUN, "../.."), {"own": torch.zeros(2)}
    assert state.load(0, start) is start
    for number in range(1, 9):
        state.save(number, {"own": torch.full((2,), float(number))})
    assert state.load(7, start)["own"].tolist() == [7, 7]
    assert len(list(tmp_path.rglob("*.safetensors"))) == KEPT and not list(tmp_path.parent.glob("*.safetensors"))
    assert state.load(1, start) is start, "what was dropped begins afresh"
    with pytest.raises(UserError):
        SiteState(tmp_path, "../" * 10 + "a", "t")


def test_the_worker_answers_who_knows_the_secret(tmp_path: Path) -> None:
    site(tmp_path, policy=Policy(maximum_rounds=3))
    with pytest.raises(line.NoWorkerError):
        line.ask(tmp_path, Payload(TRAIN, fields()))
    worker = threading.Thread(target=serve, args=(tmp_path,), kwargs={"requests": 1}, daemon=True)
    worker.start()
    address = tmp_path / line.ADDRESS
    while not address.exists():
        worker.join(0.01)
    assert address.stat().st_mode & 0o077 == 0
    content = address.read_text()
    address.write_text(content.replace('"secret": "', '"secret": "00'))
    with pytest.raises(line.NoWorkerError):
        line.ask(tmp_path, Payload(TRAIN, fields()))
    address.write_text(content)
    assert line.ask(tmp_path, Payload(TRAIN, fields())).kind == REFUSED
    worker.join(10)
    assert not worker.is_alive()


def test_settings_are_checked_in_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="deploy init"):
        load_deployment(tmp_path)
    (tmp_path / SITE).write_text('name = "a b"\nsuperlink = "host"\n')
    with pytest.raises(UserError, match=r"site\.toml: name"):
        load_site(tmp_path)
    ordered = Deployment(name="x", address="h", sites=("b", "a"))
    assert ordered.sites == ("a", "b") and ordered.remote_settings(("a",)).quorum == 1
