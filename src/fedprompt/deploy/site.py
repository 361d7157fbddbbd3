"""A site: checks requests against its policy, rebuilds the trial on its own images, trains or evaluates, answers."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedprompt.clip.model import Clip
from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.deploy.preflight import hello_answer
from fedprompt.deploy.secure_member import SecureMember, secure_sum_of_site
from fedprompt.deploy.settings import SiteFile, load_site
from fedprompt.deploy.site_policy import RefusedError, check_job, check_site
from fedprompt.deploy.site_state import SiteState, charge_privacy
from fedprompt.errors import UserError
from fedprompt.experiments.events import METRICS
from fedprompt.experiments.experiment import Experiment, assemble, load_backbone
from fedprompt.experiments.plan import Plan, Trial, resolve
from fedprompt.experiments.unreadable import UnreadableError
from fedprompt.federated.client import Client, train_client
from fedprompt.federated.evaluate import Score, evaluate
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.screening import Limits, RefusedUpdateError, check_personal, check_raw, check_update
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import state_digest
from fedprompt.federated.secure.vector import Codec, vector_length
from fedprompt.methods.base import Method
from fedprompt.runtimes.payload import DONE, EVALUATE, FAILED, HELLO, REFUSED, SECURE, TRAIN, Fields, Payload
from fedprompt.runtimes.tensor_codec import Upload, decode, encode_change
from fedprompt.updates import State, Update

# The fields of every request, and the further ones by kind of request.
NEEDED = ("recipe", "run", "trial", "client")
FURTHER = {EVALUATE: ("since",), TRAIN: ("round", "since", "upload")}
FURTHER |= dict.fromkeys(SECURE, ("round", "since", "members", "nonce"))
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteTask:
    """What a request asks for: the trial, the client with its images, the method, and the state to start from."""

    experiment: Experiment
    trial: Trial
    client: Client
    method: Method
    shared: State
    personal: State


class Site:
    """Answers requests with the site's own images; caches backbone, features and experiment between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clips: dict[str, Clip] = {}
        self._experiments: dict[str, Experiment] = {}
        self._secure_member = SecureMember(folder)

    def answer(self, request: Payload) -> Payload:
        """Answer a request. A failure is answered without any path, file name or label."""
        try:
            settings = load_site(self.folder)  # read for every request, so that changes take effect at once
            return self._answer(request, settings)
        except (RefusedError, RefusedUpdateError) as refusal:
            _log.warning("Refused a job: %s", refusal)
            return Payload(REFUSED, {"reason": str(refusal)})
        except Exception as error:  # its text may hold names, so it stays in the site's own log
            reference = secrets.token_hex(4)
            _log.exception("A job failed (reference %s)", reference)
            return Payload(FAILED, {"reason": f"{type(error).__name__}, reference {reference} in the site's log."})

    def _answer(self, request: Payload, settings: SiteFile) -> Payload:
        needed = (*NEEDED, *FURTHER.get(request.kind, ()))
        if missing := [field for field in needed if field not in request.fields]:
            raise RefusedError(f"the request lacks {', '.join(missing)}; update the server.", rule="request")
        recipe = _recipe(request.fields)
        check_job(settings.policy, recipe)  # before any name in it is looked up
        plan = resolve(recipe, origin="job")
        if settings.data and not plan.data_at_sites:
            raise RefusedError("the job wants other images than this site's own.", rule="data")
        state = SiteState(self.folder / "state", str(request.fields["run"]), str(request.fields["trial"]))
        experiment = self._experiment(plan, settings, state)
        trial = _trial(experiment, request.fields)
        experiment = experiment.of(trial)
        client = _client(experiment, request.fields, settings)
        check_site(settings.policy, experiment.clip.fingerprint, len(client.train))
        secure = _secure_sum(experiment, trial, request.fields, settings, self.folder)
        if request.kind == HELLO:
            return Payload(DONE, hello_answer(experiment, trial, client, settings))
        if request.kind in SECURE and secure is not None:

            def train(codec: Codec) -> tuple[MaskedVector, bytes]:
                task = _task(request, experiment, trial, client, state)
                update = self._train(task, request.fields, state, settings.policy.epsilon)
                check_update(update, task.shared, Limits(most_examples=codec.most_examples))
                return codec.encode(update, task.shared), state_digest(task.shared)

            length = partial(_vector_length, trial, experiment.clip)
            return self._secure_member.answer(request, secure, state, train, length)
        task = _task(request, experiment, trial, client, state)
        if request.kind == EVALUATE:
            return Payload(DONE, {"score": _score_fields(self._score(task), settings.policy.smallest_count)})
        if request.kind != TRAIN or secure is not None:  # with secure sums, a plain update never leaves the site
            raise RefusedError(f"the job does not allow a request {request.kind!r}.", rule="request")
        started, validation = time.perf_counter(), self._score(task)  # of the received model, which saves a request
        update = self._train(task, request.fields, state, settings.policy.epsilon)
        return _train_answer(task, update, validation, request.fields["upload"], seconds=time.perf_counter() - started)

    def _train(self, task: SiteTask, fields: Fields, state: SiteState, budget: float | None) -> Update:
        number, privacy, settings = int(fields["round"]), task.trial.settings.privacy, task.trial.settings
        if privacy is not None:
            name = f"{fields['run']}/{task.trial.name}"
            charge_privacy(self.folder, name, privacy, settings, images=len(task.client.train), budget=budget)
        update = train_client(
            task.method,
            task.experiment.clip,
            task.client,
            shared=task.shared,
            personal=task.personal,
            round_number=number,
            settings=settings,
        )
        check_personal(update)
        state.save(number, update.personal)
        return update

    def _score(self, task: SiteTask) -> Score | None:
        if task.client.test is None:
            return None
        task.method.load_state_dict({**task.shared, **task.personal})
        batch_size = task.trial.settings.batch_size
        return evaluate(
            task.method, task.experiment.clip, task.client.test, name=task.client.name, batch_size=batch_size
        )

    def _experiment(self, plan: Plan, settings: SiteFile, state: SiteState) -> Experiment:
        own = local_recipe(plan.recipe, settings)
        key = f"{state.folder.name} {own.model_dump_json()}"
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
        return self._experiments[key]

    def _clip(self, table: BackboneTable) -> Clip:
        key = table.model_dump_json()
        if key not in self._clips:
            self._clips = {key: load_backbone(table)}
        return self._clips[key]


def _secure_sum(
    experiment: Experiment, trial: Trial, fields: Fields, settings: SiteFile, folder: Path
) -> SecureSum | None:
    """The secure sum of a trial with the site's own roster and policy, if its recipe asks for one."""
    if trial.setup.secure is None:
        return None
    names = [shard.name for shard in experiment.partition.shards]
    return secure_sum_of_site(trial.setup.secure, fields, names, settings=settings, folder=folder)


def _vector_length(trial: Trial, clip: Clip) -> int:
    return vector_length(initial_state(trial.make_method(clip))[0])


def _task(request: Payload, experiment: Experiment, trial: Trial, client: Client, state: SiteState) -> SiteTask:
    """The task of a request that carries the shared state."""
    method = trial.make_method(experiment.clip)
    start, personal = initial_state(method)
    check_raw(request.tensors, start)
    personal = state.load(int(request.fields["since"]), personal)
    return SiteTask(experiment, trial, client, method, decode(request.tensors), personal)


def _train_answer(
    task: SiteTask, update: Update, validation: Score | None, upload: Upload, *, seconds: float
) -> Payload:
    fields = {
        "num_examples": update.num_examples,
        "loss": update.loss,
        "seconds": seconds,
        "validation": None
        if validation is None
        else _finite(validation.figures[METRICS[task.client.train.space.kind]]),
    }
    return Payload(DONE, fields, encode_change(update.shared, task.shared, upload))


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


def _recipe(fields: Fields) -> Recipe:
    return parse_recipe(str(fields["recipe"]), origin="job")


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


def _score_fields(score: Score | None, smallest: int) -> Mapping[str, Any] | None:
    """A score as fields; None if it comes from fewer than `smallest` images, which may not leave the site."""
    if score is None or score.num_examples < smallest:
        return None
    return {
        "num_examples": score.num_examples,
        "figures": {name: _finite(value) for name, value in score.figures.items()},
        "per_class": [_finite(value) for value in score.per_class],
    }


def _finite(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
