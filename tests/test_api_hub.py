"""Adapters on the Hub, here a server on the loopback interface: what is uploaded, and what is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner

import fedprompt as fp
from fedprompt.cli.main import app
from fedprompt.testing import tiny_clip, tiny_dataset
from hub_server import COMMIT, NAME, Hub, card_errors, hub_server


@pytest.fixture(scope="module")
def run() -> fp.Run:
    data = tiny_dataset()
    clients = fp.partition(data, "iid", clients=2, seed=1)
    return fp.train({"name": "promptfl", "n_ctx": 2, "init": ""}, tiny_clip(), data, clients, rounds=1, progress=False)


@pytest.fixture
def adapter(run: fp.Run, tmp_path: Path) -> Path:
    return run.adapter().save(tmp_path / "mine")


def on(folder: Path, backbone: str) -> fp.Adapter:
    """The adapter as if it had been trained on another backbone."""
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": backbone}))
    return fp.load_adapter(folder)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server({}) as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_adapter_is_uploaded_privately_with_a_card_that_is_valid(empty: Hub, adapter: Path) -> None:
    commit = on(adapter, "somebody/clip").push_to_hub(NAME, token="secret")
    assert commit == COMMIT and empty.private is True
    assert set(empty.uploaded) == set(files_of(adapter))
    card = empty.uploaded["README.md"].decode()
    assert card_errors(card) == [] and "POST /api/validate-yaml" in empty.asked
    data = ModelCard(card).data
    assert data.base_model == "somebody/clip" and data.library_name == "fedprompt" and data.eval_results
    assert json.loads(empty.uploaded["adapter_config.json"])["base_model_name_or_path"] == "somebody/clip"


def test_a_backbone_in_a_folder_needs_its_name_on_the_hub(empty: Hub, adapter: Path, tmp_path: Path) -> None:
    mine = on(adapter, str(tmp_path / "clip"))
    (adapter / "peft").mkdir()
    (adapter / "peft" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "clip"), "r": 2})
    )
    with pytest.raises(fp.UserError, match="base_model='owner/name'"):
        mine.push_to_hub(NAME, token="secret")
    with pytest.raises(fp.UserError, match="give the Hub id"):
        mine.push_to_hub(NAME, token="secret", base_model="/srv/clip")
    assert empty.uploaded == {}
    mine.push_to_hub(NAME, token="secret", base_model="somebody/clip")
    for name in ("adapter_config.json", "peft/adapter_config.json"):
        assert json.loads(empty.uploaded[name])["base_model_name_or_path"] == "somebody/clip"
    assert ModelCard(empty.uploaded["README.md"].decode()).data.base_model == "somebody/clip"


def test_no_path_of_this_machine_is_uploaded(empty: Hub, adapter: Path) -> None:
    provenance = adapter / "provenance.json"
    own = json.loads(provenance.read_text())
    own["recipe"]["data"]["path"] = "/home/ann/patients"
    provenance.write_text(json.dumps(own))
    (adapter / ".secret").write_text("x")
    on(adapter, "demo").push_to_hub(NAME, token="secret", private=False)
    assert empty.private is False and ".secret" not in empty.uploaded
    assert all(b"/home/ann" not in content for content in empty.uploaded.values())
    assert json.loads(empty.uploaded["provenance.json"])["recipe"]["data"]["path"] == "patients"
    assert ModelCard(empty.uploaded["README.md"].decode()).data.base_model is None


def serve(files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    with hub_server(files) as hub:
        use(hub, monkeypatch, cache)
        yield hub


@pytest.fixture
def served(adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    extra = {"setup.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "model.py": b"raise SystemExit"}
    yield from serve({**files_of(adapter), **extra}, monkeypatch, tmp_path / "cache")


def test_an_adapter_is_loaded_at_a_pinned_commit_and_nothing_else_is_fetched(
    served: Hub, run: fp.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = fp.load_adapter(NAME, revision=COMMIT, clip=tiny_clip())
    image = tiny_dataset().source.open(0)
    assert adapter.revision == COMMIT
    expected = run.adapter().predict(image, classes=["cat", "dog"]).probabilities
    assert torch.equal(adapter.predict(image, classes=["cat", "dog"]).probabilities, expected)
    fetched = {line.rpartition("/")[2] for line in served.asked if "/resolve/" in line}
    assert "adapter_model.safetensors" in fetched and not fetched & {"setup.py", "model.py", "pytorch_model.bin"}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fp.load_adapter(NAME, revision=COMMIT, clip=tiny_clip()).revision == COMMIT  # from the cache


REFUSED = {
    "no adapter": (lambda files: {"config.json": b"{}"}, NAME, None, "holds no adapter"),
    "pickle": (
        lambda files: {"adapter_config.json": files["adapter_config.json"], "pytorch_model.bin": b"x"},
        NAME,
        None,
        "a pickle, which could run code",
    ),
    "no repository": (lambda files: files, "somebody/else", None, "has no adapter 'somebody/else'"),
    "no revision": (lambda files: files, NAME, "v9", "at 'v9'"),
    "no id": (lambda files: files, "a/b/c", None, "does not exist"),
    "damaged": (
        lambda files: {**files, "adapter_config.json": b"{"},
        NAME,
        None,
        "adapter_config.json is damaged",
    ),
    "code": (
        lambda files: {
            **files,
            "adapter_config.json": files["adapter_config.json"].replace(b'"promptfl"', b'"os.path"'),
        },
        NAME,
        None,
        "os.path",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_adapter_is_refused_with_a_sentence(
    case: str, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change, name, revision, said = REFUSED[case]
    with hub_server(change(files_of(adapter))) as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        with pytest.raises(fp.UserError) as error:
            fp.load_adapter(name, revision=revision, clip=tiny_clip()).predict([], classes=["cat"])
    assert said in str(error.value) and str(error.value).endswith(".")


def test_without_a_network_an_upload_and_a_download_say_so(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(Hub("http://127.0.0.1:9"), monkeypatch, tmp_path / "cache")
    with pytest.raises(fp.UserError, match="cannot be reached"):
        on(adapter, "somebody/clip").push_to_hub(NAME, token="secret")
    with pytest.raises(fp.UserError, match="cannot be reached"):
        fp.load_adapter(NAME)


def test_the_command_uploads_an_adapter_and_says_how_to_load_it(
    empty: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    words = ["push", str(adapter), NAME, "--base-model", "somebody/clip"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert f"fedprompt.load_adapter('{NAME}', revision='{COMMIT}')" in result.output
    assert empty.private is True and "adapter_model.safetensors" in empty.uploaded
    refused = CliRunner().invoke(app, ["push", str(tmp_path / "none"), NAME])
    assert refused.exit_code == 2 and "does not exist" in refused.output
