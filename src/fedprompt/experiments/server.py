"""The server of a trial, from [train.server]: aggregation, optimiser, privacy with its ledger, secure sums, attack."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedprompt.config.blocks import Block, bind, with_defaults
from fedprompt.config.recipe import recipe_key_hint
from fedprompt.config.recipe_tables import NORM_LIMIT, ServerBlock, ServerTable
from fedprompt.config.registry import AGGREGATION_RULES, ATTACKS, PRIVACY, SERVER_OPTIMIZERS, Registry
from fedprompt.errors import UserError, plural
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.attacks import Adversaries, Attack
from fedprompt.federated.client import TrainSettings
from fedprompt.federated.privacy.accounting import EpsilonFunction, GaussianPrivacy, Ledger
from fedprompt.federated.privacy.clients import ClientPrivacy
from fedprompt.federated.privacy.distributed import DistributedPrivacy
from fedprompt.federated.privacy.samples import SamplePrivacy
from fedprompt.federated.screening import Limits
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.server import Server
from fedprompt.methods.base import Method
from fedprompt.records.events import PrivacyEvent
from fedprompt.records.run_folder import RunFolder

WEIGHTS: Mapping[Weighting, str] = {
    "uniform": "equal weights",
    "examples": "weights in proportion to their numbers of training images",
}
REGISTRIES: Mapping[str, Registry] = {
    "aggregate": AGGREGATION_RULES,
    "optimizer": SERVER_OPTIMIZERS,
    "privacy": PRIVACY,
    "attack": ATTACKS,
}


Privacy = ClientPrivacy | DistributedPrivacy | SamplePrivacy


@dataclass(frozen=True)
class ServerSetup:
    """What [train.server] sets up for a trial; `table` is that table with every default written out."""

    table: ServerTable
    server: Server
    privacy: Privacy | None = None
    secure: SecureSum | None = None
    attack: Attack | None = None

    @property
    def sample_privacy(self) -> SamplePrivacy | None:
        """Differential privacy that clients apply while they train (DP-SGD), if the table asks for it."""
        return self.privacy if isinstance(self.privacy, SamplePrivacy) else None

    def adversaries(self, *, clients: int, seed: int) -> Adversaries | None:
        """The malicious clients, which are the last ones; None without an attack.

        Raises UserError for more of them than there are clients.
        """
        if self.attack is None or self.table.attack is None:
            return None
        count = self.table.attack.adversaries
        if count > clients:
            raise UserError(
                f"[train.server.attack] adversaries = {count}, but there {'is' if clients == 1 else 'are'} "
                f"{plural(clients, 'client')}; give at most {clients}."
            )
        return Adversaries(self.attack, frozenset(range(clients - count, clients)), seed)


def bind_server(table: ServerTable, *, place: str) -> dict[str, Block[Any]]:
    """The building blocks that the table names, by key, with checked options."""
    pieces: dict[str, ServerBlock | None] = {key: getattr(table, key) for key in REGISTRIES}
    return {
        key: bind(
            piece.name,
            REGISTRIES[key].find(piece.name, place=f"{place} {key}"),
            piece.options,
            place=f"{place.removesuffix(']')}.{key}]",
            hint=recipe_key_hint,
        )
        for key, piece in pieces.items()
        if piece is not None
    }


def write_out(table: ServerTable, blocks: Mapping[str, Block[Any]]) -> ServerTable:
    """The table with the defaults of its blocks written out."""
    return table.model_copy(update={key: with_defaults(getattr(table, key), block) for key, block in blocks.items()})


def set_up(
    table: ServerTable, method: type[Method], *, weighting: Weighting = "uniform", sends: bool = True, place: str
) -> ServerSetup:
    """Build what the table names for a method's trial.

    Where no client sends anything (not `sends`), only the privacy of samples counts. Raises UserError for parts that
    exclude each other.
    """
    blocks = bind_server(table, place=place)
    privacy: Privacy | None = blocks["privacy"]() if "privacy" in blocks else None
    if not sends:
        privacy = privacy if isinstance(privacy, SamplePrivacy) else None
        blocks = {"privacy": blocks["privacy"]} if privacy is not None else {}
        table = ServerTable(privacy=table.privacy if privacy is not None else None)
    built = {key: block() for key, block in blocks.items() if key != "privacy"}
    if table.secure is not None:
        _check_secure(table, method, has_rule="aggregate" in built)
    server = Server(
        weighting=weighting,
        limits=Limits(most_examples=table.most_examples, norm=_norm_limit(table, privacy)),
        rule=built.get("aggregate"),
        optimizer=built.get("optimizer"),
        privacy=privacy if isinstance(privacy, ClientPrivacy) else None,
    )
    secure = _secure_sum(table, privacy, weighting, place=place)
    return ServerSetup(write_out(table, blocks), server, privacy, secure, built.get("attack"))


def _check_secure(table: ServerTable, method: type[Method], *, has_rule: bool) -> None:
    if has_rule or not method.takes_mean():
        who = "its aggregation rule" if has_rule else method.__name__
        raise UserError(
            f"With secure aggregation the server sees no single update, but {who} needs them; "
            "leave out [train.server.secure] or the rule."
        )
    if table.norm_limit not in (0, NORM_LIMIT):
        raise UserError(
            "With secure aggregation the server sees no update's length; use the clip of [train.server.secure] instead "
            "of norm_limit."
        )


def _norm_limit(table: ServerTable, privacy: Privacy | None) -> float:
    """The limit of norms; client-level privacy at the server clips instead, as it accounts for no refusals."""
    return 0.0 if isinstance(privacy, ClientPrivacy) and table.norm_limit == NORM_LIMIT else table.norm_limit


def _secure_sum(table: ServerTable, privacy: Privacy | None, weighting: Weighting, *, place: str) -> SecureSum | None:
    """Secure aggregation; with client-level privacy the clients clip to its norm, as the server cannot."""
    distributed = privacy if isinstance(privacy, DistributedPrivacy) else None
    if table.secure is None:
        if distributed is not None:
            raise UserError(
                f"{place} privacy 'distributed' adds noise inside secure sums; add the table [train.server.secure]."
            )
        return None
    clip = table.secure.clip if privacy is None or isinstance(privacy, SamplePrivacy) else privacy.clip
    return SecureSum(
        share=table.secure.share,
        clip=clip,
        weighting=weighting,
        most_examples=table.secure.most_examples,
        privacy=distributed,
        sends_loss=not isinstance(privacy, SamplePrivacy),  # no epsilon covers it
    )


def open_ledger(
    run: RunFolder,
    trial: str,
    privacy: Privacy | None,
    settings: TrainSettings,
    num_examples: Callable[[int], int],
) -> Ledger | None:
    """The privacy ledger of a trial with all charges that its run has recorded; None without privacy.

    `num_examples` gives a client's number of training images.
    """
    if privacy is None:
        return None
    paid = [event for event in run.events() if isinstance(event, PrivacyEvent) and event.ledger == trial]

    def record(round_number: int, charged: Sequence[int], epsilon: float) -> None:
        run.append(PrivacyEvent(ledger=trial, number=round_number, clients=charged, epsilon=epsilon))

    return Ledger(
        epsilon_function(privacy, settings, functools.cache(num_examples)),
        budget=privacy.epsilon,
        charges=Counter(client for event in paid for client in event.clients),
        record=record,
    )


@dataclass(frozen=True)
class PrivacySpent:
    """Epsilon spent so far at a delta; `protects` is the unit of privacy, `client` or `sample`."""

    epsilon: float
    delta: float
    protects: str


def spent(ledger: Ledger | None, table: ServerTable) -> PrivacySpent | None:
    """What the record of a round says of privacy; None without privacy."""
    if ledger is None or table.privacy is None:
        return None
    return PrivacySpent(ledger.epsilon, table.privacy.options["delta"], _protected(table.privacy))


def _protected(piece: ServerBlock) -> str:
    """The unit of privacy of the mechanism that a table names."""
    mechanism = PRIVACY.find(piece.name, place="[train.server] privacy")
    return mechanism.protects if isinstance(mechanism, type) and issubclass(mechanism, GaussianPrivacy) else piece.name


def epsilon_function(privacy: Privacy, settings: TrainSettings, num_examples: Callable[[int], int]) -> EpsilonFunction:
    """Epsilon by client and number of rounds; `num_examples` gives a client's number of training images."""
    if not isinstance(privacy, SamplePrivacy):
        return privacy.spent

    def epsilon(client: int, charges: int) -> float:
        epochs = charges * settings.local_epochs
        return privacy.spent(images=num_examples(client), batch_size=settings.batch_size, epochs=epochs)

    return epsilon


def describe_server(table: ServerTable, *, weighting: Weighting) -> str:
    """What the server does with updates, for the protocol's sentence."""
    text = f"the server averages the updates with {WEIGHTS[weighting]}"
    if table.aggregate is not None:
        text = f"the server aggregates the updates by the rule {table.aggregate.name}"
    if table.optimizer is not None:
        text += f" and takes a step of {table.optimizer.name} towards the result"
    if table.secure is not None:
        text += ", under secure aggregation"
    if table.privacy is not None:
        options = ", ".join(f"{key} {value:g}" for key, value in table.privacy.options.items())
        text += f", with {_protected(table.privacy)}-level differential privacy ({options})"
    if table.attack is not None:
        text += f"; {plural(table.attack.adversaries, 'client')} attack it by {table.attack.name}"
    return text
