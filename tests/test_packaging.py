"""The wheel and the sdist: what is in them, and that the wheel works without the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from pages import ROOT

pytest.importorskip("hatchling", reason="packages are built with the extra `test`")
pytestmark = pytest.mark.slow

MOST_BYTES = 20 << 20
PACKAGE = ROOT / "src" / "fedprompt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


def in_wheel(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert in_wheel(wheel) == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert {"fedprompt/py.typed", "fedprompt/__init__.pyi", "fedprompt/recipes/demo.toml"} <= in_wheel(wheel)
    assert wheel.stat().st_size <= MOST_BYTES


def test_the_sdist_holds_what_the_tests_and_the_site_need_and_makes_the_same_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    assert sdist.stat().st_size <= MOST_BYTES
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    needed = ("README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", "constraints.txt", "docs/index.md", "tools/site.py")
    assert all((tree / name).is_file() for name in (*needed, "tests/test_packaging.py", "benchmarks/__main__.py"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")],
        cwd=tree,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (again,) = (tmp_path / "again").glob("*.whl")
    assert in_wheel(again) == in_wheel(wheel)


def test_the_metadata_name_the_versions_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = message_from_string(archive.read(name).decode("utf-8"))
    assert about["License-Expression"] == "Apache-2.0" and about["Requires-Python"] == f">={VERSIONS[0]}"
    declared = {text.rpartition(" :: ")[2] for text in about.get_all("Classifier") if "Python :: 3." in text}
    assert declared == set(VERSIONS)
    assert about.get_payload().startswith("# fedprompt")


def test_extras_that_pages_name_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.py")]
    named = {
        extra
        for page in pages
        for found in re.findall(r"fedprompt\[([a-z, ]+)\]", page.read_text(encoding="utf-8"))
        for extra in found.replace(" ", "").split(",")
    }
    assert named and named <= PROJECT["optional-dependencies"].keys()


def test_the_wheel_works_in_a_fresh_environment_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "fresh"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=300)
    paths = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # Its dependencies are those of this environment; its own package comes before the one here.
    (Path(where) / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    code = (
        "import fedprompt as fp; print(fp.__file__); data = fp.load_dataset(train=1, test=1); clip = fp.load_clip();"
        "print(clip.text_features(data.space.names[:2]).shape)"
    )
    found = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=paths, capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert found.startswith(str(place)) and "torch.Size([2, " in found
    for words in (["-m", "fedprompt", "--version"], [str(place / "bin" / "fedprompt"), "config", "list"]):
        said = subprocess.run(
            [python, *words], cwd=tmp_path, env=paths, capture_output=True, text=True, check=True, timeout=300
        ).stdout
        assert "0.1.0" in said or "demo" in said


def interpreter(version: str) -> Path | None:
    """An interpreter of a version, on the path or installed by pyenv."""
    own = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates = [shutil.which(f"python{version}"), *sorted(own.glob(f"{version}.*/bin/python"))]
    for path in filter(None, candidates):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.startswith(f"Python {version}."):
            return Path(path)
    return None


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_other_versions_of_python_compile_the_source_without_warnings(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    code = "import sys; [compile(open(path, encoding='utf-8').read(), path, 'exec') for path in sys.argv[1:]]"
    paths = list(map(str, PACKAGE.rglob("*.py")))
    subprocess.run([python, "-W", "error", "-c", code, *paths], check=True, capture_output=True, timeout=120)
    lazy = tmp_path / "lazy"
    shutil.copytree(Path(sysconfig.get_path("purelib")) / "lazy_loader", lazy / "lazy_loader")
    said = subprocess.run(
        [python, "-c", "import fedprompt; print(len(dir(fedprompt)), fedprompt.__version__)"],
        env={**os.environ, "PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{lazy}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert said.split()[1] == PROJECT["version"] and int(said.split()[0]) > 30
