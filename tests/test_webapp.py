"""The web page that classifies images: what it answers, what it refuses, and what a browser makes of it."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("starlette", reason="the page needs the extra `app`")
pytest.importorskip("uvicorn", reason="the page needs the extra `app`")

import httpx
import uvicorn
from websockets.sync.client import connect

import fedprompt as fp
from fedprompt.cli.main import app as command_line
from fedprompt.data import image_formats
from fedprompt.demo import LIMIT
from fedprompt.errors import UserError
from fedprompt.report import read_run
from fedprompt.report.figures import markers_of
from fedprompt.report.style import MAIN, REFERENCE
from fedprompt.report.verdict import introduced
from fedprompt.webapp.adapters import SHOWN_CLASSES, Adapters
from fedprompt.webapp.server import MOST_BYTES, Address, make_app
from test_report_browser import CHROMIUM, FLAGS

BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter with attention maps and one without."""
    data = fp.load_dataset(train=2, test=1)
    clients = fp.partition(data, "iid", clients=2, seed=1)
    out = tmp_path_factory.mktemp("app") / "run"
    settings = {"evaluate.local": False, "train.batch_size": 64}
    fp.train(
        "fedmvp",
        fp.load_clip(),
        data,
        clients,
        rounds=1,
        compare=["promptfl"],
        out=out,
        settings=settings,
        progress=False,
    )
    return out


@pytest.fixture(scope="module")
def adapters(folder: Path) -> Adapters:
    return Adapters.open([folder / "adapters" / "fedmvp", folder / "adapters" / "promptfl"], backbone=None)


@pytest.fixture(scope="module")
def place(adapters: Adapters) -> Iterator[str]:
    """The address of a server that serves the page."""
    address = Address(port=0)
    bound = address.bind()
    server = uvicorn.Server(uvicorn.Config(make_app(adapters, address), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def png(side: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)).save(file, format="PNG")
    return file.getvalue()


def ask(place: str, content: bytes, classes: str = "cat, dog, sun", **headers: str) -> httpx.Response:
    return httpx.post(f"{place}/classify", content=content, headers={**BYTES, "x-classes": classes, **headers})


def test_the_page_proposes_the_classes_and_runs_no_script_but_its_own(place: str, adapters: Adapters) -> None:
    answer = httpx.get(place)
    assert answer.status_code == 200 and ", ".join(adapters.classes[:3]) in answer.text
    policy = answer.headers["content-security-policy"]
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert "default-src 'none'" in policy and f'<script nonce="{nonce}">' in answer.text
    assert httpx.get(place).headers["content-security-policy"] != policy, "every page has a nonce of its own"
    assert "http://" not in answer.text and "https://" not in answer.text


def test_adapters_answer_side_by_side_with_zero_shot_and_the_same_figures_as_in_python(
    place: str, folder: Path
) -> None:
    answer = ask(place, png(), **{"x-name": "a%20sun.png"})
    assert answer.status_code == 200 and "a sun.png" in answer.text
    assert [answer.text.count(f"<span>{name}</span>") for name in ("Zero-shot CLIP", "FedMVP", "PromptFL")] == [1, 1, 1]
    assert "FedMVP: attention to attributes" in answer.text
    image = Image.open(io.BytesIO(png()))
    for trial in ("fedmvp", "promptfl"):
        ((name, value), *_) = (
            fp.load_adapter(folder / "adapters" / trial).predict(image, classes=["cat", "dog", "sun"]).top()[0]
        )
        assert f"<span>{name}</span><b>{100 * value:.0f}%</b>" in answer.text or value < 0.005


def test_class_names_are_text_and_no_html(place: str) -> None:
    answer = ask(place, png(), classes="cat, <img src=x onerror=alert(1)>", **{"x-name": "<script>"})
    assert answer.status_code == 200 and "<script>" not in answer.text and "<img src=x" not in answer.text
    assert "&lt;img src=x" in answer.text


@pytest.mark.parametrize(
    ("content", "classes", "sentence"),
    [
        (b"no image", "cat", "is none of JPEG"),
        (b"", "cat", "The file is empty"),
        (png()[:120], "cat", "cannot be read"),
        (b"\0" * (MOST_BYTES + 1), "cat", "has more than 20 MB"),
        (png(), "cat,cat", "'cat' is named twice"),
        (png(), ",".join(map(str, range(2000))), "give 1,000 at most"),
        (png(), "x" * 300, "has more than 200 letters"),
    ],
)
def test_what_cannot_be_classified_is_a_sentence(place: str, content: bytes, classes: str, sentence: str) -> None:
    answer = ask(place, content, classes)
    assert answer.status_code == 400 and sentence in answer.text
    assert answer.text.endswith((".", ")")) and "Traceback" not in answer.text
    assert ask(place, png()).status_code == 200, "the server goes on"


def test_an_image_of_too_many_pixels_is_refused(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "BUDGET", 100)
    with pytest.raises(UserError, match="has 40 x 40 pixels, more than"):
        adapters.cards(png(), "a.png", ["cat"])


def test_a_page_of_another_site_cannot_use_the_server(place: str) -> None:
    assert httpx.get(place, headers={"host": "evil.example:8150"}).status_code == 400  # a name that leads here
    assert httpx.post(f"{place}/classify", data={"a": "b"}).status_code == 400  # a form, which needs no permission
    answer = httpx.options(f"{place}/classify", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_token_protects_the_page(adapters: Adapters) -> None:
    from starlette.testclient import TestClient

    token = "0123456789abcdef"
    client = TestClient(make_app(adapters, Address("0.0.0.0", token=token)), follow_redirects=False)
    assert client.get("/").status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.post("/classify", content=png(), headers=BYTES).status_code == 401
    answer = client.get(f"/?token={token}")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert (
        "httponly" in answer.headers["set-cookie"].lower() and "samesite=strict" in answer.headers["set-cookie"].lower()
    )
    assert client.get("/").status_code == 200  # with the cookie


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(command_line, [str(word) for word in words], env={"COLUMNS": "300"})
    return result.exit_code, " ".join(result.output.split())


def test_the_command_refuses_what_it_cannot_serve(folder: Path, tmp_path: Path) -> None:
    assert call("app", tmp_path / "none") == (
        2,
        f"The folder {tmp_path / 'none'} does not exist; give the folder of a run or of an adapter.",
    )
    code, said = call("app", folder, "--host", "0.0.0.0")
    assert code == 2 and "protect the page with --token" in said
    code, said = call("app", folder, "--host", "0.0.0.0", "--token", "short")
    assert code == 2 and "less than 16 letters" in said
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        code, said = call("app", folder, "--port", port)
    assert code == 2 and f"The port {port} of 127.0.0.1 cannot be used (address already in use)" in said


def test_methods_have_the_colours_of_their_report(folder: Path) -> None:
    reported = markers_of(read_run(folder))
    for order in (("promptfl", "fedmvp"), ("fedmvp", "promptfl")):
        from_run = Adapters.open([folder], trials=order, backbone=None)
        from_folders = Adapters.open([folder / "adapters" / name for name in order], backbone=None)
        assert from_run.markers == from_folders.markers == [(REFERENCE, "|"), *(reported[name] for name in order)]
    twice = Adapters.open([folder, folder], backbone=None).markers
    assert len(set(twice)) == 3


def test_adapters_of_no_run_have_colours_too(folder: Path, tmp_path: Path) -> None:
    places = [shutil.copytree(folder / "adapters" / name, tmp_path / name / "a") for name in ("promptfl", "fedmvp")]
    markers = Adapters.open(places, backbone=None).markers
    assert markers[:2] == [(REFERENCE, "|"), (MAIN, "o")] and len(set(markers)) == 3


def test_the_number_of_classes_that_are_shown_is_said(place: str) -> None:
    many = ask(place, png(), classes="cat, dog, sun, tree, car, bus, cup").text
    assert "The 5 most probable of 7 classes." in many
    assert "most probable of" not in ask(place, png()).text


def test_two_adapters_of_one_method_have_names_of_their_own(folder: Path) -> None:
    place = folder / "adapters" / "promptfl"
    names = [one.name for one in Adapters.open([place, place], backbone=None).opened]
    assert names == ["Zero-shot CLIP", "PromptFL", "PromptFL (promptfl)"] and len(set(names)) == 3


def test_the_page_says_what_the_report_says_of_each_adapter(folder: Path, tmp_path: Path) -> None:
    about = Adapters.open([folder], backbone=None).about
    run = read_run(folder)
    assert about[:2] == (
        *introduced(run, next(trial for trial in run.trials if trial.name == "fedmvp")),
        "Figures of the run are of its own 120 classes and do not hold for a choice among others.",
    )
    images = sum(map(run.header.partition.images, range(2)))
    assert f"The clients hold {images:,} training images of 60 classes." in about and about[-1] == LIMIT
    outside = shutil.copytree(folder / "adapters" / "promptfl", tmp_path / "given")
    assert Adapters.open([outside], backbone=None).about == ("PromptFL, from the adapter given.", LIMIT)


def test_the_page_shows_what_it_knows_of_the_adapters(place: str, adapters: Adapters) -> None:
    text = unescape(httpx.get(place).text)
    assert adapters.about and all(said in text for said in adapters.about)


def test_among_what_is_chosen_is_said_if_no_class_or_one_is_typed(place: str, adapters: Adapters) -> None:
    text = unescape(adapters.cards(png(), "a.png", ()))
    listed = ", ".join(adapters.classes[:SHOWN_CLASSES])
    assert f"No class is typed, so PromptFL chooses among its 120 classes: {listed} and 100 more." in text
    said = "The only class is 'cat', so every image has it with 100%; give two classes at least."
    assert unescape(ask(place, png(), classes="cat").text).count(said) == 1
    assert "No class is typed" not in ask(place, png()).text and "The only class" not in ask(place, png()).text


def test_every_card_of_several_labels_has_the_threshold_of_its_own_method(tmp_path: Path) -> None:
    data = fp.load_dataset("scenes", train=6, test=1)
    clients = fp.partition(data, "iid", clients=2)
    run = fp.train("fedmpt", fp.load_clip(), data, clients, rounds=1, out=tmp_path / "run", progress=False)
    opened = Adapters.open([run.folder], backbone=None)
    own = unescape(opened.cards(png(), "a.png", ()))
    assert re.search(r"FedMPT: A label counts as present from [\d.]+%, fitted on training images\.", own)
    assert "Zero-shot CLIP: A label counts as present from 50.0%; no threshold was fitted for these classes." in own
    other = unescape(opened.cards(png(), "a.png", opened.classes[:3]))
    assert "FedMPT: A label counts as present from 50.0%; the threshold that was fitted on training images" in other


class Browser:
    """A page in headless Chromium, driven over its debugging protocol."""

    def __init__(self, address: str, folder: Path) -> None:
        assert CHROMIUM is not None
        profile = folder / "profile"
        where = ("--remote-debugging-port=0", f"--user-data-dir={profile}", "--remote-allow-origins=*")
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, *where, address], stderr=subprocess.DEVNULL)
        port = profile / "DevToolsActivePort"
        self.wait(lambda: port.is_file() and port.read_text().count("\n"))
        pages = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        self.wait(lambda: any(one["url"].startswith(address) for one in httpx.get(pages).json()))
        (page,) = (one for one in httpx.get(pages).json() if one["url"].startswith(address))
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        self.number = 0

    @staticmethod
    def wait(until: Callable[[], object]) -> None:
        """Until it is true, for a minute at most."""
        for _ in range(600):
            if until():
                return
            time.sleep(0.1)
        raise AssertionError("the browser does not get there")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """A command of the protocol and its result."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv(timeout=60))).get("id") != self.number:
            pass
        return answer["result"]

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def choose(self, paths: Sequence[Path]) -> None:
        """Choose files as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def close(self) -> None:
        """End it."""
        self.socket.close()
        self.process.terminate()
        self.process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_what_every_adapter_recognises_and_asks_no_other_host(place: str, tmp_path: Path) -> None:
    (tmp_path / "sun.png").write_bytes(png())
    (tmp_path / "letter.png").write_text("no image")
    numbered = [tmp_path / f"{number}.png" for number in (10, 2)]
    for path in numbered:
        path.write_bytes(png())
    browser = Browser(place, tmp_path)
    try:
        browser.wait(lambda: browser.value("document.readyState == 'complete' && !!document.getElementById('files')"))
        browser.value("document.getElementById('classes').value = 'cat, dog'")
        browser.choose([tmp_path / "sun.png", tmp_path / "letter.png", *numbered])
        browser.wait(lambda: "is none of" in (browser.value("document.getElementById('results').textContent") or ""))
        browser.wait(lambda: "..." not in (browser.value("document.getElementById('results').textContent") or "..."))
        text = browser.value("document.getElementById('results').innerText")
        places = [text.index(name) for name in ("2.png", "10.png", "letter.png", "sun.png")]
        assert places == sorted(places), "images that came together stand in the natural order of their names"
        assert all(name in text for name in ("sun.png", "Zero-shot CLIP", "FedMVP", "PromptFL", "cat", "dog"))
        assert "letter.png is none of JPEG" in text
        drawn = (
            "[...document.images].every(image => image.complete && image.naturalWidth > 0) && document.images.length"
        )
        browser.wait(lambda: browser.value(drawn))
        browser.value(
            "{const box = document.getElementById('classes'); box.value = 'horse, tree'; "
            "box.dispatchEvent(new Event('change'))}"
        )
        again = "document.querySelector('#results section').innerText"
        browser.wait(lambda: "horse" in (browser.value(again) or "") and "dog" not in browser.value(again))
        fetched = browser.value("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert {name.split("?")[0] for name in fetched if not name.startswith("data:")} == {f"{place}/classify"}
    finally:
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_errors_stand_apart_and_what_holds_for_all_images_is_said_once(place: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no image")
    for name in ("c.png", "d.png"):
        (tmp_path / name).write_bytes(png())
    browser = Browser(place, tmp_path)
    try:
        browser.wait(lambda: browser.value("document.readyState == 'complete' && !!document.getElementById('files')"))
        browser.value("document.getElementById('classes').value = 'cat, dog, sun, tree, car, bus, cup'")
        browser.choose([tmp_path / f"{name}.png" for name in "abcd"])
        browser.wait(lambda: browser.value("document.querySelectorAll('#results section > .data').length") == 2)
        assert browser.value("document.getElementById('results').innerText").count("most probable of 7 classes") == 1
        boxes = "[...document.querySelectorAll('#results .status')].map(box => box.getBoundingClientRect())"
        (top, bottom) = browser.value(f"{boxes}.map(box => [box.top, box.bottom])")
        assert bottom[0] - top[1] >= 8, "pixels between two messages"
    finally:
        browser.close()
