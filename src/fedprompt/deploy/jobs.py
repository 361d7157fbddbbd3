"""Jobs that a site accepts: policy, pinned facts and order of messages, and the experiment on its own images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprompt.clip.model import Clip
from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.deploy.audit import recipe_hash, server_key
from fedprompt.deploy.pinned import OwnImages, Pinned
from fedprompt.deploy.preflight import class_list, digest
from fedprompt.deploy.settings import SiteFile
from fedprompt.deploy.site_policy import (
    RefusedError,
    check_backbone,
    check_job,
    check_privacy,
    check_recipe,
    check_site,
)
from fedprompt.deploy.site_state import SiteState
from fedprompt.errors import UserError
from fedprompt.experiments.experiment import Experiment, assemble, load_backbone
from fedprompt.experiments.plan import Plan, Trial, resolve
from fedprompt.experiments.unreadable import UnreadableError
from fedprompt.federated.client import Client
from fedprompt.runtimes.payload import EVALUATE, HELLO, SECURE, TRAIN, VALIDATE, Fields, Payload

# The fields of every request, and the further ones by kind of request.
NEEDED = ("recipe", "run", "trial", "client", "serial")
FURTHER: dict[str, tuple[str, ...]] = {HELLO: (), TRAIN: ("round", "since", "upload")}
FURTHER |= dict.fromkeys((EVALUATE, VALIDATE), ("since",))
FURTHER |= dict.fromkeys(SECURE, ("round", "since", "members", "nonce"))
ROUNDS = (TRAIN, *SECURE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A request that the site has accepted, with what it needs to answer it."""

    request: Payload
    settings: SiteFile
    experiment: Experiment
    trial: Trial
    client: Client
    images: OwnImages
    state: SiteState

    @property
    def fields(self) -> Fields:
        """The fields of the request."""
        return self.request.fields


class Jobs:
    """Accepts requests; caches backbone and experiment between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clips: dict[str, Clip] = {}
        self._experiments: dict[str, Experiment] = {}
        self._images: dict[str, OwnImages] = {}

    def accept(self, request: Payload, settings: SiteFile) -> Job:
        """Check a request against the policy and the facts that its run began with; RefusedError naming the rule."""
        plan = _checked_plan(request, settings)
        name = str(request.fields["trial"])
        state = SiteState(self.folder / "state", str(request.fields["run"]), name)
        pinned = Pinned.load(state.folder).numbered(request.fields["serial"])
        if request.kind == HELLO:
            pinned = pinned.correctable()
        pinned = pinned.checked(name, {"server": server_key(self.folder)}, {"recipe": recipe_hash(request)})
        key, experiment = self._experiment(plan, settings, state)
        trial = _trial(experiment, request.fields)
        experiment = experiment.of(trial)
        client = _client(experiment, request.fields, settings)
        check_site(settings.policy, experiment.clip.fingerprint, len(client.train))
        check_privacy(settings.policy, trial.setup.privacy, len(client.train))
        images = self._own_images(key, client)
        facts = {"backbone": experiment.clip.fingerprint, "data": images.fingerprint}
        pinned = pinned.checked(name, facts, {"classes": class_list(experiment.dataset.space)})
        if request.kind in ROUNDS:
            pinned = pinned.trained(name, request.fields["round"], rounds=trial.settings.rounds)
        pinned.save(state.folder)
        return Job(request, settings, experiment, trial, client, images, state)

    def _experiment(self, plan: Plan, settings: SiteFile, state: SiteState) -> tuple[str, Experiment]:
        """The experiment on this site's images, and a key that changes when their folder does."""
        own = local_recipe(plan.recipe, settings)
        key = f"{state.folder.name} {own.model_dump_json()} {folder_signature(settings.data)}"
        if key not in self._experiments:
            known = state.left_out()
            try:
                experiment = assemble(resolve(own, origin="job"), backbone=self._clip, unreadable=known)
            except UnreadableError as error:
                _log.warning("%s", error)
                sentence = "too many of the site's images cannot be read; its log lists them."
                raise RefusedError(sentence, rule="unreadable") from error
            if known is None:
                state.leave_out({lost.row: lost.reason for lost in experiment.left_out})
                _log.info("%s", experiment.dataset.report.sentence())
                for warning in experiment.dataset.report.all_warnings():
                    _log.warning("%s", warning)
                for lost in experiment.left_out:
                    _log.warning("Left out: %s", lost.reason)
            self._experiments = {key: experiment}
        return key, self._experiments[key]

    def _own_images(self, key: str, client: Client) -> OwnImages:
        key = f"{client.id} {key}"
        if key not in self._images:
            self._images = {key: OwnImages.of(client)}
        return self._images[key]

    def _clip(self, table: BackboneTable) -> Clip:
        key = table.model_dump_json()
        if key not in self._clips:
            self._clips = {key: load_backbone(table)}
        return self._clips[key]


def _checked_plan(request: Payload, settings: SiteFile) -> Plan:
    """The plan of a job whose recipe the policy allows."""
    if request.kind not in FURTHER:
        raise RefusedError("the request is of an unknown kind; update the server.", rule="request")
    if missing := [name for name in (*NEEDED, *FURTHER[request.kind]) if name not in request.fields]:
        raise RefusedError(f"the request lacks {', '.join(missing)}; update the server.", rule="request")
    recipe = parse_recipe(str(request.fields["recipe"]), origin="job")
    check_recipe(settings.policy, recipe_hash(request))
    check_job(settings.policy, recipe)  # before any name in it is looked up
    check_backbone(recipe.backbone.path, settings.backbone)
    plan = resolve(recipe, origin="job")
    if settings.data and not plan.data_at_sites:
        raise RefusedError("the job wants other images than this site's own.", rule="data")
    if not settings.data and _holds_path(plan.source.options):
        raise RefusedError("the job names a path of images; a site's own file says where they are.", rule="data")
    return plan


def _holds_path(options: object) -> bool:
    """Whether options of a source hold a path, which a job must not name at a site without images of its own."""
    if isinstance(options, Mapping):
        return bool(options.get("path")) or any(map(_holds_path, options.values()))
    return isinstance(options, Path)


def folder_signature(folder: str) -> str:
    """A hash of the names, sizes and times of all files below a folder; "" without a folder."""
    found = []
    for place, folders, files in os.walk(folder) if folder else ():
        folders.sort()
        for name in sorted(files):
            about = os.stat(os.path.join(place, name), follow_symlinks=False)
            found.append([os.path.relpath(place, folder), name, about.st_size, about.st_mtime_ns])
    return digest(found)


def local_recipe(recipe: Recipe, settings: SiteFile) -> Recipe:
    """The recipe with this site's own folders and device; a server never sets a path of a site."""
    table = recipe.backbone
    backbone = table.model_copy(
        update={
            "path": settings.backbone or table.path,
            "memory_gb": settings.memory_gb,
            "disk": None,
            "device": settings.device,
        }
    )
    options: dict[str, Any] = recipe.data.options
    if settings.data:
        options["folders"] = {settings.name: settings.data}
    options.pop("test", None)  # images that only the server has
    data = type(recipe.data)(source=recipe.data.source, unreadable=recipe.data.unreadable, **options)
    return recipe.model_copy(update={"backbone": backbone, "data": data, "check": False})


def _trial(experiment: Experiment, fields: Fields) -> Trial:
    found = next((trial for trial in experiment.trials if trial.name == fields["trial"]), None)
    if found is None:
        raise UserError("The job names a trial that is not in its recipe.")
    return found


def _client(experiment: Experiment, fields: Fields, settings: SiteFile) -> Client:
    """The client that the request addresses; RefusedError unless it has this site's name."""
    shards = experiment.partition.shards
    number = fields["client"]
    if type(number) is not int or not 0 <= number < len(shards) or shards[number].name != settings.name:
        raise RefusedError("the job is for a site with another name.", rule="name")
    return experiment.clients[number]
