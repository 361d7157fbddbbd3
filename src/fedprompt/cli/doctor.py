"""The checks of `fedprompt doctor`: everything that a run needs, with a fix for each failure."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.demo import weights_folder
from fedprompt.demo.sprites import ARTISTS, class_sprites
from fedprompt.deploy.audit import RecordsCheck
from fedprompt.deploy.init import certificate_days, expiry_warnings
from fedprompt.deploy.roster import check_authority, members
from fedprompt.deploy.settings import SITE, load_site
from fedprompt.errors import UserError
from fedprompt.experiments.events import versions
from fedprompt.experiments.experiment import load_backbone, trials_on
from fedprompt.experiments.plan import Plan
from fedprompt.records.output_folder import require_writable
from fedprompt.report import size_text

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Finding:
    """The result of one check; a failure has a fix, unless the sentence that was found says what to do."""

    what: str
    found: str
    fix: str = ""
    failed: bool = False
    warning: bool = False


Check = tuple[str, Callable[[], str], str]  # what, how, and the fix; "" where the sentence of a failure says it


def run_checks(
    folder: Path, backbone: str, deployment: Path | None = None, *, recipe: Callable[[], Plan] | None = None
) -> list[Finding]:
    """Run all checks; a failure is a finding, never an exception. `recipe` reads a recipe, whose data are listed."""
    checks: list[Check] = [
        ("demo weights", _weights, "install fedprompt again; its package data are incomplete"),
        ("demo drawings", _drawings, "install fedprompt again; its package data are incomplete"),
    ]
    findings: list[Finding] = []
    plan: Plan | None = None
    if recipe is not None:
        findings, plan = _read_recipe(recipe)
        if plan is not None:
            backbone, folder = plan.recipe.backbone.path, folder / plan.recipe.name
    checks += [
        (f"backbone {backbone}", lambda: _backbone(backbone, plan), ""),
        (f"writing to {folder}", lambda: _writable(folder), ""),
    ]
    if deployment is not None:
        place = deployment.resolve()
        checks.append((f"certificates of {place.name}", lambda: _certificates(place), ""))
        if (place / SITE).exists():
            checks.append((f"keys of {place.name}", lambda: _keys(place), ""))
            checks.append((f"records of {place.name}", lambda: _records(place), ""))
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
    return [*facts, _load(), *findings, *(_run_check(what, look, fix) for what, look, fix in checks)]


def _read_recipe(read: Callable[[], Plan]) -> tuple[list[Finding], Plan | None]:
    """Whether a recipe is valid and its data can be listed, and its plan; of the trials those that will run."""
    try:
        plan = read()
    except UserError as error:
        return [Finding("recipe", str(error), failed=True)], None
    trials = plan.trials

    def listed() -> str:
        nonlocal trials
        dataset = plan.source()
        trials = trials_on(plan, dataset)
        return f"{dataset.report.sentence()} No image was opened; fedprompt check opens all of them."

    data = _run_check(f"data, read by {plan.source.name}", listed, "")
    return [Finding(f"recipe {plan.origin}", f"valid: {', '.join(trial.label for trial in trials)}"), data], plan


def _load() -> Finding:
    """How busy the machine is: the mean number of running processes in the last minute, beside the number of cores."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = "; other processes are at work, so training takes longer than measured on a quiet machine"
    found = f"{load:.1f} on {cores} cores{busy if load > cores / 2 else ''}"
    return Finding(
        "load", found, "wait for them to end, or give the run more --minutes" * (load > cores), warning=load > cores
    )


def _run_check(what: str, look: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding(what, look())
    except UserError as error:
        return Finding(what, str(error), fix, failed=True)
    except Exception as error:  # report any failure and continue with the next check
        return Finding(what, f"{type(error).__name__}: {error}", fix, failed=True)


def _weights() -> str:
    size = sum(file.stat().st_size for file in weights_folder().glob("*.safetensors"))
    if not size:
        raise FileNotFoundError(f"no safetensors in {weights_folder()}")
    return size_text(size)


def _drawings() -> str:
    return f"{len(class_sprites().pixels)} drawings by {', '.join(ARTISTS)}"


def _backbone(name: str, plan: Plan | None) -> str:
    """Sizes of a backbone, and which methods of a recipe it cannot carry; UserError if the main one is among them."""
    table = plan.recipe.backbone if plan else BackboneTable()
    clip = load_backbone(table.model_copy(update={"path": name, "memory_gb": 0.0, "disk": None}))
    size = sum(parameter.numel() for parameter in clip.parameters())
    trials = plan.trials if plan else ()
    if trials:
        trials[0].require_carried(clip.family)
    refusals = [f"; left out: {reason}" for trial in trials if (reason := trial.refusal(clip.family))]
    return f"{size:,} parameters, {clip.patches} patches, {clip.fingerprint[:12]}{''.join(refusals)}"


def _certificates(folder: Path) -> str:
    if warnings := expiry_warnings(folder):
        raise UserError(" ".join(warnings))
    return f"valid for {min(certificate_days(folder).values())} days or more"


def _keys(folder: Path) -> str:
    check_authority(folder, load_site(folder))
    first, *peers = members(folder)
    return f"{first.name} {first.fingerprint}, {len(peers)} other sites in its roster"


def _records(folder: Path) -> str:
    if found := RecordsCheck(folder).damage():
        raise UserError(found)
    return "audit trail and ledger are whole"


def _writable(folder: Path) -> str:
    require_writable(folder)
    return "works"
