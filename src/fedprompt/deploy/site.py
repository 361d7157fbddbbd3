"""A site: checks requests against its policy, rebuilds the trial on its own images, trains or evaluates, answers."""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import time
import traceback
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedprompt.clip.threads import fitting_threads
from fedprompt.deploy.audit import ALLOWED, AuditTrail, Verdict, recipe_hash
from fedprompt.deploy.disclosure import (
    hides_divergence,
    releasable_loss,
    releasable_score,
    releasable_total,
    releasable_weight,
)
from fedprompt.deploy.hash_chain import DamagedError
from fedprompt.deploy.jobs import Job, Jobs
from fedprompt.deploy.ledger import Budget, Charged, SiteLedger, Training
from fedprompt.deploy.preflight import fingerprints, hello_answer
from fedprompt.deploy.secure_member import SecureMember, secure_sum_of_site
from fedprompt.deploy.settings import SiteFile, load_site
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.federated.client import TooLateError, train_client
from fedprompt.federated.evaluate import METRICS, Score, evaluate_any, validate
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.screening import (
    RefusedUpdateError,
    check_personal,
    check_raw,
    check_update,
    is_finite,
)
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import state_digest
from fedprompt.federated.secure.vector import Codec, vector_length
from fedprompt.methods.base import Method
from fedprompt.runtimes.payload import (
    DIVERGED,
    DONE,
    EVALUATE,
    EXPIRES,
    FAILED,
    HELLO,
    REFUSED,
    SECURE,
    TRAIN,
    VALIDATE,
    Payload,
)
from fedprompt.runtimes.tensor_codec import decode, encode_change
from fedprompt.text_files import json_text
from fedprompt.updates import State, Update

LONGEST_CAUSE = 2000  # characters of why a job was refused, in the site's log
DEEPEST_TRACE = 20  # calls of a traceback in the site's log, the innermost
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteTask:
    """A job whose request carries the shared state: the method, and the state to start from."""

    job: Job
    method: Method
    shared: State
    personal: State


class Site:
    """Answers requests with the site's own images; what it has opened for one request serves the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = Jobs(folder)
        self._secure_member = SecureMember(folder)
        self._ledger = SiteLedger(folder)
        self._audit = AuditTrail(folder)

    def answer(self, request: Payload) -> Payload:
        """Answer a request, and record it. A failure is answered without any path, file name or label."""
        charges: list[Charged] = []  # at most one: what a training that failed was charged is recorded too
        try:
            self._audit.check(self._ledger.state)
            # The settings are read for every request, so that changes take effect at once.
            answer, rule = self._answer(request, _settings(self.folder), charges), ALLOWED
        except Exception as error:
            answer, rule = _refusal(error)
        charged = charges[0] if charges else Charged(None, "")
        try:
            self._audit.record(request, answer, Verdict(rule, charged.epsilon, charged.hash, self._ledger.newest))
        except Exception as error:  # what is not recorded does not leave
            return _refusal(error)[0]
        return answer

    def _answer(self, request: Payload, settings: SiteFile, charges: list[Charged]) -> Payload:
        if time.time() > request.fields.get(EXPIRES, math.inf):
            raise _expired()  # it has waited while the site was busy
        job = self._jobs.accept(request, settings)
        with fitting_threads(job.experiment.clip):  # as in a simulation, for the same bits
            return self._answer_job(job, request, settings, charges)

    def _answer_job(self, job: Job, request: Payload, settings: SiteFile, charges: list[Charged]) -> Payload:
        secure = _secure_sum(job, self.folder)
        if request.kind == HELLO:
            return _marked(job, Payload(DONE, hello_answer(job.experiment, job.client, settings)))
        if request.kind in SECURE and secure is not None:

            def train(codec: Codec) -> tuple[MaskedVector, bytes]:
                task = _task(job)
                update = self._train(task, charges)
                update = replace(update, num_examples=releasable_weight(update.num_examples, settings.policy))
                check_update(update, task.shared)
                return codec.encode(update, task.shared), state_digest(task.shared)

            length = partial(_vector_length, job)
            return _marked(job, self._secure_member.answer(request, secure, job.state, train, length))
        task = _task(job)
        if request.kind in (EVALUATE, VALIDATE):
            found = self._score(task) if request.kind == EVALUATE else self._validate(task)
            tested = job.client.test if request.kind == EVALUATE else next(iter(job.client.held_out.values()), None)
            return _marked(job, Payload(DONE, {"score": releasable_score(found, tested, settings.policy)}))
        if request.kind != TRAIN or secure is not None:  # with secure sums, a plain update never leaves the site
            raise RefusedError(f"the job does not allow a request {request.kind!r}.", rule="request")
        started, validation = time.perf_counter(), self._score(task)  # of the received model, which saves a request
        update = self._train(task, charges)
        seconds = time.perf_counter() - started
        return _marked(job, _train_answer(task, update, validation, seconds=seconds))

    def _train(self, task: SiteTask, charges: list[Charged]) -> Update:
        job, hidden = task.job, hides_divergence(task.job.settings.policy)
        charges.append(self._charge(job))
        number, settings = int(job.fields["round"]), job.trial.settings
        try:
            update = train_client(
                task.method,
                job.experiment.clip,
                job.client,
                shared=task.shared,
                personal=task.personal,
                round_number=number,
                settings=settings.model_copy(update={"hides_loss": hidden, "until": job.fields.get(EXPIRES)}),
            )
        except TooLateError as error:
            raise _expired() from error
        if hidden and not is_finite(update):
            _log.warning("Round %d of %s diverged; the server is sent no change.", number, job.trial.name)
            update = replace(update, shared={}, personal=task.personal)
        check_personal(update)
        # The run may go back to any round if it keeps the best one.
        keep_all = bool(job.experiment.plan.keep.metric)
        job.state.save(number, update.personal, since=int(job.fields["since"]), keep_all=keep_all)
        return update

    def _charge(self, job: Job) -> Charged:
        """Record a training in the ledger before it begins; RefusedError if it would exceed a budget."""
        settings, privacy, policy = job.trial.settings, job.trial.setup.privacy, job.settings.policy
        count, mechanism = len(job.client.train), None
        if privacy is not None:
            mechanism = privacy.at_client(images=count, batch_size=settings.batch_size, epochs=settings.local_epochs)
        delta = policy.delta_for(count)
        budget = Budget(delta, repeats=policy.maximum_repeats if job.trial.setup.secure is not None else None)
        if privacy is not None and mechanism is not None:
            budget = Budget(delta, policy.epsilon, privacy.epsilon, min(privacy.delta, delta))
        training = Training(
            run=job.state.folder.name,
            trial=job.trial.name,
            round=int(job.fields["round"]),
            recipe=recipe_hash(job.request),
            start=_state_hash(job.request),
            images=job.images.train.fingerprint,
            count=count,
            clip=privacy.clip if privacy is not None and mechanism is not None else 0.0,
            mechanism=mechanism,
        )
        return self._ledger.charge(training, job.images.train, budget, trail=self._audit.lines)

    def _score(self, task: SiteTask) -> Score | None:
        job, client = task.job, task.job.client
        if client.test is None or not job.may_score:
            return None
        task.method.load_state_dict({**task.shared, **task.personal})
        batch_size = job.trial.settings.batch_size
        return evaluate_any(task.method, job.experiment.clip, client.test, name=client.name, batch_size=batch_size)

    def _validate(self, task: SiteTask) -> Score | None:
        """The figures of held-out images that the run chooses a round by, and no others; None without such images."""
        job, client = task.job, task.job.client
        if not client.held_out or not job.may_score:
            return None
        task.method.load_state_dict({**task.shared, **task.personal})
        columns, batch_size = job.experiment.plan.keep.columns, job.trial.settings.batch_size
        found = validate(task.method, job.experiment.clip, client, batch_size=batch_size)
        return replace(found, figures={column: found.figures[column] for column in columns})


def _expired() -> RefusedError:
    return RefusedError("the message has expired, and nobody waits for its answer.", rule="deadline")


def _marked(job: Job, answer: Payload) -> Payload:
    """The answer with the number of its request, and the facts that the server compares with its own."""
    facts = {**fingerprints(job.experiment, job.trial), "data": job.images_hash}
    return replace(answer, fields={**answer.fields, "facts": facts, "serial": job.fields["serial"]})


def _settings(folder: Path) -> SiteFile:
    """The site's settings; RefusedError, as their text stays at the site, if they have a mistake."""
    try:
        return load_site(folder)
    except UserError as error:
        raise RefusedError("the site's own settings have a mistake; its log says which.", rule="settings") from error


def _refusal(error: Exception) -> tuple[Payload, str]:
    """The answer that reports an error, and its rule. What was not written for the server stays in the site's log."""
    if isinstance(error, NotFiniteError):  # the received state may be poisoned; the server asks whether all say so
        _log.warning("The losses are not finite: %s", error)
        return Payload(DIVERGED), DIVERGED
    if isinstance(error, DamagedError):
        refused = RefusedError("the site's records are damaged or lost; its log says which.", rule="records")
        refused.__cause__ = error
        error = refused
    if isinstance(error, RefusedUpdateError):  # by the checks that the server makes of an update, too
        error = RefusedError(error.sentence, rule=error.rule)
    if isinstance(error, RefusedError):
        cause = f" {error.__cause__}" if error.__cause__ else ""
        _log.warning("Refused a job: %s%s", error, cause[:LONGEST_CAUSE])  # which may list what the job lists
        return Payload(REFUSED, {"reason": str(error)}), error.rule
    reference = secrets.token_hex(4)
    lines = [str(error)] if isinstance(error, UserError) else traceback.format_exception(error, limit=-DEEPEST_TRACE)
    _log.error("A job failed (reference %s): %s", reference, "".join(lines))
    return Payload(FAILED, {"reason": f"{type(error).__name__}, reference {reference} in the site's log."}), "failure"


def _state_hash(request: Payload) -> str:
    """A hash of the shared state in a request."""
    found = hashlib.sha256()
    for name, raw in sorted(request.tensors.items()):
        found.update(json_text([name, raw.dtype, raw.shape, len(raw.data)]).encode() + raw.data)
    return found.hexdigest()[:32]


def _secure_sum(job: Job, folder: Path) -> SecureSum | None:
    """The secure sum of a trial with the site's own roster and policy, if its recipe asks for one."""
    if job.trial.setup.secure is None:
        return None
    names = [shard.name for shard in job.experiment.partition.shards]
    return secure_sum_of_site(job.trial.setup.secure, job.fields, names, settings=job.settings, folder=folder)


def _vector_length(job: Job) -> int:
    return vector_length(initial_state(job.trial.make_method(job.experiment.clip))[0])


def _task(job: Job) -> SiteTask:
    """The task of a request that carries the shared state."""
    method = job.trial.make_method(job.experiment.clip)
    start, personal = initial_state(method)
    tensors = job.request.tensors
    check_raw(tensors, start)
    personal = job.state.load(int(job.fields["since"]), personal)
    return SiteTask(job, method, decode(tensors), personal)


def _train_answer(task: SiteTask, update: Update, validation: Score | None, *, seconds: float) -> Payload:
    job, policy = task.job, task.job.settings.policy
    figures = (releasable_score(validation, job.client.test, policy) or {}).get("figures", {})
    fields = {
        "num_examples": releasable_total(update.num_examples, policy),
        "loss": releasable_loss(update.loss, policy),
        "seconds": seconds,
        "validation": figures.get(METRICS[job.client.train.space.kind]),
    }
    return Payload(DONE, fields, encode_change(update.shared, task.shared, job.fields["upload"]))
