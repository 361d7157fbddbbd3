from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.envelope import SERVER, STEPS, Envelope, Step
from fedprompt.federated.secure.masks import MaskedVector, mask
from fedprompt.federated.secure.secure_client import ADVERTISED_BYTES, SecureClient, Session
from fedprompt.federated.secure.secure_server import SecureServer
from fedprompt.federated.secure.secure_sum import SecureSum, threshold_of
from fedprompt.federated.secure.shamir import join, split
from fedprompt.federated.secure.simulation import Exchange, Present, simulate
from fedprompt.federated.secure.vector import Codec, vector_length
from fedprompt.seeding import stream
from fedprompt.updates import AGGREGATE_CLIENT, State, Update, weighted_mean

SHARED = {"a": torch.randn(30, 8, generator=stream(0, "a")), "b": torch.zeros(5)}


def updates(count: int, shared: State = SHARED, size: float = 1e-3) -> list[Update]:
    return [
        Update(
            client,
            3 + client,
            {name: t + size * torch.randn(t.shape, generator=stream(1, client, name)) for name, t in shared.items()},
            {},
            0.25 * client,
            0.0,
        )
        for client in range(count)
    ]


def error(found: State, wanted: State) -> float:
    """L2 error of the found change, relative to the wanted one."""
    parts = [(found[name].double() - wanted[name], wanted[name].double() - SHARED[name]) for name in wanted]
    wrong, size = (torch.cat([pair[side].flatten() for pair in parts]).norm() for side in (0, 1))
    return float(wrong / size)


def dropping(gone: Collection[int], step: Step) -> Present:
    """Who answers when these clients drop out in that step."""
    return lambda now, client: not (client in gone and now == step)


@pytest.mark.parametrize("clients", [3, 5, 10])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_sum_is_the_mean_whoever_drops_out_and_when(clients: int, weighting: str) -> None:
    sent = updates(clients)
    spare = clients - threshold_of(2 / 3, clients)
    for step in STEPS:
        gone = range(clients - spare, clients)
        (cohort,), notes = simulate(SecureSum(weighting=weighting), 1, SHARED, sent, present=dropping(gone, step))
        heard = sent if step == "unmask" else sent[: clients - spare]
        counts = [update.num_examples if weighting == "examples" else 1 for update in heard]
        wanted = weighted_mean(SHARED, heard, [count / sum(counts) for count in counts])
        assert error(cohort.shared, wanted) < 1e-4
        assert (cohort.client, cohort.num_examples) == (AGGREGATE_CLIENT, sum(counts))
        loss = sum(count * update.loss for count, update in zip(counts, heard, strict=True)) / sum(counts)
        assert cohort.loss == pytest.approx(loss, abs=1e-6)
        assert notes.failed.keys() == {update.client for update in sent[len(heard) :]} and notes.losses == {}


def test_sums_of_integers_are_exact() -> None:
    codec = Codec(clip=4.0, clients=10)
    sent = updates(10)
    vectors = {update.client: codec.encode(update, SHARED) for update in sent}
    session = Session("run", 1, 7)
    server = SecureServer(session, length=vector_length(SHARED))
    total, arrived = Exchange(session, vectors, lambda step, client: True, server).run()
    assert arrived == tuple(range(10)) and np.array_equal(total, sum(vectors.values(), np.uint64(0)))
    half_step = codec.step / 2
    wanted = sum(update.shared["a"].double() - SHARED["a"] for update in sent)
    found = total[2 : 2 + 240].view(np.int64) * codec.step
    assert np.abs(found - wanted.flatten().numpy()).max() <= 10 * half_step + 1e-15


@pytest.mark.parametrize(("clients", "step"), list(itertools.product((3, 5, 10), STEPS)))
def test_one_more_missing_gives_the_round_up(clients: int, step: str) -> None:
    gone = range(threshold_of(2 / 3, clients) - 1, clients)
    found, notes = simulate(SecureSum(), 1, SHARED, updates(clients), present=dropping(gone, step))
    assert found == [] and "abandoned" in notes.skipped


def test_a_site_stops_its_own_broken_update_and_shortens_a_long_one() -> None:
    sent = updates(5)
    sent[2].shared["a"][0, 0] = torch.nan
    sent[4].shared["b"].fill_(1e6)
    (cohort,), notes = simulate(SecureSum(clip=1.0), 1, SHARED, sent)
    assert list(notes.failed) == [2] and "not finite" in notes.failed[2]
    assert cohort.num_examples == 4 and float(cohort.shared["b"].norm()) == pytest.approx(0.25, abs=1e-3)


def test_masked_words_look_random_and_say_nothing_of_the_vector() -> None:
    count = 1_000_000
    session = Session("run", 1, 2)
    clients = [SecureClient(client, session) for client in range(2)]
    server = SecureServer(session, length=count)
    keys = server.collect_keys({client.number: client.advertise_keys() for client in clients})
    boxes = server.relay_shares({client.number: client.share_keys(keys) for client in clients})
    plain: MaskedVector = np.arange(count, dtype=np.uint64) * 1000
    sent = Envelope.from_bytes(clients[0].masked_input(boxes[0], plain)).parts[0]
    words = np.frombuffer(sent, dtype="<u8")
    counts = np.bincount(np.frombuffer(sent, dtype=np.uint8), minlength=256)
    squares = float(((counts - 8 * count / 256) ** 2 / (8 * count / 256)).sum())
    assert squares < 340  # 255 degrees of freedom: exceeded once in 3000 draws
    assert abs(np.corrcoef(words.astype(float), plain.astype(float))[0, 1]) < 0.005
    assert len(sent) <= 2.2 * 4 * count


def test_masks_are_the_counter_stream_of_aes() -> None:
    key = bytes(range(32))  # the stream of NIST's AES-256 key 000102...1f and a counter from zero
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(cipher.update(block.to_bytes(16, "big")) for block in range(3))
    assert mask(key, 5).astype("<u8").tobytes() == blocks[:40]
    assert cipher.update(bytes.fromhex("00112233445566778899aabbccddeeff")).hex() == "8ea2b7ca516745bfeafc49904b496089"


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_enough_shares_give_the_secret_and_fewer_do_not(secret: bytes, threshold: int, more: int, random) -> None:
    shares = split(secret, range(threshold + more), threshold=threshold)
    chosen = random.sample(sorted(shares), threshold)
    assert join({client: shares[client] for client in chosen}) == secret
    if threshold > 1:
        assert join({client: shares[client] for client in chosen[1:]}) != secret


def at_unmask(session: Session, present: int = 4) -> tuple[dict[int, SecureClient], SecureServer]:
    """Four clients up to the last step; those from `present` on have not sent their vector."""
    clients = {client: SecureClient(client, session) for client in range(4)}
    server = SecureServer(session, length=3)
    keys = server.collect_keys({number: client.advertise_keys() for number, client in clients.items()})
    boxes = server.relay_shares({number: client.share_keys(keys) for number, client in clients.items()})
    words = np.arange(3, dtype=np.uint64)
    sent = {client: clients[client].masked_input(boxes[client], words) for client in range(present)}
    server.collect_masked_inputs(sent)
    return clients, server


def request(*arrived: int, round_number: int = 1) -> bytes:
    return Envelope("unmask", SERVER, round_number, dict.fromkeys(arrived, b"")).to_bytes()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (request(0, 1), "2 clients are fewer than the threshold of 3"),
        (request(0, 1, 2, 9), "strangers"),
        (request(1, 2, 3), "lacks this client"),
        (request(0, 1, 2, round_number=2), "expected unmask of round 1"),
        (Envelope("unmask", 3, 1, dict.fromkeys((0, 1, 2), b"")).to_bytes(), "expected unmask"),
        (b"fpsa1 and nonsense", "no message"),
    ],
)
def test_an_honest_client_refuses(message: bytes, reason: str) -> None:
    clients, _ = at_unmask(Session("run", 1, 3))
    with pytest.raises(RefusedUpdateError, match=reason):
        clients[0].unmask(message)
    with pytest.raises(RefusedUpdateError, match="out of order"):
        clients[0].unmask(request(0, 1, 2))


def test_a_client_never_unmasks_twice_and_never_gives_both_shares_of_a_peer() -> None:
    clients, _ = at_unmask(Session("run", 1, 3), present=3)
    parts = Envelope.from_bytes(clients[0].unmask(request(0, 1, 2))).parts
    assert parts.keys() == {0, 1, 2, 3} and {len(share) for share in parts.values()} == {66}
    with pytest.raises(RefusedUpdateError, match="out of order"):
        clients[0].unmask(request(0, 1, 3))


def test_a_list_of_keys_must_be_long_enough_and_have_ones_own() -> None:
    session = Session("run", 1, 3)
    others = {
        client: Envelope.from_bytes(SecureClient(client, session).advertise_keys()).parts[client] for client in range(4)
    }

    def list_of(keys: dict[int, bytes]) -> bytes:
        return Envelope("advertise_keys", SERVER, 1, keys).to_bytes()

    for keys, reason in (
        (dict(list(others.items())[:2]), "in place of this client's own"),
        (others, "in place of this client's own"),
        ({**others, 0: b"short"}, "not keys"),
    ):
        client = SecureClient(0, session)
        client.advertise_keys()
        with pytest.raises(RefusedUpdateError, match=reason):
            client.share_keys(list_of(keys))
    client = SecureClient(0, session)
    own = Envelope.from_bytes(client.advertise_keys()).parts[0]
    with pytest.raises(RefusedUpdateError, match="fewer than the threshold"):
        client.share_keys(list_of({0: own, 1: others[1]}))


def test_signed_keys_cannot_be_swapped() -> None:
    keys = {client: Ed25519PrivateKey.generate() for client in range(3)}

    def verify(client: int, message: bytes, signature: bytes) -> bool:
        try:
            keys[client].public_key().verify(signature, message)
        except Exception:
            return False
        return True

    clients = {c: SecureClient(c, Session("run", 1, 2, sign=keys[c].sign, verify=verify)) for c in keys}
    said = {number: client.advertise_keys() for number, client in clients.items()}
    list_of_keys = SecureServer(Session("run", 1, 2), length=1).collect_keys(said)
    clients[0].share_keys(list_of_keys)
    swapped = dict(Envelope.from_bytes(list_of_keys).parts)
    swapped[2] = (
        Envelope.from_bytes(SecureClient(2, Session("run", 1, 2)).advertise_keys()).parts[2]
        + swapped[2][ADVERTISED_BYTES:]
    )
    with pytest.raises(RefusedUpdateError, match="not signed by that peer"):
        clients[1].share_keys(Envelope("advertise_keys", SERVER, 1, swapped).to_bytes())


@pytest.mark.parametrize("whose", [0, 3])
def test_a_share_that_is_made_up_ends_the_round(whose: int) -> None:
    class Rogue(Exchange):
        def _ask(self, now, clients, speak):
            answers = super()._ask(now, clients, speak)
            if now == "unmask":
                said = Envelope.from_bytes(answers[0])
                made_up = said.parts[whose][:-1] + bytes([said.parts[whose][-1] ^ 1])
                answers[0] = Envelope("unmask", 0, 1, {**said.parts, whose: made_up}).to_bytes()
            return answers

    session = Session("run", 1, 3)
    vectors = {client: np.full(3, client, dtype=np.uint64) for client in range(4)}
    there = lambda now, client: (now, client) != ("masked_input", 3)  # noqa: E731
    with pytest.raises(RefusedUpdateError, match=f"shares of client {whose} do not fit"):
        Rogue(session, vectors, there, SecureServer(session, length=3)).run()


@settings(max_examples=60)
@given(st.sampled_from(STEPS), st.integers(0, 3), st.data())
def test_a_mutated_message_is_refused_and_nothing_else_happens(step: str, victim: int, data: st.DataObject) -> None:
    def mutate(content: bytes) -> bytes:
        place = data.draw(st.integers(0, len(content) - 1))
        way = data.draw(st.sampled_from(("cut", "grow", "flip", "empty")))
        flipped = content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
        return {"cut": content[:place], "grow": content + b"x" * place, "flip": flipped, "empty": b""}[way]

    class Rogue(Exchange):
        def _ask(self, now, clients, speak):
            answers = super()._ask(now, clients, speak)
            return {c: mutate(a) if (c, now) == (victim, step) else a for c, a in answers.items()}

    session = Session("run", 1, 3)
    vectors = {client: np.full(3, client, dtype=np.uint64) for client in range(4)}
    server = SecureServer(session, length=3)
    try:
        total, arrived = Rogue(session, vectors, lambda now, client: True, server).run()
    except RefusedUpdateError as given_up:
        assert given_up.code == "secure"
        return
    assert len(arrived) >= 3
    if step != "masked_input":  # a lie about one's own vector is a lie about one's update
        assert total.tolist() == [sum(arrived)] * 3


def test_a_vector_needs_room() -> None:
    with pytest.raises(ValueError, match="room for 1000 clients"):
        Codec(clip=1.0, clients=1000, weighting="examples", most_examples=10**12)
    with pytest.raises(ValueError, match=r"share = 0\.5"):
        SecureSum(share=0.5)
