"""A server that lies to a site (attacks on budgets, facts and order), and sites that are not what they were."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import fedprompt
from fedprompt import methods
from fedprompt.cli.main import app
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.demo import weights_folder
from fedprompt.deploy.audit import AUDIT, LEDGER, read_audit
from fedprompt.deploy.checked_channel import CheckedChannel, MessageNumbers, Terms
from fedprompt.deploy.hash_chain import DamagedError
from fedprompt.deploy.ledger import IMAGES, SiteLedger
from fedprompt.deploy.settings import SITE, Deployment, Policy, SiteFile, load_site, save
from fedprompt.deploy.site import Site
from fedprompt.errors import UserError
from fedprompt.experiments.experiment import load_backbone
from fedprompt.federated.rounds import initial_state
from fedprompt.runtimes.payload import (
    DONE,
    EVALUATE,
    FAILED,
    HELLO,
    REFUSED,
    TRAIN,
    VERSION,
    Fields,
    Payload,
    RawTensor,
)
from fedprompt.runtimes.tensor_codec import encode
from fedprompt.seeding import numpy_stream
from fedprompt.testing import tiny_images

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "15"))
CLASSES = ("cat", "dog")
RECIPE = """
name = "job"
[data]
source = "sites"
classes = ["cat", "dog"]
[partition]
rule = "by_site"
sites = ["east", "north"]
[method]
name = "promptfl"
[train]
rounds = 40
batch_size = 4
lr = {lr}
{server}
"""
SAMPLE = '[train.server.privacy]\nname = "sample"\nclip = 1.0\nnoise = {noise}\nepsilon = {epsilon}\ndelta = {delta}\n'
CLIENT = SAMPLE.replace("sample", "client")


@pytest.fixture(scope="module")
def start() -> Mapping[str, RawTensor]:
    return encode(initial_state(methods.load("promptfl")(load_backbone(BackboneTable()), generator=None))[0])


def make_site(folder: Path, **policy: object) -> Site:
    """A site with four training and two test images."""
    for number, (split, name) in enumerate(itertools.product(("train", "train", "test"), CLASSES)):
        place = folder / "images" / split / name
        place.mkdir(parents=True, exist_ok=True)
        tiny_images(6).open(number).save(place / f"patient-{number}.png")
    about = {"device": "cpu", "data": str(folder / "images"), "policy": Policy(smallest_count=1, **policy)}
    save(folder / SITE, SiteFile(name="east", superlink="localhost:1", **about))
    return Site(folder)


class LyingServer:
    """Sends a site whatever it is told to, with valid numbers unless they are given."""

    def __init__(self, site: Site, start: Mapping[str, RawTensor]) -> None:
        self.site, self.start = site, start
        self.numbers = itertools.count(1)
        self.messages: list[Payload] = []

    def ask(self, kind: str = TRAIN, *, lr: float = 0.01, server: str = "", **fields: object) -> Payload:
        known = {"run": "0" * 32, "trial": "promptfl", "round": 1, "client": 0, "since": 0, "upload": "float32"}
        recipe = RECIPE.format(lr=lr, server=server)
        said = {VERSION: fedprompt.__version__, "recipe": recipe, **known, "serial": [1, next(self.numbers)], **fields}
        return self.send(Payload(kind, said, {} if kind == HELLO else self.start))

    def send(self, message: Payload) -> Payload:
        self.messages.append(message)
        return self.site.answer(message)


def reason(answer: Payload) -> str:
    assert answer.kind == REFUSED and not answer.tensors, answer.fields
    return str(answer.fields["reason"])


def noisy(*, noise: float = 2.0, epsilon: float = 5.0, delta: float = 1e-3, text: str = SAMPLE) -> str:
    return text.format(noise=noise, epsilon=epsilon, delta=delta)


def cached(cache: Path, name: str, content: Path) -> None:
    """Put a folder into a cache of the Hub as its client does: files by hash, and links to them per snapshot."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = place / "snapshots" / ("0" * 40), place / "blobs"
    for folder in (snapshot, blobs, place / "refs"):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate(sorted(content.iterdir())):
        if file.is_file():
            shutil.copyfile(file, blobs / str(number))
            (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))


def test_the_answer_to_a_backbone_does_not_depend_on_the_files_of_the_site(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that names logs/worker.log, or the file of a set of training images, learns nothing about them."""
    server = LyingServer(make_site(tmp_path), start)
    assert server.ask().kind == DONE
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(weights_folder(), tmp_path / "models" / "clip")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_text("a line")
    images = next((tmp_path / IMAGES).iterdir()).name
    cached(tmp_path / "cache", "nobody/bert", tmp_path / "images" / "train" / "cat")

    def asked(path: str) -> Payload:
        recipe = f'{RECIPE.format(lr=0.01, server="")}[backbone]\npath = "{path}"\n'
        return server.ask(HELLO, run=f"{len(server.messages):032x}", recipe=recipe)

    there = ("logs/worker.log", "models/clip", f"{IMAGES}/{images}", "images/train", "nobody/bert")
    said = {reason(asked(path)) for path in (*there, "logs/nothing.log", f"{IMAGES}/{'0' * 32}", "a--b/c", "a..b/c")}
    assert said == {"the job's backbone cannot be loaded at this site; its log says why (rule backbone)."}
    cached(tmp_path / "cache", "models/clip", weights_folder())
    (tmp_path / "models" / "clip" / "config.json").write_text("{}")
    answer = asked("models/clip")
    assert answer.kind == DONE and answer.fields["facts"]["backbone"], "the id is opened from the Hub's cache"


@pytest.fixture
def needs_accounting() -> None:
    pytest.importorskip("dp_accounting")


@pytest.mark.usefixtures("needs_accounting")
def test_no_message_makes_the_ledger_smaller(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    """Attack 4: the same run is sent again with other noise and delta, in other runs and rounds, after restarts."""
    draws, server = numpy_stream(0, "attack 4"), LyingServer(make_site(tmp_path, epsilon=9.0), start)
    spent, trained = 0.0, 0
    for _ in range(TRIES):
        kind = noisy(
            noise=float(draws.choice([1.5, 3.0, 1000.0])),
            epsilon=float(draws.choice([2.0, 9.0])),
            delta=float(draws.choice([1e-3, 1e-3, 1e-5, 0.5])),
            text=CLIENT if draws.integers(8) == 0 else SAMPLE,
        )
        answer = server.ask(
            server=kind,
            run=f"{draws.integers(3):032x}",
            round=int(draws.integers(1, 41)),
            lr=float(draws.choice([0.1, 1])),
        )
        ledger = SiteLedger(tmp_path)
        now = sum(epsilon for _, epsilon in ledger.spent(lambda images: 1e-3))  # of one set of images
        assert spent <= now <= 9.0 and len(ledger.lines()) == trained + (answer.kind == DONE)
        spent, trained = now, len(ledger.lines())
        if draws.integers(4) == 0:
            server.site = Site(tmp_path)
    assert spent > 0


@pytest.mark.usefixtures("needs_accounting")
def test_a_run_keeps_the_recipe_of_its_first_message(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    server = LyingServer(make_site(tmp_path, epsilon=9.0), start)
    assert server.ask(HELLO, server=noisy()).kind == DONE
    for changed in ({"server": noisy(noise=1000.0)}, {"server": noisy(), "lr": 0.5}):
        assert "(rule pinned recipe)" in reason(server.ask(**changed))
    assert server.ask(server=noisy()).kind == DONE


@pytest.mark.usefixtures("needs_accounting")
def test_no_job_sets_the_delta(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    """Attack 5: delta = 0.9999 passes every epsilon policy."""
    draws, server = numpy_stream(0, "attack 5"), LyingServer(make_site(tmp_path, epsilon=5.0), start)
    for _ in range(TRIES):
        delta = min(float(np.exp(draws.uniform(np.log(1.01e-3), 0))), 0.9999)
        answer = server.ask(server=noisy(noise=float(draws.choice([0.1, 2.0, 9.0])), delta=delta))
        assert "(rule delta)" in reason(answer)
    assert not SiteLedger(tmp_path).lines()
    assert server.ask(server=noisy(delta=1e-4)).kind == DONE
    assert "(rule delta)" in reason(
        LyingServer(make_site(tmp_path, epsilon=5.0, delta=1e-5), start).ask(server=noisy(delta=1e-4), run="1" * 32)
    )


@pytest.mark.parametrize("policy", [{"epsilon": 5.0}, {"minimum_noise": 0.5}])
@pytest.mark.usefixtures("needs_accounting")
def test_noise_that_the_server_adds_does_not_count(
    tmp_path: Path, start: Mapping[str, RawTensor], policy: dict
) -> None:
    """Attack 6: client-level privacy passes the policy although the site sends its plain update."""
    server = LyingServer(make_site(tmp_path, **policy), start)
    for kind in (TRAIN, HELLO, EVALUATE):
        for noise in (0.6, 100.0):
            assert "added by the server" in reason(server.ask(kind, server=noisy(noise=noise, text=CLIENT)))
        assert "no differential privacy" in reason(server.ask(kind))
    assert not SiteLedger(tmp_path).lines()
    assert server.ask(server=noisy()).kind == DONE


@pytest.mark.usefixtures("needs_accounting")
def test_policies_of_noise_budget_and_recipe_name_their_rule(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    server = LyingServer(make_site(tmp_path, epsilon=5.0, minimum_noise=1.0), start)
    assert "(rule minimum_noise)" in reason(server.ask(server=noisy(noise=0.9)))
    assert "(rule epsilon)" in reason(server.ask(server=noisy(epsilon=5.5)))
    assert "(rule recipe)" in reason(server.ask(server="[train.server.privacy]\nname = 'sample'\nepsilon = true"))
    (last, *_) = [entry.fields for entry in read_audit(tmp_path)][::-1]
    server = LyingServer(make_site(tmp_path, recipes=("0000",)), start)
    assert "(rule recipes)" in reason(server.ask())
    found = [entry.fields["recipe"] for entry in read_audit(tmp_path)][-1]
    assert last["recipe"] != found
    server = LyingServer(make_site(tmp_path, recipes=(found[:16],)), start)
    assert server.ask().kind == DONE


def other_backbone(folder: Path) -> None:
    """A CLIP of the same shape with one other weight."""
    shutil.copytree(weights_folder(), folder)
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1
    save_file(weights, path, {"format": "pt"})


def swap_backbone(folder: Path) -> None:
    other_backbone(folder / "clip")
    site = load_site(folder)
    save(folder / SITE, site.model_copy(update={"backbone": str(folder / "clip")}))


def add_image(folder: Path) -> None:
    tiny_images(9).open(8).save(folder / "images" / "train" / "cat" / "new.png")


def replace_image(folder: Path) -> None:
    tiny_images(9).open(8).save(folder / "images" / "train" / "cat" / "patient-0.png")


def remove_image(folder: Path) -> None:
    (folder / "images" / "train" / "cat" / "patient-0.png").unlink()


def move_image(folder: Path) -> None:
    (folder / "images" / "train" / "cat" / "patient-0.png").rename(
        folder / "images" / "train" / "dog" / "patient-0.png"
    )


def replace_test_image(folder: Path) -> None:
    tiny_images(9).open(8).save(folder / "images" / "test" / "cat" / "patient-4.png")


def other_authority(folder: Path) -> None:
    (folder / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


CHANGES: dict[Callable[[Path], None], str] = {
    swap_backbone: "backbone",
    add_image: "data",
    replace_image: "data",
    remove_image: "data",
    move_image: "data",
    replace_test_image: "data",
    other_authority: "server",
}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_facts_that_change_during_a_run_stop_the_sites_part(
    tmp_path: Path, start: Mapping[str, RawTensor], change: Callable[[Path], None], restart: bool
) -> None:
    """Attack 7: another backbone, or other images, are used from round 2 on without a word."""
    server = LyingServer(make_site(tmp_path), start)
    assert server.ask(HELLO).kind == server.ask(round=1).kind == DONE
    shutil.copytree(tmp_path / "images", tmp_path / "old")
    change(tmp_path)
    server.site = Site(tmp_path) if restart else server.site
    for kind in (TRAIN, EVALUATE, HELLO):
        said = reason(server.ask(kind, round=2))
        assert f"(rule pinned {CHANGES[change]})" in said and "new run" in said and "patient" not in said
    if CHANGES[change] == "data":
        shutil.rmtree(tmp_path / "images")
        (tmp_path / "old").rename(tmp_path / "images")
        assert server.ask(round=2).kind == DONE, "the old images are back"
    assert server.ask(round=1, run="1" * 32).kind == DONE, "a new run begins with what there is"


@pytest.mark.parametrize("change", [swap_backbone, add_image])
def test_what_a_preflight_found_wrong_can_be_corrected_until_the_first_training(
    tmp_path: Path, start: Mapping[str, RawTensor], change: Callable[[Path], None]
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    wrong = server.ask(HELLO)
    change(tmp_path)
    assert f"(rule pinned {CHANGES[change]})" in reason(server.ask()), "without another preflight, nothing changes"
    right = server.ask(HELLO)
    assert right.kind == DONE and right.fields["facts"] != wrong.fields["facts"]
    assert server.ask().kind == server.ask(HELLO).kind == DONE
    shutil.rmtree(tmp_path / "images" / "train" / "dog")
    for kind in (HELLO, TRAIN):
        assert "(rule pinned data)" in reason(server.ask(kind, round=2)), "a training has fixed the images"


@dataclass
class Expected:
    """What a site that keeps its promises has accepted of one run."""

    job: tuple[object, ...]
    serial: int = 0
    last: int = 0


@pytest.mark.usefixtures("needs_accounting")
def test_a_message_is_answered_only_if_no_rule_forbids_it(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    """Messages of valid formats, with any recipe, noise, delta, run, round, number and site, beside a list of rules."""
    draws, server = (
        numpy_stream(0, "valid formats"),
        LyingServer(make_site(tmp_path, epsilon=9.0, maximum_rounds=40), start),
    )
    runs: dict[str, Expected] = {}
    answered = 0
    for serial in range(1, 4 * TRIES):
        run, lr = f"{draws.integers(3) + 3 * (serial // 60):032x}", float(draws.choice([0.01, 0.01, 0.01, 0.5]))
        noise, delta = float(draws.choice([3.0, 3.0, 3.0, 1000.0])), float(draws.choice([1e-3, 1e-3, 1e-3, 0.9]))
        kind, number = str(draws.choice([TRAIN, TRAIN, HELLO])), int(draws.choice([-1, 0, *range(1, 41), 41, 10**9]))
        text, client = (CLIENT if draws.random() < 0.1 else SAMPLE), int(draws.choice([0] * 8 + [1, 2]))
        sent = serial if draws.random() < 0.9 else int(draws.integers(1, serial + 1))
        job = (lr, noise, delta, text)
        known = runs.get(run, Expected(job))
        forbids = {
            "order": sent <= known.serial or (kind == TRAIN and not max(1, known.last - 3) <= number <= 40),
            "pinned recipe": job != known.job,
            "name": client != 0,
            "delta": delta > 1e-3,
            "epsilon": text == CLIENT,
        }
        settings = noisy(noise=noise, delta=delta, text=text)
        answer = server.ask(kind, lr=lr, server=settings, run=run, round=number, client=client, serial=[1, sent])
        rules = {rule for rule, forbidden in forbids.items() if forbidden}
        answered += answer.kind == DONE
        rule = "" if answer.kind == DONE else reason(answer).rpartition("(rule ")[2].removesuffix(").")
        spent = rule == "epsilon" and kind == TRAIN and not rules  # the message was in order, and its budget is spent
        assert spent or (rule in rules if rule else not rules)
        if spent or not rule:
            runs[run] = Expected(job, sent, max(known.last, number) if kind == TRAIN else known.last)
    assert answered > TRIES / 4 and len(list(read_audit(tmp_path))) == len(server.messages)


def test_replays_and_messages_out_of_order_are_refused_and_recorded(
    tmp_path: Path, start: Mapping[str, RawTensor]
) -> None:
    draws, server = numpy_stream(0, "order"), LyingServer(make_site(tmp_path), start)
    assert server.ask(HELLO).kind == DONE
    last = 0
    for _ in range(TRIES):
        number = int(draws.integers(-1, 43))
        answer = server.ask(round=number)
        allowed = 1 <= number <= 40 and number + 4 > last
        assert (answer.kind == DONE) == allowed
        last = max(last, number) if allowed else last
        old = server.messages[draws.integers(len(server.messages))]
        if draws.integers(3) == 0:
            server.site = Site(tmp_path)
        assert "(rule order)" in reason(server.send(old))
    for serial in (None, 7, [1], [1, 0], [True, 2], ["9", 9], [9.0, 9.0], [10**30, 1], [9, 9, 9]):
        assert "(rule order)" in reason(server.ask(serial=serial))
    for client, name in ((1, "north"), (5, "name"), (-1, "name"), (True, "name")):
        assert "(rule name)" in reason(server.ask(client=client)), name
    for number in (1.0, True, "1", None):
        assert "(rule order)" in reason(server.ask(round=number))
    assert server.ask(round=40).kind == DONE
    rules = [entry.fields["rule"] for entry in read_audit(tmp_path)]
    assert len(rules) == len(server.messages) and rules.count("order") >= TRIES


def test_every_message_has_one_line_and_no_secret_is_in_it(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    draws, server = numpy_stream(0, "audit"), LyingServer(make_site(tmp_path), start)
    odd: tuple[object, ...] = ("\ud800", "x" * 10_000, [[[]]], {"a": 1}, 1.5, True, None, 2**60, "../images/cat")
    for _ in range(TRIES):
        field = str(draws.choice(["run", "trial", "round", "client", "serial", "recipe", "since", "upload"]))
        kind = str(draws.choice([TRAIN, HELLO, EVALUATE, "../x", ""]))
        answer = server.ask(kind, **{field: odd[draws.integers(len(odd))]})
        assert not any(secret in str(answer.fields) for secret in ("patient", str(tmp_path), "site.toml"))
    assert server.ask(HELLO).kind == server.ask().kind == DONE
    entries = list(read_audit(tmp_path))
    assert len(entries) == len(server.messages)
    last = entries[-1].fields
    assert last["kind"] == TRAIN and last["rule"] == "allowed" and last["left"]["tensors"] == ["context"]
    assert last["left"]["bytes"] > 0 and last["epsilon"] is None and last["server"] == "none"
    text = (tmp_path / AUDIT).read_text()
    for secret in ("patient", "cat", "dog", "images/", str(tmp_path), "x" * 100):
        assert secret not in text
    assert max(map(len, text.splitlines())) < 1500


def test_any_flipped_byte_of_trail_and_ledger_is_found(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert server.ask(HELLO).kind == server.ask().kind == DONE
    for name in (AUDIT, LEDGER):
        path, content = tmp_path / name, (tmp_path / name).read_bytes()
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
            with pytest.raises(DamagedError):
                list(read_audit(tmp_path))
        answer = Site(tmp_path).answer(server.messages[-1])
        assert answer.kind in (FAILED, REFUSED) and not answer.tensors, "a damaged record stops the site"
        path.write_bytes(content)
    (tmp_path / LEDGER).unlink()
    with pytest.raises(DamagedError, match="lacks the training of line 2"):
        list(read_audit(tmp_path))


def test_what_cannot_be_recorded_does_not_leave(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert server.ask(HELLO).kind == DONE

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedprompt.deploy.hash_chain.os.write", full)
        answer = server.ask(HELLO)
    assert answer.kind == FAILED and set(answer.fields) == {"reason"} and not answer.tensors
    assert server.ask().kind == DONE


def test_the_command_prints_the_trail_and_what_was_spent(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    pytest.importorskip("dp_accounting")
    pytest.importorskip("flwr")
    server = LyingServer(make_site(tmp_path), start)
    server.ask(server=noisy())
    server.ask(server=noisy(), round=0)
    server.ask(run="1" * 32)
    result = CliRunner().invoke(app, ["site", "audit", str(tmp_path)], env={"COLUMNS": "200"})
    said = " ".join(result.output.split())
    assert result.exit_code == 0, said
    assert "allowed" in said and "order" in said and "3 messages" in said and "epsilon" in said
    assert "1 training added no noise at the site; no epsilon covers it." in said


FACTS = {"fedprompt": "1", "method": "m", "backbone": "b", "classes": "c"}


class Sites:
    """A channel to sites with these facts, which answer everything; `present` are those connected."""

    def __init__(self, **facts: Mapping[str, str]) -> None:
        self.facts = {name: dict(one) for name, one in facts.items()}
        self.present = dict.fromkeys(facts, 1)
        self.asked: list[tuple[str, str]] = []
        self.spoil: Callable[[Payload], Payload] = lambda answer: answer

    def sites(self) -> Mapping[str, int]:
        return self.present

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        self.asked += [(name, payload.kind) for name, payload in payloads.items()]
        return {
            name: self.spoil(
                Payload(
                    DONE,
                    {
                        **{"facts": self.facts[name], "serial": payload.fields["serial"], "time": time.time()},
                        **{"site": name, "versions": {"torch": "2"}, "images": 5, "labels": [5, None], "unreadable": 0},
                        **{"tests": True, "scores": "exact"},
                    },
                )
            )
            for name, payload in payloads.items()
            if name in self.present
        }


def checked(sites: Sites, data: dict[str, str], admitted: list[str]) -> CheckedChannel:
    def admit(name: str, fields: Fields) -> None:
        admitted.append(name)

    deployment = Deployment(name="test", address="localhost", sites=("east", "north"), connect_timeout=0)
    terms = Terms(("east", "north"), {"recipe": "r"}, FACTS, data, admit)
    return CheckedChannel(sites, deployment, MessageNumbers(1), terms)


def used(answers: Mapping[str, Payload | str]) -> dict[str, str]:
    return {name: answer if isinstance(answer, str) else "used" for name, answer in answers.items()}


BOTH = {"east": Payload(TRAIN), "north": Payload(TRAIN)}


def test_a_site_that_joins_late_passes_the_preflight_first() -> None:
    """Attack 15: another CLIP, other data or another version joins from round 4 on unnoticed."""
    sites, admitted = Sites(east=FACTS | {"data": "1"}, north=FACTS | {"data": "2"}), []
    del sites.present["north"]
    channel = checked(sites, {}, admitted)
    channel.preflight(on_warning=admitted.append)
    assert admitted == ["east", "The site north is not connected; it may join in a later round."]
    for fact in FACTS:
        sites.present["north"], sites.facts["north"][fact] = 1, "other"
        said = used(channel.ask(BOTH, deadline=1))
        assert said["east"] == "used" and f"{fact} is 'other'" in said["north"]
        assert sites.asked[-2:] == [("east", TRAIN), ("north", HELLO)], "nobody waits for it, and it trains nothing"
        sites.facts["north"][fact] = FACTS[fact]
    assert "takes part from the next round on" in used(channel.ask(BOTH, deadline=1))["north"]
    assert used(channel.ask(BOTH, deadline=1)) == {"east": "used", "north": "used"}
    assert sites.asked[-1] == ("north", TRAIN) and admitted[-1] == "north"


def test_a_site_that_restarts_with_other_facts_is_noticed_in_the_same_round() -> None:
    draws, data = numpy_stream(0, "attack 15"), {}
    sites = Sites(east=FACTS | {"data": "1"}, north=FACTS | {"data": "2"})
    channel = checked(sites, data, [])
    channel.preflight(on_warning=print)
    assert data == {"east": "1", "north": "2"}
    for _ in range(TRIES):
        name, fact = str(draws.choice(["east", "north"])), str(draws.choice([*FACTS, "data"]))
        before, sites.facts[name][fact] = sites.facts[name][fact], "other"
        for _ in range(2):
            said = used(channel.ask(BOTH, deadline=1))
            assert said.pop(name).startswith("preflight: ") and [*said.values()] == ["used"]
        sites.facts[name][fact] = before
        assert "has now passed" in used(channel.ask(BOTH, deadline=1))[name]
        assert used(channel.ask(BOTH, deadline=1)) == {"east": "used", "north": "used"}
    del sites.facts["east"]["data"]
    assert "lacks the facts" in used(channel.ask(BOTH, deadline=1))["east"]


def test_an_answer_to_another_message_is_not_used() -> None:
    sites = Sites(east=FACTS | {"data": "1"}, north=FACTS | {"data": "2"})
    channel = checked(sites, {}, [])
    channel.preflight(on_warning=print)
    kept: list[Payload] = []
    sites.spoil = lambda answer: kept.append(answer) or answer
    channel.ask(BOTH, deadline=1)
    for serial in (kept[0].fields["serial"], [1, 99], None, "1"):
        sites.spoil = lambda answer, serial=serial: replace(answer, fields={**answer.fields, "serial": serial})
        assert set(used(channel.ask(BOTH, deadline=1)).values()) == {"order: its answer is to another message."}


def test_the_preflight_names_what_differs_site_by_site() -> None:
    sites = Sites(east=FACTS | {"data": "1", "backbone": "x"}, north=FACTS | {"data": "2", "fedprompt": "0"})
    with pytest.raises(UserError, match=r"east: preflight: backbone is 'x'.*north: preflight: fedprompt is '0'"):
        checked(sites, {}, []).preflight(on_warning=print)
    sites = Sites(east=FACTS | {"data": "3"}, north=FACTS | {"data": "2"})
    with pytest.raises(UserError, match=r"east: .*its images are not those with which the run began"):
        checked(sites, {"east": "1"}, []).preflight(on_warning=print)
