"""A CLIP of the Hub becomes a folder that opens, whole or not at all; the server here is on the loopback interface."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedprompt.clip import fetching, hub
from fedprompt.clip.fetching import fetch
from fedprompt.clip.model import Clip
from fedprompt.errors import UserError
from hub_server import COMMIT, NAME, Hub, hub_server
from test_cli import call, sentence
from test_clip_checkpoints import CONFIG, GELU, assert_same, write


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_parts: Any) -> dict[str, bytes]:
    """The files of a CLIP, beside others that a repository holds."""
    place = tmp_path_factory.mktemp("clip")
    for part in tiny_parts:
        part.save_pretrained(place)
    own = {path.name: path.read_bytes() for path in place.iterdir()}
    other = {"pytorch_model.bin": b"pickle", "flax_model.msgpack": b"x", "onnx/config.json": b"{}"}
    return {**own, **other, "README.md": b"# A small CLIP"}


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which the client reads when it is imported."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def served(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(files) as running:
        use(running.url, monkeypatch)
        yield running


def test_a_fetched_clip_opens_without_a_network(
    served: Hub, tmp_path: Path, tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "clip"
    said = call("backbone", "fetch", NAME, out)
    assert f"{NAME} at commit {COMMIT[:12]} is in {out}" in said and f"--set backbone.path={out}" in said
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert Clip.load(out).fingerprint == tiny_clip.fingerprint
    assert (out / "revision.txt").read_text() == f"{NAME} {COMMIT}\n"
    assert [path.name for path in out.parent.iterdir()] == ["clip"]


def test_only_safetensors_and_texts_of_one_commit_are_asked_for(served: Hub, tmp_path: Path) -> None:
    found = fetch(NAME, tmp_path / "clip")
    assert found.commit == COMMIT
    names = {path.name for path in found.folder.iterdir()}
    assert {"model.safetensors", "config.json", "README.md"} <= names
    assert not names & {"pytorch_model.bin", "flax_model.msgpack", "onnx", ".cache"}
    fetched = [path for path in served.asked if "/resolve/" in path]
    assert fetched and all(f"/resolve/{COMMIT}/" in path for path in fetched)
    assert not any(re.search("bin|msgpack|onnx", path) for path in fetched)


def test_what_breaks_off_leaves_nothing(served: Hub, tmp_path: Path) -> None:
    served.torn.add("model.safetensors")
    with pytest.raises(UserError, match="cannot be fetched from http://127"):
        fetch(NAME, tmp_path / "clip")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_open_as_a_clip_leaves_nothing(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server({**files, "config.json": b'{"model_type": "bert"}'}) as running:
        use(running.url, monkeypatch)
        with pytest.raises(UserError, match="its model_type is 'bert', which is none of the supported"):
            fetch(NAME, tmp_path / "clip")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_safetensors_are_not_fetched(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = {name: own for name, own in files.items() if name != "model.safetensors"}
    with hub_server(pickled) as running:
        use(running.url, monkeypatch)
        with pytest.raises(UserError, match=r"no weights as safetensors at revision 'main'.*--revision refs/pr/1"):
            fetch(NAME, tmp_path / "clip")
    assert not [path for path in running.asked if "/resolve/" in path]


def test_weights_in_several_files_are_taken_with_their_index(files: dict[str, bytes]) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["config.json", "tokenizer.json", "pytorch_model.bin.index.json", "fp16.safetensors"]
    assert fetching._wanted(NAME, "main", [*shards, *others]) == sorted([*shards, "config.json", "tokenizer.json"])


def test_mistakes_are_named_with_the_fix(served: Hub, tmp_path: Path) -> None:
    assert "no model 'nobody/nothing'" in sentence("backbone", "fetch", "nobody/nothing", tmp_path / "clip")
    assert "no revision 'mian'; did you mean 'main'?" in call(
        "backbone", "fetch", NAME, tmp_path / "clip", "--revision", "mian", code=2
    )
    assert "is no id of the Hub; write owner/name" in sentence("backbone", "fetch", "clip", tmp_path / "clip")
    (tmp_path / "file").write_text("x")
    assert "is a file; give a new folder" in sentence("backbone", "fetch", NAME, tmp_path / "file")
    assert "is not empty; give a new one" in sentence("backbone", "fetch", NAME, tmp_path)
    assert not served.asked[-1].startswith("GET /api/models/somebody/small-clip/revision/main")


def test_without_a_network_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:9", monkeypatch)
    said = sentence("backbone", "fetch", NAME, tmp_path / "clip")
    assert "cannot be fetched from http://127.0.0.1:9" in said and "machine with a network" in said


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a repository of open_clip, with the weights in both forms."""
    place = tmp_path_factory.mktemp("open_clip")
    write(place, state=GELU.state_dict(), config=CONFIG)
    write(place, state=GELU.state_dict(), config=CONFIG, name="open_clip_pytorch_model.bin")
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_an_open_clip_repository_is_opened_by_its_id_and_then_without_a_network(
    checkpoint: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_server(checkpoint) as running:
        use(running.url, monkeypatch)
        hub.hub_answers.cache_clear()
        first = Clip.load(NAME)
    assert_same(first, GELU)
    assert not any(path.endswith(".bin") for path in running.asked)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    hub.hub_answers.cache_clear()
    assert Clip.load(NAME).fingerprint == first.fingerprint
    assert hub.input_side(NAME) == 32
    assert (hub.cached_folder(NAME) / "open_clip_config.json").is_file()
    hub.hub_answers.cache_clear()


def test_an_open_clip_repository_is_fetched_with_its_safetensors(
    checkpoint: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server(checkpoint) as running:
        use(running.url, monkeypatch)
        found = fetch(NAME, tmp_path / "clip")
    assert {path.name for path in found.folder.iterdir()} == set(checkpoint) - {"open_clip_pytorch_model.bin"} | {
        "revision.txt"
    }
    assert_same(Clip.load(found.folder), GELU)
