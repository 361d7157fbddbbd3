"""What a site does with a request: hold it against its policy, rebuild the trial on its own pictures, train, answer."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprompt.clip.model import Clip
from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.tables import BackboneTable
from fedprompt.deploy.preflight import introduction
from fedprompt.deploy.privacy_budget import charge
from fedprompt.deploy.secure_member import Membership
from fedprompt.deploy.settings import SiteFile, load_site
from fedprompt.deploy.site_policy import RefusedError, check_job, check_site
from fedprompt.deploy.site_state import SiteState
from fedprompt.errors import UserError
from fedprompt.experiments.events import METRICS
from fedprompt.experiments.experiment import Experiment, assemble, load_backbone
from fedprompt.experiments.plan import Plan, Trial, resolve
from fedprompt.experiments.unreadable import UnreadableError
from fedprompt.federated.client import Client, train_client
from fedprompt.federated.evaluate import Score, evaluate
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.screening import Limits, RefusedUpdateError, check_raw, check_update
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.vector import Codec
from fedprompt.methods.base import Method
from fedprompt.runtimes.payload import DONE, EVALUATE, FAILED, HELLO, REFUSED, SECURE, TRAIN, Fields, Payload
from fedprompt.runtimes.tensor_codec import Upload, decode, encode_change
from fedprompt.updates import State, Update

# The fields that a request must have: every one, and those of some kinds.
NEEDED = ("recipe", "run", "trial", "client")
FURTHER = {EVALUATE: ("since",), TRAIN: ("round", "since", "upload")}
FURTHER |= dict.fromkeys(SECURE, ("round", "since", "clients"))
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One request, rebuilt: what is to be done with which pictures and from which state."""

    experiment: Experiment
    trial: Trial
    client: Client
    method: Method
    shared: State
    personal: State


class Site:
    """Answers requests with the site's own pictures; keeps backbone, features and personal states between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clips: dict[str, Clip] = {}
        self._experiments: dict[str, Experiment] = {}
        self._membership = Membership()

    def answer(self, request: Payload) -> Payload:
        """Do what is asked. Only fields that hold no path, file name or label leave the site when that fails."""
        try:
            settings = load_site(self.folder)  # read anew: an administrator's change counts at once
            return self._answer(request, settings)
        except (RefusedError, RefusedUpdateError) as refusal:
            _log.warning("Refused a job: %s", refusal)
            return Payload(REFUSED, {"reason": str(refusal)})
        except Exception as error:  # whatever it is, its text may hold names: it stays in the site's own log
            reference = secrets.token_hex(4)
            _log.exception("A job failed (reference %s)", reference)
            return Payload(FAILED, {"reason": f"{type(error).__name__}, reference {reference} in the site's log."})

    def _answer(self, request: Payload, settings: SiteFile) -> Payload:
        needed = (*NEEDED, *FURTHER.get(request.kind, ()))
        if lacking := [word for word in needed if word not in request.fields]:
            raise RefusedError(f"the request lacks {', '.join(lacking)}; update the server.", rule="request")
        recipe = _recipe(request.fields)
        check_job(settings.policy, recipe)  # before any name in it is looked up
        plan = resolve(recipe, origin="job")
        if settings.data and not plan.data_at_sites:
            raise RefusedError("the job wants other pictures than this site's own.", rule="data")
        state = SiteState(self.folder / "state", str(request.fields["run"]), str(request.fields["trial"]))
        experiment = self._experiment(plan, settings, state)
        trial = _trial(experiment, request.fields)
        experiment = experiment.of(trial)
        client = _client(experiment, request.fields, settings)
        check_site(settings.policy, experiment.clip.fingerprint, len(client.train))
        if request.kind == HELLO:
            return Payload(DONE, introduction(experiment, trial, client, settings))
        secure = trial.setup.secure
        if request.kind in SECURE and secure is not None:

            def vector(codec: Codec) -> MaskedVector:
                job = _job(request, experiment, trial, client, state)
                update = self._train(job, request.fields, state, settings.policy.epsilon)
                check_update(update, job.shared, Limits(most_examples=secure.most_examples))
                return codec.encode(update, job.shared)

            return self._membership.answer(request, secure, state, vector)
        job = _job(request, experiment, trial, client, state)
        if request.kind == EVALUATE:
            return Payload(DONE, {"score": _score_words(self._score(job), settings.policy.smallest_count)})
        if request.kind != TRAIN or secure is not None:  # a single update of a secure sum never leaves the site
            raise RefusedError(f"the job does not go with a request {request.kind!r}.", rule="request")
        started, validation = time.perf_counter(), self._score(job)  # of the model as received: spares an exchange
        update = self._train(job, request.fields, state, settings.policy.epsilon)
        return _answer_to(job, update, validation, request.fields["upload"], seconds=time.perf_counter() - started)

    def _train(self, job: Job, fields: Fields, state: SiteState, cap: float | None) -> Update:
        number, privacy, settings = int(fields["round"]), job.trial.settings.privacy, job.trial.settings
        if privacy is not None:
            spender = f"{fields['run']}/{job.trial.name}"
            charge(self.folder, spender, privacy, settings, pictures=len(job.client.train), cap=cap)
        update = train_client(
            job.method,
            job.experiment.clip,
            job.client,
            shared=job.shared,
            personal=job.personal,
            round_number=number,
            settings=settings,
        )
        state.save(number, update.personal)
        return update

    def _score(self, job: Job) -> Score | None:
        if job.client.test is None:
            return None
        job.method.load_state_dict({**job.shared, **job.personal})
        batch_size = job.trial.settings.batch_size
        return evaluate(job.method, job.experiment.clip, job.client.test, name=job.client.name, batch_size=batch_size)

    def _experiment(self, plan: Plan, settings: SiteFile, state: SiteState) -> Experiment:
        own = localised(plan.recipe, settings)
        key = f"{state.folder.name} {own.model_dump_json()}"
        if key not in self._experiments:
            known = state.left_out()
            try:
                experiment = assemble(resolve(own, origin="job"), backbone=self._clip, unreadable=known)
            except UnreadableError as error:
                _log.warning("%s", error)
                sentence = "too many of the site's pictures cannot be read; its log says which."
                raise RefusedError(sentence, rule="unreadable") from error
            if known is None:
                state.leave_out({lost.row: lost.reason for lost in experiment.left_out})
                for lost in experiment.left_out:
                    _log.warning("Left out: %s", lost.reason)
            self._experiments = {key: experiment}
        return self._experiments[key]

    def _clip(self, table: BackboneTable) -> Clip:
        key = table.model_dump_json()
        if key not in self._clips:
            self._clips = {key: load_backbone(table)}
        return self._clips[key]


def _job(request: Payload, experiment: Experiment, trial: Trial, client: Client, state: SiteState) -> Job:
    """Rebuild what a request that carries the shared state is about."""
    method = trial.make_method(experiment.clip)
    start, personal = initial_state(method)
    check_raw(request.tensors, start)
    personal = state.load(int(request.fields["since"]), personal)
    return Job(experiment, trial, client, method, decode(request.tensors), personal)


def _answer_to(job: Job, update: Update, validation: Score | None, upload: Upload, *, seconds: float) -> Payload:
    said = {
        "num_examples": update.num_examples,
        "loss": update.loss,
        "seconds": seconds,
        "validation": None if validation is None else _said(validation.figures[METRICS[job.client.train.space.kind]]),
    }
    return Payload(DONE, said, encode_change(update.shared, job.shared, upload))


def localised(recipe: Recipe, settings: SiteFile) -> Recipe:
    """The recipe with this site's own folders and device in it: a server names no path of a site."""
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
    options.pop("test", None)  # pictures that only the server has
    data = type(recipe.data)(source=recipe.data.source, unreadable=recipe.data.unreadable, **options)
    return recipe.model_copy(update={"backbone": backbone, "data": data, "check": False})


def _recipe(fields: Fields) -> Recipe:
    return parse_recipe(str(fields["recipe"]), origin="job")


def _trial(experiment: Experiment, fields: Fields) -> Trial:
    found = next((trial for trial in experiment.trials if trial.name == fields["trial"]), None)
    if found is None:
        raise UserError("The job names a trial that its recipe does not have.")
    return found


def _client(experiment: Experiment, fields: Fields, settings: SiteFile) -> Client:
    """The client that the server takes this site for, if it bears the site's name."""
    shards = experiment.partition.shards
    number = fields["client"]
    if type(number) is not int or not 0 <= number < len(shards) or shards[number].name != settings.name:
        raise RefusedError("the job is for a site of another name.", rule="name")
    return experiment.clients[number]


def _score_words(score: Score | None, smallest: int) -> Mapping[str, Any] | None:
    """A score as it may leave the site: none of a handful of pictures."""
    if score is None or score.num_examples < smallest:
        return None
    return {
        "num_examples": score.num_examples,
        "figures": {name: _said(value) for name, value in score.figures.items()},
        "per_class": [_said(value) for value in score.per_class],
    }


def _said(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
