"""Paths that lead nowhere, out of their folder or to what never ends: one sentence from everyone who opens one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fedprompt.cli.main import app
from fedprompt.config.recipe import find_recipe
from fedprompt.data.descriptions import read_attributes
from fedprompt.data.sources.class_table import class_table
from fedprompt.data.sources.coco import coco
from fedprompt.data.sources.huggingface import huggingface
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.data.sources.label_table import label_table
from fedprompt.data.sources.sites import sites
from fedprompt.data.sources.voc import voc
from fedprompt.data.sources.webdataset import webdataset
from fedprompt.deploy.settings import load_deployment, load_site
from fedprompt.descriptions.transcript import Transcript
from fedprompt.errors import UserError
from fedprompt.experiments.adapters import open_adapter
from fedprompt.experiments.class_descriptions import find_descriptions
from fedprompt.file_system import entries, files_below, obstacle, require_file
from fedprompt.records.adapter import load_adapter
from fedprompt.records.checkpoints import load_tensors
from fedprompt.records.run_folder import RunFolder, read_lines
from fedprompt.report import read_run
from trees import xml

LONG = "x" * 5000
DOT = b"P6 1 1 255\n\x10\x20\x30"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have other special files")


def text(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def dot(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DOT)
    return path


@pytest.mark.parametrize(
    "arguments",
    [("run", LONG), ("check", LONG), ("predict", LONG, LONG), ("run", "demo", "--set", f"backbone.path={LONG}")],
)
def test_a_name_that_is_too_long_is_refused_in_a_sentence(arguments):
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2 and not isinstance(found.exception, OSError), found.exception
    assert "x" * 50 in "".join(found.output.split()) and "Traceback" not in found.output


def test_what_a_path_leads_to_is_known_without_opening_it(tmp_path, monkeypatch):
    text(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("loop", "loop"), ("dangling", "gone"), ("null", "/dev/null"), ("good", "file")):
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    found = {name: obstacle(tmp_path / name, "file") for name in ("file", "good", "pipe", "loop", "null", "socket")}
    server.close()
    assert found == {
        "file": "",
        "good": "",
        "pipe": "is a pipe, not a regular file",
        "loop": "is a link that leads back to itself",
        "null": "is a device, not a regular file",
        "socket": "is a socket, not a regular file",
    }
    assert obstacle(tmp_path / "dangling", "file") == "is a link to a file that does not exist"
    assert obstacle(tmp_path / "file/inside", "file") == "does not exist, since a part of this path is a file"
    assert obstacle(tmp_path / "gone", "folder") == "does not exist"
    assert obstacle(tmp_path, "file") == "is a folder" and obstacle(tmp_path / "file", "folder") == "is a file"
    assert obstacle(Path("x" * 300), "file") == "is not a path (File name too long)"
    assert obstacle(Path("a\0b"), "file").startswith("is not a path")


def closed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Refuse to list one folder, as the system does for users without the right to."""
    scan = os.scandir

    def scandir(place: str | Path = ".") -> object:
        if Path(place) == folder:
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)


def test_files_of_a_folder_that_cannot_be_listed_are_not_passed_over(tmp_path, monkeypatch):
    text(tmp_path / "a/1.txt")
    text(tmp_path / "b/2.txt")
    text(tmp_path / ".hidden/3.txt")
    (tmp_path / "a/up").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, depth=5)]
    assert found == ["a/1.txt", "b/2.txt"]
    closed(monkeypatch, tmp_path / "b")
    with pytest.raises(UserError, match=r"The folder .*b cannot be read \(Permission denied\); check its permissions"):
        list(files_below(tmp_path, depth=5))
    with pytest.raises(UserError, match=r"gone cannot be read \(No such file or directory\)"):
        entries(tmp_path / "gone")


def annotations(*files: str) -> str:
    return json.dumps(
        {
            "images": [{"id": number, "file_name": file} for number, file in enumerate(files)],
            "annotations": [{"image_id": 0, "category_id": 1}],
            "categories": [{"id": 1, "name": "cat"}],
        }
    )


def parquet(folder: Path, *paths: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct({"bytes": pa.binary(), "path": "string"})
    )
    table = pa.table({"image": images, "label": ["cat"] * len(paths)})
    features = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "train.parquet")


def write_class_table(root: Path, *files: str) -> dict[str, object]:
    return {"path": text(root / "t.csv", "\n".join(["image,label", *(f"{file},cat" for file in files)]))}


def write_label_table(root: Path, *files: str) -> dict[str, object]:
    return {"path": text(root / "t.csv", "\n".join(["image,cat", *(f"{file},1" for file in files)]))}


def write_json_lines(root: Path, *files: str) -> dict[str, object]:
    lines = [json.dumps({"image": file, "labels": ["cat"]}) for file in files]
    return {"path": text(root / "t.jsonl", "\n".join(lines))}


def write_coco(root: Path, *files: str) -> dict[str, object]:
    text(root / "annotations/all.json", annotations(*files))
    return {"path": root, "train_images": "."}


def write_parquet(root: Path, *files: str) -> dict[str, object]:
    parquet(root, *files)
    return {"path": str(root)}


TABLES = [
    (class_table, write_class_table),
    (label_table, write_label_table),
    (label_table, write_json_lines),
    (coco, write_coco),
    (huggingface, write_parquet),
]


@pytest.mark.parametrize(("read", "write"), TABLES)
@pytest.mark.parametrize("path", ["../out/b.ppm", "link/b.ppm", "b.ppm", "{out}/b.ppm", "a.ppm/../../out/b.ppm"])
def test_a_path_in_a_file_never_leads_out_of_the_folder(tmp_path, read, write, path):
    dot(tmp_path / "out/b.ppm")
    dot(tmp_path / "in/a.ppm")
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    (tmp_path / "in/b.ppm").symlink_to("../out/b.ppm")
    options = write(tmp_path / "in", "a.ppm", path.format(out=tmp_path / "out"))
    with pytest.raises(UserError, match=r"is not below|a link leads .* set `links = true` if that is meant"):
        read(**options)
    if ".." not in path and not path.startswith("{"):
        assert read(**options, links=True).source.open(1).size == (1, 1)


@pytest.mark.parametrize(("read", "write"), TABLES)
def test_a_path_in_a_file_that_leads_to_no_regular_file_is_a_missing_image(tmp_path, read, write):
    dot(tmp_path / "a.ppm")
    os.mkfifo(tmp_path / "pipe.ppm")
    (tmp_path / "folder.ppm").mkdir()
    (tmp_path / "loop.ppm").symlink_to(tmp_path / "loop.ppm")
    for name in ("pipe.ppm", "folder.ppm", "loop.ppm", "a.ppm/b.ppm", "gone/b.ppm", f"{'x' * 300}.ppm"):
        with pytest.raises(UserError, match=r"there is no file|1 of 2 images do not exist"):
            read(**write(tmp_path, "a.ppm", name))


@pytest.mark.parametrize(("read", "write"), TABLES)
def test_images_in_a_folder_that_cannot_be_listed_are_not_called_missing(tmp_path, monkeypatch, read, write):
    dot(tmp_path / "a.ppm")
    dot(tmp_path / "closed/b.ppm")
    options = write(tmp_path, "a.ppm", "closed/b.ppm")
    closed(monkeypatch, tmp_path / "closed")
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\); check its permissions"):
        read(**options)


def tree(root: Path) -> Path:
    """A folder for image_folder, sites and voc at once, whose images are in two places."""
    for number, place in enumerate(("cat", "cat", "dog", "dog")):
        dot(root / f"images/{place}/{number}.ppm")
        xml(root / f"Annotations/{place}/{number}.xml", [(place, 0)])
    return root


WALKED: dict[str, Callable[..., object]] = {
    "image_folder": lambda root, **options: image_folder(path=root / "images", **options),
    "sites": lambda root, **options: sites(classes=("cat", "dog"), folders={"a": root / "images"}, **options),
    "voc": lambda root, **options: voc(path=root, images="images", **options),
}


@pytest.mark.parametrize("source", WALKED)
@pytest.mark.parametrize("name", ["dog", "dog/3.ppm"])
def test_links_in_a_folder_lead_out_of_it_on_request_only(tmp_path, source, name):
    root = tree(tmp_path / "in")
    (tmp_path / "out").mkdir()
    moved = root / "images" / name
    moved.rename(tmp_path / "out/moved")
    moved.symlink_to(tmp_path / "out/moved")
    with pytest.raises(UserError, match=rf"1 links lead out of .*images, '{name}' for one; set `links = true`"):
        WALKED[source](root)
    assert len(WALKED[source](root, links=True).source) == 4


@pytest.mark.parametrize("source", WALKED)
def test_folders_that_cannot_be_listed_are_named_by_every_reader(tmp_path, monkeypatch, source):
    root = tree(tmp_path)
    closed(monkeypatch, root / "images/dog")
    with pytest.raises(UserError, match=r"dog cannot be read \(Permission denied\)"):
        WALKED[source](root)


@pytest.mark.parametrize("place", ["train", "."])
def test_shards_annotations_and_parquet_files_in_a_closed_folder_are_not_passed_over(tmp_path, monkeypatch, place):
    text(tmp_path / "classnames.txt", "cat")
    (tmp_path / "train").mkdir()
    closed(monkeypatch, tmp_path / place)
    for read, path in ((webdataset, tmp_path), (coco, tmp_path), (huggingface, str(tmp_path))):
        with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
            read(path=path)


@pytest.mark.parametrize(
    "read",
    [
        *(
            lambda path: class_table(path=path.with_suffix(".csv")),
            lambda path: label_table(path=path.with_suffix(".csv")),
        ),
        *(lambda path: image_folder(path=path), lambda path: voc(path=path), lambda path: coco(path=path)),
        lambda path: coco(path=path.parent, train=path.name),
        *(lambda path: webdataset(path=path, classes=("cat",)), load_adapter, open_adapter, read_run, RunFolder.open),
        *(lambda path: list(read_lines(path)), load_tensors, load_site, load_deployment, require_file),
        *(lambda path: find_recipe(str(path)), lambda path: find_descriptions(str(path))),
        lambda path: Transcript(path).__enter__(),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "inside a file"])
def test_nothing_that_is_given_by_a_path_hangs_or_ends_in_a_traceback(tmp_path, read, kind):
    path = tmp_path / "given"
    for place in (path, path.with_suffix(".csv")):
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "inside a file":
            text(place)
        else:
            place.symlink_to("/dev/zero" if kind == "device" else place)
    if kind == "inside a file":
        path = path.with_suffix(".csv") / "given"
    with pytest.raises(UserError, match="given"):
        read(path)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "attributes.json", "run.jsonl", "site.toml", "deployment.toml"]
)
def test_a_pipe_in_a_folder_that_is_read_does_not_hang(tmp_path, name):
    os.mkfifo(tmp_path / name)
    readers = {
        "adapter_config.json": load_adapter,
        "attributes.json": lambda path: read_attributes(path, ("cat",)),
        "run.jsonl": lambda path: list(read_lines(path)),
        "site.toml": load_site,
        "deployment.toml": load_deployment,
    }
    with pytest.raises(UserError, match=r"is a pipe, not a regular file"):
        readers[name](tmp_path)
