from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.envelope import SERVER, STEPS, Envelope, Step
from fedprompt.federated.secure.masks import MaskedVector, exchange_private, exchange_public, mask, public_key
from fedprompt.federated.secure.secure_client import SIGNED_BYTES, SecureClient
from fedprompt.federated.secure.secure_server import SecureServer
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import Identity, Session, threshold_of
from fedprompt.federated.secure.shamir import join, split
from fedprompt.federated.secure.simulation import Exchange, Present, everyone, local_session, simulate
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
        heard = sent if step in ("consistency_check", "unmask") else sent[: clients - spare]
        counts = [update.num_examples if weighting == "examples" else 1 for update in heard]
        wanted = weighted_mean(SHARED, heard, [count / sum(counts) for count in counts])
        assert error(cohort.shared, wanted) < 1e-4
        assert (cohort.client, cohort.num_examples) == (AGGREGATE_CLIENT, sum(counts))
        loss = sum(count * update.loss for count, update in zip(counts, heard, strict=True)) / sum(counts)
        assert cohort.loss == pytest.approx(loss, abs=1e-6)
        assert notes.failed.keys() == {update.client for update in sent[len(heard) :]} and notes.losses == {}


def test_a_sum_of_private_updates_has_their_bits_and_no_loss() -> None:
    sent = updates(3)
    exact, silent = (Codec(1.0, 3, sends_loss=sends) for sends in (True, False))
    one, two = (
        codec.decode(sum(codec.encode(update, SHARED) for update in sent), SHARED, seconds=0.0)
        for codec in (exact, silent)
    )
    assert all(torch.equal(one.shared[name], two.shared[name]) for name in SHARED)
    assert abs(one.loss - 0.25) < 1e-6 and np.isnan(two.loss)
    assert {int(silent.encode(update, SHARED)[1]) for update in sent} == {0}


def test_sums_of_integers_are_exact() -> None:
    codec = Codec(clip=4.0, clients=10)
    sent = updates(10)
    vectors = {update.client: codec.encode(update, SHARED) for update in sent}
    session, identities = local_session(range(10), threshold=7, length=vector_length(SHARED))
    total, arrived = Exchange(session, vectors, everyone, SecureServer(session), identities).run()
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


@pytest.mark.parametrize("most", [1, 3, 10])
def test_a_client_with_more_examples_than_counted_is_not_told_apart(most: int) -> None:
    """A refusal would tell the server whose number of images exceeds the largest weight, which the server chooses."""
    sent = [replace(one, num_examples=number) for one, number in zip(updates(3), (2, 5, 9), strict=True)]
    (cohort,), notes = simulate(SecureSum(weighting="examples", most_examples=most), 1, SHARED, sent)
    assert not notes.failed and cohort.num_examples == sum(min(one.num_examples, most) for one in sent)


def test_masked_words_look_random_and_say_nothing_of_the_vector() -> None:
    count = 1_000_000
    session, identities = local_session(range(2), threshold=2, length=count)
    clients = [SecureClient(client, session, identities[client]) for client in range(2)]
    server = SecureServer(session)
    boxes = server.relay_shares({client.number: client.share_keys() for client in clients})
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


Members = tuple[Session, dict[int, Identity]]


def four() -> Members:
    return local_session(range(4), threshold=3, length=3)


def at_survivors(members: Members, present: int = 4) -> tuple[dict[int, SecureClient], SecureServer]:
    """Four clients up to the list of survivors; those from `present` on have not sent their vector."""
    session, identities = members
    clients = {client: SecureClient(client, session, identities[client]) for client in range(4)}
    server = SecureServer(session)
    boxes = server.relay_shares({number: client.share_keys() for number, client in clients.items()})
    words = np.arange(3, dtype=np.uint64)
    sent = {client: clients[client].masked_input(boxes[client], words) for client in range(present)}
    server.collect_masked_inputs(sent)
    return clients, server


def survivors(*arrived: int, round_number: int = 1) -> bytes:
    return Envelope("consistency_check", SERVER, round_number, dict.fromkeys(arrived, b"")).to_bytes()


def signatures(members: Members, *arrived: int, by: Collection[int]) -> bytes:
    """What the server sends when these clients signed the list of those that arrived."""
    session, identities = members
    message = session.survivors_message(arrived, b"")
    return Envelope("unmask", SERVER, 1, {client: identities[client].sign(message) for client in by}).to_bytes()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (survivors(0, 1), "2 clients are fewer than the threshold of 3"),
        (survivors(0, 1, 2, 9), "strangers"),
        (survivors(1, 2, 3), "lacks this client"),
        (survivors(0, 1, 2, round_number=2), "expected consistency_check of round 1"),
        (Envelope("consistency_check", 3, 1, dict.fromkeys((0, 1, 2), b"")).to_bytes(), "expected consistency_check"),
        (Envelope("unmask", SERVER, 1, dict.fromkeys((0, 1, 2), b"")).to_bytes(), "expected consistency_check"),
        (b"fpsa2 and nonsense", "no message"),
    ],
)
def test_an_honest_client_refuses(message: bytes, reason: str) -> None:
    clients, _ = at_survivors(four())
    with pytest.raises(RefusedUpdateError, match=reason):
        clients[0].consistency_check(message)
    with pytest.raises(RefusedUpdateError, match="out of order"):
        clients[0].consistency_check(survivors(0, 1, 2))


def test_a_client_never_unmasks_twice_and_never_gives_both_shares_of_a_peer() -> None:
    members = four()
    clients, _ = at_survivors(members, present=3)
    clients[0].consistency_check(survivors(0, 1, 2))
    parts = Envelope.from_bytes(clients[0].unmask(signatures(members, 0, 1, 2, by=(0, 1, 2)))).parts
    assert parts.keys() == {0, 1, 2, 3} and {len(share) for share in parts.values()} == {66}
    with pytest.raises(RefusedUpdateError, match="out of order"):
        clients[0].unmask(signatures(members, 0, 1, 3, by=(0, 1, 3)))


@pytest.mark.parametrize("listed", [(0, 1, 3), (0, 1, 2, 3)])
def test_a_client_unmasks_only_what_a_threshold_of_survivors_signed(listed: tuple[int, ...]) -> None:
    members = four()
    clients, _ = at_survivors(members)
    clients[0].consistency_check(survivors(0, 1, 2))
    with pytest.raises(RefusedUpdateError, match="0 clients, fewer than the threshold of 3, signed the same list"):
        clients[0].unmask(signatures(members, *listed, by=listed))
    clients[1].consistency_check(survivors(0, 1, 2))
    with pytest.raises(RefusedUpdateError, match="2 clients, fewer"):
        clients[1].unmask(signatures(members, 0, 1, 2, by=(0, 1)))
    clients[2].consistency_check(survivors(0, 1, 2))
    assert clients[2].unmask(signatures(members, 0, 1, 2, by=(0, 1, 2, 3)))


def test_clients_that_trained_from_different_models_do_not_unmask() -> None:
    session, identities = four()

    class TwoModels(Exchange):
        def _ask(self, now, clients, speak):
            self.received = b"one"
            first = super()._ask(now, {0: clients[0]}, speak) if 0 in clients else {}
            self.received = b"other"
            return first | super()._ask(now, {one: client for one, client in clients.items() if one}, speak)

    vectors = {client: np.full(3, client, dtype=np.uint64) for client in range(4)}
    server = SecureServer(session)
    assert TwoModels(session, vectors, everyone, server, identities).run()[1] == (0, 1, 2, 3)
    assert server.refused.keys() == {0} and "shared state sent" in server.refused[0]


def relayed(members: Members, receiver: int, /, **changes: object) -> dict[int, bytes]:
    """What the others send to a client in step 1, of sessions with these changes."""
    session, identities = members
    other = replace(session, **changes)
    said = {one: SecureClient(one, other, identities[one]).share_keys() for one in range(4) if one != receiver}
    parts = {one: Envelope.from_bytes(content).parts for one, content in said.items()}
    return {one: part[one] + part[receiver] for one, part in parts.items()}


def test_a_client_masks_only_for_signed_keys_of_members() -> None:
    members = four()
    session, identities = members
    honest = relayed(members, 0)
    for parts, reason in (
        ({1: honest[1]}, "2 clients are fewer than the threshold of 3"),
        ({**honest, 1: b"short"}, "client 1 are not signed by it"),
        ({**honest, 7: honest[3]}, "not another member"),
        ({**honest, 0: honest[3]}, "not another member"),
        ({**honest, 3: honest[2]}, "client 3 are not signed by it"),
        ({**honest, 3: honest[3][:-1] + bytes([honest[3][-1] ^ 1])}, "client 3 cannot be decrypted"),
        ({**honest, 3: honest[3][:SIGNED_BYTES] + honest[2][SIGNED_BYTES:]}, "client 3 cannot be decrypted"),
    ):
        client = SecureClient(0, session, identities[0])
        client.share_keys()
        with pytest.raises(RefusedUpdateError, match=reason):
            client.masked_input(Envelope("share_keys", SERVER, 1, parts).to_bytes(), np.zeros(3, dtype=np.uint64))


@pytest.mark.parametrize("name", ["run", "round_number", "threshold", "length", "nonce", "job", "members"])
def test_the_keys_of_another_round_run_job_or_threshold_are_refused(name: str) -> None:
    members = four()
    session, identities = members
    changed = {"run": "x", "round_number": 2, "threshold": 4, "length": 4, "nonce": "x", "job": "x"}
    changed["members"] = {**session.members, 0: Identity.generate().public}
    parts = relayed(members, 0) | {1: relayed(members, 0, **{name: changed[name]})[1]}
    client = SecureClient(0, session, identities[0])
    client.share_keys()
    with pytest.raises(RefusedUpdateError, match="client 1 are not signed by it"):
        client.masked_input(Envelope("share_keys", SERVER, 1, parts).to_bytes(), np.zeros(3, dtype=np.uint64))


@settings(max_examples=20)
@given(st.binary(min_size=32, max_size=32))
def test_the_exchange_keys_of_an_identity_belong_together(private: bytes) -> None:
    assert exchange_public(Identity(private).public) == public_key(exchange_private(private))


def test_a_client_takes_no_part_in_a_session_that_cannot_protect_it() -> None:
    session, identities = four()
    for changes, reason in (
        ({"members": {**session.members, 0: identities[1].public}}, "another key in place of this client's own"),
        ({"members": {**session.members, 3: identities[1].public}}, "same identity key"),
        ({"threshold": 2}, "not above half"),
        ({"threshold": 5}, "fewer than the threshold"),
    ):
        with pytest.raises(RefusedUpdateError, match=reason):
            SecureClient(0, replace(session, **changes), identities[0])


def test_the_server_names_the_client_whose_threshold_differs_and_goes_on() -> None:
    session, identities = four()
    lone = replace(session, threshold=4)
    server = SecureServer(replace(session, threshold=2))
    said = {one: SecureClient(one, lone if one == 2 else session, identities[one]).share_keys() for one in range(4)}
    assert server.relay_shares(said).keys() == {0, 1, 3}
    assert server.session.threshold == 3 and "its threshold (4, here 3) differs" in server.refused[2]


@pytest.mark.parametrize(("clients", "colluders"), itertools.product(range(2, 12), range(4)))
def test_no_two_lists_of_survivors_can_both_reach_the_threshold(clients: int, colluders: int) -> None:
    threshold = threshold_of(0.51, clients, colluders=colluders)
    honest = clients - colluders
    assert 2 * (threshold - colluders) > honest, "honest clients sign one list each, colluders both"
    if threshold <= clients:
        assert threshold - colluders >= 2, "an honest client has honest company in every sum"


def test_a_round_that_cannot_be_protected_is_refused() -> None:
    keys = {client: Identity.generate().public for client in range(5)}
    secure = SecureSum(minimum=3, colluders=2, identities=keys)
    for clients, reason in (((0, 1), "fewer than the minimum"), ((0, 1, 2), "work with the server")):
        with pytest.raises(RefusedUpdateError, match=reason):
            secure.session(1, clients, length=3)
    with pytest.raises(RefusedUpdateError, match="identity key of client 9"):
        secure.session(1, (0, 1, 2, 9), length=3)
    assert secure.session(1, range(5), length=3).threshold == 4


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

    session, identities = four()
    vectors = {client: np.full(3, client, dtype=np.uint64) for client in range(4)}
    there = lambda now, client: (now, client) != ("masked_input", 3)  # noqa: E731
    with pytest.raises(RefusedUpdateError, match=f"shares of client {whose} do not fit"):
        Rogue(session, vectors, there, SecureServer(session), identities).run()


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

    session, identities = four()
    vectors = {client: np.full(3, client, dtype=np.uint64) for client in range(4)}
    server = SecureServer(session)
    try:
        total, arrived = Rogue(session, vectors, everyone, server, identities).run()
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
