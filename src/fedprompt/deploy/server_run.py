"""A run over sites at the server: the preflight, then the same rounds, records and report as in a simulation."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import fedprompt
from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.recipe_tables import DescriptionsTable
from fedprompt.deploy.checked_channel import CheckedChannel, MessageNumbers, SiteChannel, Terms
from fedprompt.deploy.identity import identities_of
from fedprompt.deploy.preflight import fingerprints
from fedprompt.deploy.secure_member import secure_sum_of_job
from fedprompt.deploy.settings import Deployment
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.class_descriptions import NONE
from fedprompt.experiments.context import NO_CALLBACKS, RunCallbacks, RunContext, RunTransport, TransportFactory
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.plan import Trial, resolve
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.file_system import read_bytes
from fedprompt.methods.base import Method
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.events import Event, RoundEvent, SitesEvent
from fedprompt.records.run_folder import read_events
from fedprompt.runtimes.payload import VERSION, Fields
from fedprompt.runtimes.remote import Remote
from fedprompt.text_files import json_text, load_json_object

FEDERATION = "federation.json"  # in a run's folder: its deployment, and the run id that the sites use


@dataclass(frozen=True)
class Federation:
    """The run id at the sites, and the deployment's folder, of a run over sites.

    `starts` counts how often the run was started or resumed. `data` has, by site, the fingerprint of the images that it
    began with.
    """

    run: str
    deployment: str
    starts: int = 0
    data: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Federation | None:
        """The federation of a run's folder; None for a run that was simulated."""
        path = folder / FEDERATION
        if not path.is_file():
            return None
        fields = load_json_object(read_bytes(path))
        return cls(str(fields["run"]), str(fields["deployment"]), int(fields["starts"]), dict(fields["data"]))

    def save(self, folder: Path) -> None:
        """Write it to the run's folder."""
        write_atomic(folder / FEDERATION, json_text(vars(self)))


def run_on_sites(  # noqa: PLR0913  (the last two are optional)
    text: str,
    out: Path,
    channel: SiteChannel,
    deployment: Deployment,
    *,
    home: Path,
    callbacks: RunCallbacks = NO_CALLBACKS,
    accept_changes: bool = False,
) -> Path:
    """Run a recipe over the sites into `out`, or resume the run in it; returns the report.

    With `accept_changes` a run is resumed although its recipe, versions or a site's images have changed.
    """
    federation = Federation.of(out) or Federation(secrets.token_hex(16), str(home))
    data = {} if accept_changes else federation.data
    federation = replace(federation, starts=federation.starts + 1, data=data)
    federation.save(out)
    make_transport = site_transport(channel, deployment, federation, identities=identities_of(home))
    if (out / "run.jsonl").exists():
        return runs.resume(
            out, callbacks=callbacks, make_transport=make_transport, accept_changes=accept_changes, trusted=None
        )
    recipe = parse_recipe(text)
    require_rounds(recipe)
    plan = resolve(with_deployment_sites(recipe, deployment))
    return runs.start(plan, out, callbacks=callbacks, make_transport=make_transport)


def require_rounds(recipe: Recipe) -> None:
    """Raise UserError if a recipe leaves its rounds to a budget of time, which is not measured at the sites."""
    if recipe.minutes:
        raise UserError(
            f"minutes = {recipe.minutes:g} is measured on one machine and says nothing about sites; give the number of "
            "rounds by train.rounds, with minutes = 0."
        )


def with_deployment_sites(recipe: Recipe, deployment: Deployment) -> Recipe:
    """The recipe with the deployment's sites as its clients, if its partition rule makes one client per site."""
    plan = resolve(recipe)
    recipe = plan.recipe
    if not plan.clients_are_sites:
        return recipe
    partition = recipe.partition.model_copy(update={"sites": list(deployment.sites)})
    # The images are at the sites, whatever folders the recipe names.
    data = recipe.data.model_copy(update={"folders": {}}) if plan.data_at_sites else recipe.data
    return recipe.model_copy(update={"partition": partition, "data": data})


def site_transport(
    channel: SiteChannel, deployment: Deployment, federation: Federation, *, identities: Mapping[str, bytes]
) -> TransportFactory:
    """The factory of transports to the sites of a deployment, for every trial of a run.

    `identities` are the sites' identity keys, as far as they have sent them.
    """
    run, numbers = federation.run, MessageNumbers(federation.starts)

    def make_transport(context: RunContext, trial: Trial, method: Method, checkpoint: Checkpoint) -> RunTransport:
        if trial.setup.attack is not None:
            raise UserError("[train.server.attack] is for simulations; leave it out of a run over sites.")
        if trial.sharing != "federated":
            raise UserError(f"[train] sharing = {trial.sharing!r} is for simulations; leave it out over sites.")
        names = tuple(shard.name for shard in context.experiment.partition.shards)
        for name in names:
            if name not in deployment.sites:
                raise UserError(
                    f"The recipe has a client {name!r}, which is not a site of the deployment "
                    f"({', '.join(deployment.sites)}); use the partition rule 'by_site'."
                )
        recipe = recipe_for_sites(context.experiment, trial)
        job = {VERSION: fedprompt.__version__, "recipe": recipe, "run": run, "trial": trial.name}
        secure = _secure_sum(trial, job, names, identities)
        num_examples: dict[int, int] = {}

        def admit(name: str, report: Fields) -> None:
            num_examples[names.index(name)] = report["images"]
            federation.save(context.run.path)
            context.run.append(SitesEvent(trial=trial.name, sites={name: report}))

        terms = Terms(names, job, fingerprints(context.experiment, trial), federation.data, admit)
        checked = CheckedChannel(channel, deployment, numbers, terms)
        context.callbacks.on_step("Asking the sites")
        checked.preflight(on_warning=context.callbacks.on_warning)
        if trial.settings.privacy is not None and len(num_examples) < len(names):
            raise UserError("A privacy budget per image needs every site at the preflight; start them, then resume.")
        accepted = {
            client: event.round
            for event in context.run.events()
            if isinstance(event, RoundEvent) and event.trial == trial.name and event.round <= checkpoint.round_number
            for client in event.kept
        }
        return Remote(
            method,
            checked,
            deployment.remote_settings(names),
            job,
            accepted=accepted,
            num_examples=num_examples,
            secure=secure,
            on_client=context.callbacks.on_client,
        )

    return make_transport


def _secure_sum(
    trial: Trial, job: Mapping[str, str], names: Sequence[str], identities: Mapping[str, bytes]
) -> SecureSum | None:
    """The trial's secure sum with what binds it to this run and its sites."""
    if trial.setup.secure is None:
        return None
    if missing := [name for name in names if name not in identities]:
        raise UserError(
            f"Secure aggregation needs the identity key of every site, but keys/{missing[0]}.pub has none; "
            "the site makes it with: fedprompt site init"
        )
    keys = {client: identities[name] for client, name in enumerate(names)}
    return secure_sum_of_job(trial.setup.secure, job, keys)


def recipe_for_sites(experiment: Experiment, trial: Trial) -> str:
    """The recipe that sites receive: one trial's, with descriptions inlined, and without the server's own paths."""
    recipe, space = experiment.recipe, experiment.dataset.space
    table = next(one for one in (recipe.method, *recipe.compare) if one.title == trial.name)
    options = {key: value for key, value in recipe.data.options.items() if key not in ("folders", "test")}
    descriptions = DescriptionsTable()
    if trial.descriptions != descriptions:
        if not experiment.plan.data_at_sites:
            raise UserError("[descriptions] of a run over sites need the sites' own images; leave the table out.")
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


def job_recipes(recipe: Recipe, deployment: Deployment) -> dict[str, str]:
    """The recipe that the sites of a deployment would receive for each trial, by its name; nobody is asked."""
    require_rounds(recipe)
    experiment = assemble(resolve(with_deployment_sites(recipe, deployment)))
    return {trial.name: recipe_for_sites(experiment.of(trial), trial) for trial in experiment.trials}


def recorded_events(folder: Path) -> list[Event]:
    """The events of a run so far; none before it has begun."""
    return list(read_events(folder)) if (folder / "run.jsonl").exists() else []
