"""The checks of `fedprompt doctor`: everything that a run needs, with a fix for each failure."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.demo import weights_folder
from fedprompt.demo.sprites import ARTISTS, class_sprites
from fedprompt.deploy.init import certificate_days, expiry_warnings
from fedprompt.deploy.roster import check_authority, members
from fedprompt.deploy.settings import SITE, load_site
from fedprompt.errors import UserError
from fedprompt.experiments.events import versions
from fedprompt.experiments.experiment import load_backbone
from fedprompt.report import size_text

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Finding:
    """The result of one check; `fix` is empty if it passed."""

    what: str
    found: str
    fix: str = ""


def run_checks(folder: Path, backbone: str, deployment: Path | None = None) -> list[Finding]:
    """Run all checks; a failure is a finding, never an exception."""
    checks: list[tuple[str, Callable[[], str], str]] = [
        ("demo weights", _weights, "install fedprompt again; its package data are incomplete"),
        ("demo drawings", _drawings, "install fedprompt again; its package data are incomplete"),
        (
            f"backbone {backbone}",
            lambda: _backbone(backbone),
            "give --backbone a CLIP folder, or allow the network once",
        ),
        (f"writing to {folder}", lambda: _writable(folder), "choose another folder with --out, or free some space"),
    ]
    if deployment is not None:
        place = deployment.resolve()
        checks.append((f"certificates of {place.name}", lambda: _certificates(place), "see the sentence above"))
        if (place / SITE).exists():
            checks.append((f"keys of {place.name}", lambda: _keys(place), "see the sentence above"))
    facts = [Finding(name, value) for name, value in versions().items()]
    facts.append(
        Finding("accelerator", torch.cuda.get_device_name() if torch.cuda.is_available() else "none, the CPU is used")
    )
    facts.append(
        Finding(
            "offline flags",
            ", ".join(f"{name}={os.environ[name]}" for name in OFFLINE if name in os.environ) or "none set",
        )
    )
    return [*facts, _load(), *(_run_check(what, look, fix) for what, look, fix in checks)]


def _load() -> Finding:
    """How busy the machine is: the mean number of running processes in the last minute, beside the number of cores."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = "; other processes are at work, so training takes longer than measured on a quiet machine"
    return Finding("load", f"{load:.1f} on {cores} cores{busy if load > cores / 2 else ''}")


def _run_check(what: str, look: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding(what, look())
    except Exception as error:  # report any failure and continue with the next check
        return Finding(what, f"{type(error).__name__}: {error}", fix)


def _weights() -> str:
    size = sum(file.stat().st_size for file in weights_folder().glob("*.safetensors"))
    if not size:
        raise FileNotFoundError(f"no safetensors in {weights_folder()}")
    return size_text(size)


def _drawings() -> str:
    return f"{len(class_sprites().pixels)} drawings by {', '.join(ARTISTS)}"


def _backbone(name: str) -> str:
    clip = load_backbone(BackboneTable(path=name, memory_gb=0))
    size = sum(parameter.numel() for parameter in clip.parameters())
    return f"{size:,} parameters, {clip.patches} patches, {clip.fingerprint[:12]}"


def _certificates(folder: Path) -> str:
    if warnings := expiry_warnings(folder):
        raise UserError(" ".join(warnings))
    return f"valid for {min(certificate_days(folder).values())} days or more"


def _keys(folder: Path) -> str:
    check_authority(folder, load_site(folder))
    first, *peers = members(folder)
    return f"{first.name} {first.fingerprint}, {len(peers)} other sites in its roster"


def _writable(folder: Path) -> str:
    existing = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
    with tempfile.TemporaryFile(dir=existing) as file:
        file.write(b"fedprompt")
    return "works"
