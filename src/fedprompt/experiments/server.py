"""From [train.server] to what ends a round: the server's rule and step, secure sums, privacy and its ledger, adversaries."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedprompt import methods
from fedprompt.config.recipe import check_options
from fedprompt.config.registry import AGGREGATES, ATTACKS, OPTIMIZERS, PRIVACY, find
from fedprompt.config.tables import Piece, ServerTable
from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.attacks import Adversaries
from fedprompt.federated.client import Settings
from fedprompt.federated.privacy.accounting import EpsilonFunction, Ledger
from fedprompt.federated.privacy.clients import ClientPrivacy
from fedprompt.federated.privacy.samples import SamplePrivacy
from fedprompt.federated.screening import Limits
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.server import Server
from fedprompt.records.run_folder import RunFolder
from fedprompt.updates import fedavg

TABLES: Mapping[str, Mapping[str, str]] = {
    "aggregate": AGGREGATES,
    "optimizer": OPTIMIZERS,
    "privacy": PRIVACY,
    "attack": ATTACKS,
}
CHARGE = "privacy"  # the event of a charge; it names no trial, so that going back to a checkpoint takes none back


def resolve_server(table: ServerTable, *, place: str) -> ServerTable:
    """The table with the defaults of its pieces written out; UserError for a piece or an option that is not known."""
    resolved = {}
    for key, words in TABLES.items():
        piece: Piece | None = getattr(table, key)
        if piece is not None:
            options = check_options(find(words, piece.name, place=place), piece.options, place=f"{place} {key}")
            named = {name: getattr(piece, name) for name in type(piece).model_fields}
            resolved[key] = type(piece)(**named, **options)
    return table.model_copy(update=resolved)


def _make(table: ServerTable, key: str) -> Any:
    """The piece that the table names under a key, None if it names none."""
    piece: Piece | None = getattr(table, key)
    if piece is None:
        return None
    builder = find(TABLES[key], piece.name, place=f"[train.server] {key}")
    return builder(**check_options(builder, piece.options, place=f"[train.server] {key}"))


def make_server(table: ServerTable, method: str, *, weighting: Weighting) -> Server:
    """The server's half of a trial's rounds. UserError for parts that exclude each other."""
    privacy = _make(table, "privacy")
    rule = _make(table, "aggregate")
    if table.secure is not None and (rule is not None or methods.load(method).aggregate is not fedavg):
        raise UserError(
            f"Secure sums show the server no single update, but {'its rule' if rule else method} must see them; "
            "leave out [train.server.secure] or the rule."
        )
    if table.secure is not None and table.norm_limit:
        raise UserError(
            "Secure sums show the server no update's length; use the clip of [train.server.secure] instead."
        )
    return Server(
        weighting=weighting,
        limits=Limits(most_examples=table.most_examples, norm=table.norm_limit),
        rule=rule,
        optimizer=_make(table, "optimizer"),
        privacy=privacy if isinstance(privacy, ClientPrivacy) else None,
    )


def at_home(table: ServerTable) -> ServerTable:
    """What of the table counts where nothing is sent: the privacy of pictures."""
    return ServerTable(privacy=table.privacy) if sample_privacy(table) is not None else ServerTable()


def sample_privacy(table: ServerTable) -> SamplePrivacy | None:
    """What every client's training owes to its pictures, if the table says so."""
    privacy = _make(table, "privacy")
    return privacy if isinstance(privacy, SamplePrivacy) else None


def secure_sum(table: ServerTable, *, weighting: Weighting) -> SecureSum | None:
    """Secure aggregation between simulated clients; with client-level privacy they clip, as the server cannot."""
    if table.secure is None:
        return None
    privacy = _make(table, "privacy")
    clip = privacy.clip if isinstance(privacy, ClientPrivacy) else table.secure.clip
    return SecureSum(share=table.secure.share, clip=clip, weighting=weighting, most_examples=table.secure.most_examples)


def make_adversaries(table: ServerTable, *, clients: int, seed: int) -> Adversaries | None:
    """The last clients, if the table has some of them attack."""
    if table.attack is None:
        return None
    if table.attack.adversaries > clients:
        raise UserError(
            f"[train.server.attack] adversaries = {table.attack.adversaries}, but there are {clients} clients."
        )
    chosen = frozenset(range(clients - table.attack.adversaries, clients))
    return Adversaries(_make(table, "attack"), chosen, seed)


def open_ledger(
    run: RunFolder, trial: str, table: ServerTable, settings: Settings, num_examples: Callable[[int], int]
) -> Ledger | None:
    """The ledger of a trial with all that its run has ever charged; None without privacy."""
    privacy = _make(table, "privacy")
    if privacy is None:
        return None
    paid = [event for event in run.events() if event["event"] == CHARGE and event["ledger"] == trial]

    def record(round_number: int, charged: Sequence[int], epsilon: float) -> None:
        run.append(
            {"event": CHARGE, "ledger": trial, "number": round_number, "clients": list(charged), "epsilon": epsilon}
        )

    return Ledger(
        epsilon_function(privacy, settings, functools.cache(num_examples)),
        budget=privacy.epsilon,
        charges=Counter(client for event in paid for client in event["clients"]),
        record=record,
    )


def spent(ledger: Ledger | None, table: ServerTable) -> Mapping[str, Any]:
    """What the record of a round says of privacy: epsilon so far, at which delta, and whom that is about."""
    if ledger is None or table.privacy is None:
        return {}
    return {"epsilon": ledger.epsilon, "delta": table.privacy.options["delta"], "protects": table.privacy.name}


def epsilon_function(
    privacy: ClientPrivacy | SamplePrivacy, settings: Settings, num_examples: Callable[[int], int]
) -> EpsilonFunction:
    """What a number of rounds costs a client, given how many training pictures each has."""
    if isinstance(privacy, ClientPrivacy):
        return privacy.spent

    def epsilon_of(client: int, charges: int) -> float:
        epochs = charges * settings.local_epochs
        return privacy.spent(images=num_examples(client), batch_size=settings.batch_size, epochs=epochs)

    return epsilon_of


def in_words(table: ServerTable, *, weighting: Weighting) -> str:
    """What the server does with updates, for the protocol's sentence."""
    said = (
        f"the {weighting} mean of what they send" if table.aggregate is None else f"the rule {table.aggregate.name!r}"
    )
    if table.optimizer is not None:
        said += f", and a step of {table.optimizer.name!r} towards it"
    if table.secure is not None:
        said += ", as a secure sum"
    if table.privacy is not None:
        options = ", ".join(f"{key} {value:g}" for key, value in table.privacy.options.items())
        said += f", with {table.privacy.name}-level differential privacy ({options})"
    if table.attack is not None:
        said += f"; {table.attack.adversaries} of the clients attack it by {table.attack.name!r}"
    return said
