"""Jobs that a site accepts: policy, pinned facts and order of messages, and the experiment on its own images."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedprompt import methods
from fedprompt.clip.hub import cached_folder
from fedprompt.clip.model import Clip
from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.data.labels import LabelSpace
from fedprompt.data.sources.sites import NotAgreedError
from fedprompt.demo import DEMO
from fedprompt.deploy.audit import recipe_hash, server_key
from fedprompt.deploy.job_keys import check_keys, local_recipe
from fedprompt.deploy.pinned import OwnImages, Pinned
from fedprompt.deploy.preflight import class_list, digest
from fedprompt.deploy.request_fields import check_fields, check_since
from fedprompt.deploy.settings import SITE, Policy, SiteFile
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

ROUNDS = (TRAIN, *SECURE)
SCORES = (TRAIN, EVALUATE, VALIDATE)  # requests whose answers have a score
KNOWN = re.compile(r" \(known: [^()]*\)")  # of a sentence about an unknown key: the server knows the keys too
LONGEST_REFUSAL = 450  # characters of a sentence about a job's text, so that the server shows its rule too
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A request that the site has accepted, with what it needs to answer it.

    `may_score` allows one more score.
    """

    request: Payload
    settings: SiteFile
    experiment: Experiment
    trial: Trial
    client: Client
    images: OwnImages
    state: SiteState
    may_score: bool
    images_hash: str  # of the images, with a key that stays at the site

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
        check_since(request.fields, rounds=trial.settings.rounds)
        if request.kind in ROUNDS:
            pinned = pinned.trained(name, request.fields["round"], rounds=trial.settings.rounds)
        counted = _scored(pinned, trial, request.kind, settings.policy)
        (counted or pinned).save(state.folder)
        hashed = pinned.secret_hash(images.fingerprint)
        return Job(
            request,
            settings,
            experiment,
            trial,
            client,
            images,
            state,
            may_score=counted is not None,
            images_hash=hashed,
        )

    def _experiment(self, plan: Plan, settings: SiteFile, state: SiteState) -> tuple[str, Experiment]:
        """The experiment on this site's images, and a key that changes when their folder does."""
        own = local_recipe(plan.recipe, settings)
        key = f"{state.folder.name} {own.model_dump_json()} {folder_signature(settings.data)}"
        if key not in self._experiments:
            known = state.left_out()
            experiment = self._assembled(own, known, settings)
            if known is None:
                state.leave_out({lost.row: lost.reason for lost in experiment.left_out})
                _log.info("%s", experiment.dataset.report.sentence())
                for warning in experiment.dataset.report.all_warnings():
                    _log.warning("%s", warning)
                for lost in experiment.left_out:
                    _log.warning("Left out: %s", lost.reason)
            self._experiments = {key: experiment}
        return key, self._experiments[key]

    def _assembled(self, own: Recipe, known: Mapping[int, str] | None, settings: SiteFile) -> Experiment:
        """The experiment; RefusedError, whose sentence leaves out what the site's log says, if it cannot be.

        Of a site's own images the same are left out, and so the same are counted, whether or not a job holds out some.
        """
        backbone = partial(self._clip, own=bool(settings.backbone))
        try:
            plan = resolve(own, origin="job")
            return assemble(plan, backbone=backbone, unreadable=known, validates=bool(settings.data))
        except RefusedError:
            raise
        except UnreadableError as error:
            _log.warning("%s At a site that share is unreadable below [images] in %s.", error, SITE)
            sentence, rule = "too many of the site's images cannot be read; its log lists them.", "unreadable"
            raise RefusedError(sentence, rule=rule) from error
        except NotAgreedError as error:
            sentence = "the site has classes that are not in the job's class list; its log names them."
            raise RefusedError(sentence, rule="classes") from error
        except UserError as error:
            raise RefusedError("the site's images cannot be used; its log says why.", rule="images") from error

    def _own_images(self, key: str, client: Client) -> OwnImages:
        key = f"{client.id} {key}"
        if key not in self._images:
            self._images = {key: OwnImages.of(client)}
        return self._images[key]

    def _clip(self, table: BackboneTable, *, own: bool) -> Clip:
        """The CLIP; one that the job names is opened from the Hub's cache by its id, whatever folders there are.

        `own` says that the table names the site's own. RefusedError with one sentence for all that cannot be opened.
        """
        key = f"{own} {table.model_dump_json()}"
        if key not in self._clips:
            try:
                if not own and table.path != DEMO:
                    table = table.model_copy(update={"path": str(cached_folder(table.path))})
                self._clips = {key: load_backbone(table)}
            except UserError as error:
                sentence = "the job's backbone cannot be loaded at this site; its log says why."
                raise RefusedError(sentence, rule="backbone") from error
        return self._clips[key]


def _checked_plan(request: Payload, settings: SiteFile) -> Plan:
    """The plan of a job whose recipe the policy allows."""
    check_fields(request)
    with _of_the_job_alone():
        recipe = parse_recipe(request.fields["recipe"], origin="job")
    check_recipe(settings.policy, recipe_hash(request))
    with _of_the_job_alone():
        check_job(settings.policy, recipe)  # before any name in it is looked up
    check_backbone(recipe.backbone.path, settings.backbone)
    # What a method of the site's own raises is the site's.
    bundled = recipe.method.name in methods.names()
    with _of_the_job_alone() if bundled else nullcontext():
        plan = resolve(recipe, origin="job")
    with _of_the_job_alone():
        _check_texts(plan.source.options)
    if settings.data and not plan.data_at_sites:
        raise RefusedError("the job wants other images than this site's own.", rule="data")
    if settings.data and not plan.clients_are_sites:
        raise RefusedError("the job's partition chooses among this site's images; use 'by_site'.", rule="partition")
    if not settings.data and _holds_path(plan.source.options):
        raise RefusedError("the job names a path of images; a site's own file says where they are.", rule="data")
    check_keys(plan.recipe, own_images=bool(settings.data))
    return plan


@contextmanager
def _of_the_job_alone() -> Iterator[None]:
    """Turn a mistake into a refusal in the same words, as they come from the job's text and fedprompt alone.

    Nothing in such a block may read a file or setting of the site.
    """
    try:
        yield
    except RefusedError:
        raise
    except UserError as mistake:
        sentence = KNOWN.sub("", " ".join(str(mistake).split()))
        raise RefusedError(sentence[:LONGEST_REFUSAL], rule="recipe") from None


def _check_texts(options: Mapping[str, object]) -> None:
    """UserError for class names and a template that make no label space, or texts that fill the memory."""
    names, template = options.get("classes"), options.get("template")
    if isinstance(names, list | tuple) and names:
        space = LabelSpace(tuple(map(str, names)))
        if isinstance(template, str):
            replace(space, template=template)


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


def _scored(pinned: Pinned, trial: Trial, kind: str, policy: Policy) -> Pinned | None:
    """What is pinned after the score that the request asks for; None if no score leaves.

    Raises RefusedError for one too many, unless the request is to train.
    """
    if kind not in SCORES or policy.released == "withheld":
        return None
    if policy.allows_score(pinned.scores, trial.name, rounds=trial.settings.rounds):
        return pinned.scored(trial.name)
    if kind != TRAIN:
        raise RefusedError("the run has had as many scores as this site gives.", rule="maximum_scores")
    return None


def _trial(experiment: Experiment, fields: Fields) -> Trial:
    found = next((trial for trial in experiment.trials if trial.name == fields["trial"]), None)
    if found is None:
        raise RefusedError("the job names a trial that is not in its recipe.", rule="request")
    return found


def _client(experiment: Experiment, fields: Fields, settings: SiteFile) -> Client:
    """The client that the request addresses; RefusedError unless it has this site's name."""
    shards = experiment.partition.shards
    number = fields["client"]
    if type(number) is not int or not 0 <= number < len(shards) or shards[number].name != settings.name:
        raise RefusedError("the job is for a site with another name.", rule="name")
    return experiment.clients[number]
