"""Dockerfiles and the compose file of the rehearsal: linted, valid, and as confined as the page on deploying says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import CliRunner

from fedprompt.cli.main import app
from fedprompt.deploy.rehearsal.processes import SITES
from fedprompt.deploy.settings import DEPLOYMENT, SITE, load_deployment, load_site
from pages import ROOT

pytest.importorskip("flwr")

CONTAINERS = ROOT / "containers"
DOCKERFILES = sorted(CONTAINERS.glob("*.Dockerfile"))
PROCESSES = ("server", *SITES)
USER = "1000:1000"


def composed() -> dict[str, Any]:
    """The compose file with merged keys, and defaults for its variables."""
    text = (CONTAINERS / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)))


def hadolint() -> str | None:
    return shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, lines joined, without comments."""
    lines = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [(one.split()[0], " ".join(one.split()[1:])) for one in lines if one.strip() and not one.startswith("#")]


def test_there_is_an_image_for_the_server_and_one_for_a_site() -> None:
    assert [path.name for path in DOCKERFILES] == ["server.Dockerfile", "site.Dockerfile"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    if hadolint() is None:
        pytest.skip("hadolint is not installed; it comes with pip install 'fedprompt[test]'")
    found = subprocess.run([str(hadolint()), str(dockerfile)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_runs_as_a_user_without_rights_and_phones_nobody(dockerfile: Path) -> None:
    stages = instructions(dockerfile)
    last = stages[max(number for number, (name, _) in enumerate(stages) if name == "FROM") :]
    users = [argument for name, argument in last if name == "USER"]
    assert users == ["10001:10001"] and [name for name, _ in last].index("USER") > [name for name, _ in last].index(
        "RUN"
    )
    settings = " ".join(argument for name, argument in last if name == "ENV")
    for needed in ("HF_HUB_OFFLINE=1", "FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1"):
        assert needed in settings
    assert all(":" in argument.split()[0] for name, argument in stages if name == "FROM")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_what_a_build_copies_is_there_and_little_else_enters_it(dockerfile: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("*\n", 1)[1].split()
    assert sorted(ignored) == ["!LICENSE", "!README.md", "!constraints.txt", "!pyproject.toml", "!src"]
    assert all((ROOT / one.removeprefix("!")).exists() for one in ignored)
    assert ("COPY", ". .") in instructions(dockerfile)


def test_an_images_command_is_one_that_fedprompt_takes() -> None:
    own = {path.stem: json.loads(dict(instructions(path))["CMD"]) for path in DOCKERFILES}
    for words in (*own.values(), *(composed()["services"][name]["command"] for name in ("prepare", *PROCESSES))):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        command.make_context(command.name, rest)


def test_the_compose_file_is_valid() -> None:
    compose = pytest.importorskip("compose_spec").PyCompose
    compose.from_json(json.dumps(composed())).validate()
    broken = composed()
    broken["services"]["east"]["networks"] = ["outside"]
    with pytest.raises(ValueError, match="outside"):
        compose.from_json(json.dumps(broken)).validate()


def test_every_container_is_confined() -> None:
    for name, service in composed()["services"].items():
        assert service["user"] == USER and service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        allowed = {"user", "read_only", "tmpfs", "cap_drop", "security_opt", "image", "build", "depends_on", "restart"}
        allowed |= {"command", "volumes", "networks", "network_mode", "configs", "profiles"}
        assert service.keys() <= allowed, name  # no ports, no privileges, no devices, no host's namespaces


def test_no_network_leads_outside_and_each_site_meets_the_server_alone() -> None:
    services, networks = composed()["services"], composed()["networks"]
    assert all(network == {"internal": True} for network in networks.values())
    assert [services[site]["networks"] for site in SITES] == [[site] for site in SITES]
    assert set(services["server"]["networks"]) == set(networks) == set(SITES)
    assert services["prepare"]["network_mode"] == "none" and services["proxy"]["network_mode"] == "service:server"


def test_a_site_sees_its_own_folder_and_its_images_read_only() -> None:
    for site in SITES:
        own = f"./rehearsal/machines/{site}:/rehearsal/machines/{site}"
        images = own.replace(f"{site}:", f"{site}/images:") + "/images:ro"
        service = composed()["services"][site]
        assert service["volumes"] == [own, images]
        assert service["command"][-1] == images.split(":")[1]
    assert composed()["services"]["proxy"]["volumes"][0].endswith(":ro")


def test_the_folders_of_the_containers_are_made_by_one_command(tmp_path: Path) -> None:
    out = tmp_path / "rehearsal"
    arguments = ["deploy", "rehearse", "--prepare", "server", "--out", str(out)]
    done = CliRunner().invoke(typer.main.get_command(app), arguments, catch_exceptions=False)
    assert done.exit_code == 0 and str(out / "machines") in done.output
    assert load_deployment(out / "machines" / "server").address == "server"
    for name in SITES:
        own = out / "machines" / name
        assert load_site(own).superlink == "server:8443" and set(load_site(own).roster.sites) == set(SITES) - {name}
        assert list((own / "images" / "train").glob("*/*.png")) and (own / "site.key").exists()
    assert not list((out / "machines" / "server" / "sites").iterdir())
    mounts = {mount.split(":")[1] for one in composed()["services"].values() for mount in one["volumes"]}
    assert all((out / Path(mount).relative_to("/rehearsal")).is_dir() for mount in mounts)
    assert (out / "machines" / "server" / DEPLOYMENT).exists() and (out / "machines" / "east" / SITE).exists()


def test_without_a_builder_the_script_says_so(tmp_path: Path) -> None:
    shell, dirname = shutil.which("sh"), shutil.which("dirname")
    assert shell and dirname
    (tmp_path / "dirname").symlink_to(dirname)
    done = subprocess.run(
        [shell, str(CONTAINERS / "build.sh")], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout[:22], done.stderr) == (0, "No builder works here ", "")


def test_the_script_builds_both_images_with_the_builder_that_works(tmp_path: Path) -> None:
    for name, works in (("docker", "exit 1"), ("podman", f'echo "$@" >> {tmp_path}/calls')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{works}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    subprocess.run(
        ["sh", str(CONTAINERS / "build.sh")], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True, capture_output=True
    )
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls[1:] == [f"build -f containers/{one}.Dockerfile -t fedprompt-{one} ." for one in ("server", "site")]


def test_the_manifest_of_a_ray_cluster_has_the_version_that_is_installed_and_one_storage_for_all_nodes() -> None:
    manifest = yaml.safe_load((CONTAINERS / "ray-cluster.yaml").read_text(encoding="utf-8"))
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert manifest["kind"] == "RayCluster" and f"\nray=={manifest['spec']['rayVersion']}\n" in constraints
    groups = [manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    (image,) = {container["image"] for pod in pods for container in pod["containers"]}
    assert "fedprompt" in image
    for pod in pods:
        claims = [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {*claims, "shm"}
        assert container["resources"]["limits"]["memory"]
