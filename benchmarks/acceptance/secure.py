"""Criteria for secure sums: exactness, dropouts, randomness of masked vectors, cost, and what members refuse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from benchmarks.acceptance.criteria import Criterion, proof, row
from fedprompt.federated.secure.envelope import STEPS, Envelope, Step
from fedprompt.federated.secure.masks import MaskedVector, mask
from fedprompt.federated.secure.secure_client import SecureClient
from fedprompt.federated.secure.secure_server import SecureServer
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import threshold_of
from fedprompt.federated.secure.simulation import Exchange, Present, everyone, local_session, simulate
from fedprompt.federated.secure.vector import Codec, vector_length
from fedprompt.seeding import stream
from fedprompt.updates import Update, weighted_mean

SHARE = 2 / 3
COHORTS = (3, 5, 10)
MILLION = 1_000_000
# AES-256 of the blocks 0 and 1 under the key of zeros: test case 13 of "The Galois/Counter Mode of Operation (GCM)"
# (McGrew and Viega, 2005), H and E(K, Y0).
VECTOR = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b"
FILE, ATTACKS = "test_federated_secure.py", "test_federated_secure_attacks.py"


def criteria() -> Iterator[Criterion]:
    """All criteria for secure sums."""
    yield from sums()
    yield from dropouts()
    yield from masked()
    found = mask(bytes(32), 4).astype("<u8").tobytes().hex()
    what = "stream of masks under the key of zeros"
    yield row(what, "a published test vector", f"{found[:8]}..., as printed", met=found == VECTOR)
    yield proof(
        "fewer shares than the threshold",
        "give no secret",
        f"{FILE}::test_enough_shares_give_the_secret_and_fewer_do_not",
    )
    yield proof(
        "a member asked for both shares of a peer, or to unmask twice",
        "refuses",
        f"{FILE}::test_a_client_never_unmasks_twice_and_never_gives_both_shares_of_a_peer",
    )
    yield proof(
        "a member asked about fewer than t members, strangers, or without itself",
        "refuses",
        f"{FILE}::test_an_honest_client_refuses",
        f"{FILE}::test_a_client_masks_only_for_signed_keys_of_members",
    )
    yield proof(
        "a server that leaves members out or tells two stories about survivors",
        "learns no single update",
        f"{ATTACKS}::test_attack_1_four_sites_are_told_that_they_are_two",
        f"{ATTACKS}::test_attack_1_two_stories_about_survivors",
    )
    yield proof(
        "a server that plays the other sites",
        "learns no single update",
        f"{ATTACKS}::test_attack_2_a_server_that_plays_the_other_sites",
    )
    yield proof(
        "the difference of two runs, with distributed noise",
        "is no update",
        f"{ATTACKS}::test_attack_3_the_difference_of_two_runs_is_an_update_unless_clients_add_noise",
    )
    yield proof(
        "a server that lies at random, in keys, members, shares and survivors",
        "learns no single update",
        f"{ATTACKS}::test_no_random_lies_reveal_a_single_update",
    )
    yield from cost()


def updates(clients: int, numbers: int) -> list[Update]:
    """Updates of realistic length."""
    return [
        Update(client, 1, {"w": 1e-3 * torch.randn(numbers, generator=stream(1, client))}, {}, 0.5, 0.0)
        for client in range(clients)
    ]


def sums(clients: int = 10, numbers: int = 10_000) -> Iterator[Criterion]:
    """The integer sum, compared with NumPy's, and its rounding error, compared with the float sum."""
    shared = {"w": torch.zeros(numbers, dtype=torch.float64)}  # float32 changes would all be whole numbers of steps
    codec = Codec(clip=4.0, clients=clients)
    sent = [replace(one, shared={"w": one.shared["w"].double() * (1 + 1e-9)}) for one in updates(clients, numbers)]
    vectors = {update.client: codec.encode(update, shared) for update in sent}
    session, identities = local_session(
        range(clients), threshold=threshold_of(SHARE, clients), length=vector_length(shared)
    )
    total, _ = Exchange(session, vectors, everyone, SecureServer(session), identities).run()
    wrong = int((total != sum(vectors.values(), np.uint64(0))).sum())
    yield row(
        f"integer sum over {clients} clients", "exact", f"{wrong} of {len(total):,} numbers differ", met=not wrong
    )
    floats = torch.stack([update.shared["w"] for update in sent]).sum(dim=0)
    off = np.abs(total[-numbers:].view(np.int64) * codec.step - floats.numpy()).max() / codec.step
    criterion = f"at most {clients} half steps of quantisation"
    yield row("its largest error", criterion, f"{2 * off:.2f} half steps", met=off <= clients / 2 + 1e-3)


def dropouts() -> Iterator[Criterion]:
    """As many dropouts as allowed, and one more, in every step."""
    errors, given_up = [], 0
    for clients, step in itertools.product(COHORTS, STEPS):
        errors.append(error(clients, step))
        left = threshold_of(SHARE, clients) - 1
        found, _ = simulate(
            SecureSum(SHARE), 1, {"w": torch.zeros(100)}, updates(clients, 100), present=gone(step, left)
        )
        given_up += not found
    every, cohorts = len(errors), "3, 5 and 10 clients, in each of four steps"
    yield row(
        f"n - t clients drop out ({cohorts})",
        "the sum is unmasked; relative L2 error at most 1e-4",
        f"{every} of {every} unmasked, worst error {max(errors):.1e}",
        met=max(errors) <= 1e-4,
    )
    yield row(
        f"n - t + 1 clients drop out ({cohorts})",
        "the round is given up, nothing is unmasked",
        f"{given_up} of {every} given up",
        met=given_up == every,
    )


def gone(step: Step, left: int) -> Present:
    """All but the first `left` clients drop out in that step."""
    return lambda now, client: now != step or client < left


def error(clients: int, step: Step, numbers: int = 10_000) -> float:
    """Relative L2 error of the mean with as many dropouts in a step as allowed."""
    shared, sent, left = {"w": torch.zeros(numbers)}, updates(clients, numbers), threshold_of(SHARE, clients)
    (cohort,), _ = simulate(SecureSum(SHARE), 1, shared, sent, present=gone(step, left))
    # Who has sent its masked vector is in the sum, also if it drops out after that.
    heard = sent if STEPS.index(step) > STEPS.index("masked_input") else sent[:left]
    wanted = weighted_mean(shared, heard, [1 / len(heard)] * len(heard))["w"]
    return float((cohort.shared["w"] - wanted).norm() / wanted.norm())


def masked(count: int = MILLION) -> Iterator[Criterion]:
    """How random the masked vector of a ramp looks to the server."""
    session, identities = local_session(range(2), threshold=2, length=count)
    members = [SecureClient(client, session, identities[client]) for client in range(2)]
    server = SecureServer(session)
    boxes = server.relay_shares({member.number: member.share_keys() for member in members})
    plain: MaskedVector = np.arange(count, dtype=np.uint64) * np.uint64(1000)
    sent = Envelope.from_bytes(members[0].masked_input(boxes[0], plain)).parts[0]
    p_value = stats.chisquare(np.bincount(np.frombuffer(sent, dtype=np.uint8), minlength=256)).pvalue
    words = np.frombuffer(sent, dtype="<u8").astype(float)
    likeness = abs(np.corrcoef(words, plain.astype(float))[0, 1])
    what = f"{count:,} masked numbers of a ramp"
    criterion = "chi-square of their bytes p > 0.01 (by chance not so once in a hundred times)"
    yield row(what, criterion, f"p = {p_value:.2f}", met=p_value > 0.01)
    yield row(what, "correlation with the plain numbers below 0.005", f"{likeness:.4f}", met=likeness < 0.005)


def cost(clients: int = 10, numbers: int = MILLION) -> Iterator[Criterion]:
    """Bytes and CPU time of a round of server and members, with as many dropouts as allowed."""
    shared, sent = {"w": torch.zeros(numbers)}, updates(clients, numbers)
    started = time.process_time()
    _, notes = simulate(SecureSum(SHARE), 1, shared, sent, present=gone("masked_input", threshold_of(SHARE, clients)))
    seconds = (time.process_time() - started) / clients
    ratio = max((notes.bytes_up or {}).values()) / (4 * numbers)
    what = f"a round of {clients} clients with {numbers:,} numbers"
    yield row(what, "at most 2.2 times the plain bytes", f"{ratio:.3f} times", met=ratio <= 2.2)
    yield row(what, "at most 2 s of CPU a client", f"{seconds:.2f} s, server included", met=seconds <= 2)
