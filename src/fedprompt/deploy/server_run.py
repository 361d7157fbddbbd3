"""A run over sites, as the server sees it: the preflight, then the same rounds, records and report as anywhere."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.tables import DescriptionsTable
from fedprompt.deploy.preflight import agreement, mismatches
from fedprompt.deploy.settings import Deployment
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.class_descriptions import NONE
from fedprompt.experiments.context import RunContext, RunTransport, TransportFactory
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial, resolve
from fedprompt.methods.base import Method
from fedprompt.records.events import Event, RoundEvent, SitesEvent
from fedprompt.records.run_folder import Checkpoint, read_events, write_atomic
from fedprompt.runtimes.payload import DONE, HELLO, Fields, Payload
from fedprompt.runtimes.remote import Channel, Remote

FEDERATION = "federation.json"  # in a run's folder: which deployment it belongs to, and the id that sites know it by
POLL = 1.0  # seconds between looks at who is connected


class SiteChannel(Channel, Protocol):
    """A channel that knows who is connected."""

    def sites(self, *, deadline: float = 60.0) -> Mapping[str, int]:
        """The connected sites by name."""
        ...


@dataclass(frozen=True)
class Federation:
    """What a run over sites is remembered by."""

    run: str
    deployment: str

    @classmethod
    def of(cls, folder: Path) -> Federation | None:
        """The federation of a run's folder; None for a run that was simulated."""
        path = folder / FEDERATION
        if not path.is_file():
            return None
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(str(fields["run"]), str(fields["deployment"]))


def conduct(text: str, out: Path, channel: SiteChannel, deployment: Deployment, *, home: Path) -> Path:
    """Run the recipe over the sites into `out`, or go on with the run that is there; returns the report."""
    federation = Federation.of(out) or Federation(secrets.token_hex(16), str(home))
    write_atomic(out / FEDERATION, json.dumps(vars(federation)))
    make_transport = over(channel, deployment, federation.run)
    if (out / "run.jsonl").exists():
        return runs.resume(out, make_transport=make_transport)
    plan = resolve(enlisted(parse_recipe(text), deployment))
    return runs.start(plan, out, make_transport=make_transport)


def enlisted(recipe: Recipe, deployment: Deployment) -> Recipe:
    """The recipe with the deployment's sites as its clients, if its partition rule makes one client per site."""
    plan = resolve(recipe)
    recipe = plan.recipe
    if not plan.clients_are_sites:
        return recipe
    partition = recipe.partition.model_copy(update={"sites": list(deployment.sites)})
    # The images are at the sites, whatever folders the recipe names.
    data = recipe.data.model_copy(update={"folders": {}}) if plan.data_at_sites else recipe.data
    return recipe.model_copy(update={"partition": partition, "data": data})


def over(channel: SiteChannel, deployment: Deployment, run: str) -> TransportFactory:
    """The factory of transports from the trials of a run to the sites of a deployment."""

    def make_transport(context: RunContext, trial: Trial, method: Method, checkpoint: Checkpoint) -> RunTransport:
        if trial.setup.attack is not None:
            raise UserError("[train.server.attack] is for simulations; leave it out of a run over sites.")
        if trial.sharing != "federated":
            raise UserError(f"[train] sharing = {trial.sharing!r} is for simulations; leave it out over sites.")
        names = tuple(shard.name for shard in context.experiment.partition.shards)
        for name in names:
            if name not in deployment.sites:
                raise UserError(
                    f"The recipe has a client {name!r}, which is no site of the deployment "
                    f"({', '.join(deployment.sites)}); use the partition rule 'by_site'."
                )
        job = {"recipe": travelling(context.experiment, trial), "run": run, "trial": trial.name}
        check = Preflight(channel, deployment, names, job)
        context.callbacks.on_step("Asking the sites")
        said = check.hold(context, trial)
        context.run.append(SitesEvent(trial=trial.name, sites=said))
        num_examples = {names.index(name): _count(fields.get("images")) for name, fields in said.items()}
        if trial.settings.privacy is not None and len(num_examples) < len(names):
            raise UserError("A privacy budget of pictures needs every site at the preflight; start them, then resume.")
        accepted = {
            client: event.round
            for event in context.run.events()
            if isinstance(event, RoundEvent) and event.trial == trial.name
            for client in event.kept
        }
        secure = trial.setup.secure
        return Remote(
            method,
            channel,
            deployment.remote_settings(names),
            job,
            accepted=accepted,
            num_examples=num_examples,
            secure=None if secure is None else replace(secure, run=f"{run}/{trial.name}"),
            on_client=context.callbacks.on_client,
        )

    return make_transport


def travelling(experiment: Experiment, trial: Trial) -> str:
    """The recipe as sites get it: of one trial, words in place of their files, and without the server's own paths."""
    recipe, space = experiment.recipe, experiment.dataset.space
    table = next(one for one in (recipe.method, *recipe.compare) if one.title == trial.name)
    options = {key: value for key, value in recipe.data.options.items() if key not in ("folders", "test")}
    descriptions = DescriptionsTable()
    if trial.descriptions != descriptions:
        if not experiment.plan.data_at_sites:
            raise UserError("[descriptions] of a run over sites need a source whose images lie there; leave them out.")
        options["attributes"] = {name: list(phrases) for name, phrases in space.attributes.items()}
        descriptions = DescriptionsTable(conditions=space.conditions or NONE)
    changed = {
        "data": type(recipe.data)(source=recipe.data.source, unreadable=recipe.data.unreadable, **options),
        "backbone": recipe.backbone.model_copy(update={"disk": None}),
        "descriptions": descriptions,
        "method": table.model_copy(update={"descriptions": {}}),
        "compare": (),
    }
    return recipe.model_copy(update=changed).to_toml()


def _count(said: object) -> int:
    return said if type(said) is int and said > 0 else 0


@dataclass(frozen=True)
class Preflight:
    """One test_set to every site before the first round."""

    channel: SiteChannel
    deployment: Deployment
    names: tuple[str, ...]
    job: Fields

    def hold(self, context: RunContext, trial: Trial) -> dict[str, Fields]:
        """What each site said. UserError naming every site that does not fit, or that too few are connected."""
        present = self._gather()
        asked = time.time()
        answers = self.channel.ask(
            {
                name: Payload(HELLO, {**self.job, "client": client})
                for client, name in enumerate(self.names)
                if name in present
            },
            deadline=self.deployment.deadline,
        )
        ours, wrong = agreement(context.experiment, trial), []
        said: dict[str, Fields] = {}
        for name, answer in answers.items():
            faults = self._faults(ours, answer, asked)
            wrong += [f"{name}: {fault}" for fault in faults]
            if isinstance(answer, Payload):
                said[name] = answer.fields
        if wrong:
            raise UserError("The preflight stops the run. " + "; ".join(wrong) + ".")
        for name in self.names:
            if name not in present:
                context.callbacks.on_warning(f"The site {name} is not connected; it may join in a later round.")
        return said

    def _gather(self) -> set[str]:
        """Wait for all sites, at most as long as the deployment has patience; UserError below the quorum."""
        end = time.monotonic() + self.deployment.patience
        present = set(self.channel.sites()) & set(self.names)
        while len(present) < len(self.names) and time.monotonic() < end:
            time.sleep(POLL)
            present = set(self.channel.sites()) & set(self.names)
        quorum = min(self.deployment.quorum, len(self.names))
        if len(present) < quorum:
            missing = ", ".join(sorted(set(self.names) - present))
            raise UserError(
                f"{len(present)} of the {quorum} sites that a round needs are connected (missing: {missing}); "
                "start them with `fedprompt site up`, then go on with: fedprompt resume RUN."
            )
        return present

    def _faults(self, ours: Mapping[str, str], answer: Payload | str, asked: float) -> list[str]:
        if isinstance(answer, str):
            return [answer.rstrip(".")]
        if answer.kind != DONE:
            return [f"{answer.kind}: {str(answer.fields.get('reason', ''))[:200].rstrip('.')}"]
        skew = self.deployment.clock_skew
        return mismatches(ours, answer.fields, asked=asked, answered=time.time(), skew=skew)


def events_of(folder: Path) -> list[Event]:
    """The events of a run that may still be going on, or not have begun."""
    return list(read_events(folder)) if (folder / "run.jsonl").exists() else []
