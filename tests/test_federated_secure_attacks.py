"""Secure sums under attack: a server that lies about members, keys, thresholds and survivors, or runs a job twice."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprompt.deploy.identity import load_identity
from fedprompt.deploy.settings import Policy
from fedprompt.federated.privacy.distributed import DistributedPrivacy
from fedprompt.federated.secure.envelope import SERVER, Envelope, Step
from fedprompt.federated.secure.secure_client import ADVERTISED_BYTES, SecureClient
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import Identity, Session, threshold_of
from fedprompt.federated.secure.simulation import simulate
from fedprompt.seeding import numpy_stream, stream
from fedprompt.updates import State, Update
from lying_server import AGREED, LENGTH, Claims, HonestSite, Key, LyingServer, Masked, Parts, consortium, singles

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "40"))
FOUR = range(4)
Choose = Callable[[float], bool]  # true with this probability


@dataclass
class Attempt:
    """One session of a lying server: what it told each site, and what came back."""

    server: LyingServer
    sites: Sequence[HonestSite]
    members: Mapping[int, Sequence[int]]  # site -> the members that it is told
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    parts: dict[int, Parts] = field(default_factory=dict)  # site -> its signed keys and the shares for the others
    keys: dict[int, dict[int, Key]] = field(default_factory=dict)  # site -> the keys that it was told and accepted
    told: dict[int, tuple[int, ...]] = field(default_factory=dict)  # site -> the survivors that it signed
    signed: dict[int, bytes] = field(default_factory=dict)
    colluding: dict[int, SecureClient] = field(default_factory=dict)
    sessions: dict[int, Session] = field(default_factory=dict)
    claims: Mapping[int, Claims] = field(default_factory=dict)  # site -> the job that it alone is told

    def ask(self, step: Step, number: int, parts: Parts) -> Parts | None:
        told = self.claims.get(number, AGREED)
        return self.sites[number].answer(step, self.server.run, list(self.members[number]), self.nonce, parts, told)

    def share(self) -> None:
        for number in self.members:
            answer = self.ask("share_keys", number, {})
            if answer is not None:
                self.parts[number] = answer
                client = self.sites[number].member._client
                assert client is not None
                self.sessions[number] = client.session
        for session in {one.digest: one for one in self.sessions.values()}.values():
            for number, identity in self.server.colluders.items():
                if number in session.members and number not in self.colluding:
                    client = self.server.play(SecureClient(number, session, identity))
                    self.colluding[number] = client
                    self.parts[number] = Envelope.from_bytes(client.share_keys()).parts

    def relayed(self, number: int) -> dict[int, bytes]:
        """What an honest server passes to a site after step 1."""
        return {one: part[one] + part[number] for one, part in self.parts.items() if one != number and number in part}

    def mask(self, lists: Mapping[int, Parts]) -> list[int]:
        """Pass each site keys and shares; the sites that sent a masked vector."""
        arrived = []
        for number, parts in lists.items():
            answer = self.ask("masked_input", number, parts) if number in self.sessions else None
            if answer is not None:
                vector = np.frombuffer(answer[number], dtype="<u8").astype(np.uint64)
                peers = {one: Key(one, part[:ADVERTISED_BYTES]) for one, part in parts.items()}
                own = Key(number, self.parts[number][number][:ADVERTISED_BYTES])
                self.keys[number] = {**peers, number: own}
                self.server.masked.append(Masked(own, tuple(peers.values()), self.sessions[number], vector))
                arrived.append(number)
        for number, client in self.colluding.items():
            for session in self.sessions.values():
                if session == client.session:
                    parts = self.relayed(number)
                    with contextlib.suppress(ValueError):
                        message = Envelope("share_keys", SERVER, 1, parts).to_bytes()
                        client.masked_input(message, np.zeros(LENGTH, np.uint64))
                        keys = {one: Key(one, part[:ADVERTISED_BYTES]) for one, part in parts.items()}
                        own = Key(number, self.parts[number][number][:ADVERTISED_BYTES])
                        self.server.learn_from_colluder(number, client, {**keys, number: own})
                    break
        return arrived

    def check(self, stories: Mapping[int, Collection[int]]) -> None:
        for number, survivors in stories.items():
            answer = self.ask("consistency_check", number, dict.fromkeys(sorted(survivors), b""))
            if answer is not None:
                self.told[number], self.signed[number] = tuple(sorted(survivors)), answer[number]

    def unmask(self, numbers: Collection[int]) -> list[int]:
        """Ask these sites to unmask, with every signature that could help; those that did."""
        opened = []
        for number in numbers:
            if number not in self.told:
                continue
            message = self.sessions[number].survivors_message(self.told[number], b"")
            forged = {one: identity.sign(message) for one, identity in self.server.colluders.items()}
            answer = self.ask("unmask", number, {**self.signed, **forged})
            if answer is not None:
                self.server.learn_shares(number, self.keys[number], self.told[number], answer)
                opened.append(number)
        return opened


def honest_course(attempt: Attempt) -> list[int]:
    """The whole protocol as agreed; the sites that helped to unmask."""
    attempt.share()
    arrived = attempt.mask({number: attempt.relayed(number) for number in attempt.members})
    everybody = sorted({*arrived, *attempt.colluding})
    attempt.check(dict.fromkeys(arrived, everybody))
    return attempt.unmask(arrived)


def test_an_honest_round_gives_the_sum_of_all_and_nothing_else(tmp_path: Path) -> None:
    sites = consortium(tmp_path, 4, Policy())
    server = LyingServer()
    assert honest_course(Attempt(server, sites, dict.fromkeys(range(4), FOUR))) == [0, 1, 2, 3]
    assert [who for who, _ in server.sums()] == [frozenset(range(4))] and not singles(server.sums(), sites)


def test_attack_1_four_sites_are_told_that_they_are_two(tmp_path: Path) -> None:
    sites = consortium(tmp_path, 4, Policy())
    attempt = Attempt(LyingServer(), sites, {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]})
    attempt.share()
    assert not attempt.sessions, "two are fewer than a site's own minimum of three"


def test_attack_1_two_stories_about_survivors(tmp_path: Path) -> None:
    sites = consortium(tmp_path, 4, Policy())
    attempt = Attempt(LyingServer(), sites, dict.fromkeys(range(4), FOUR))
    attempt.share()
    attempt.mask({number: attempt.relayed(number) for number in FOUR})
    attempt.check({0: (0, 1, 2), 1: (0, 1, 2), 2: (1, 2, 3), 3: (1, 2, 3)})
    assert len(attempt.signed) == 4 and attempt.unmask(range(4)) == []


def test_attack_1_works_where_more_sites_collude_than_the_policy_stands(tmp_path: Path) -> None:
    for colluders, wanted in ((0, {0, 1}), (2, set())):
        folder = tmp_path / str(colluders)
        sites = consortium(folder, 4, Policy(colluders=colluders))
        server = LyingServer(colluders={number: load_identity(sites[number].folder) for number in (2, 3)})
        attempt = Attempt(server, sites, dict.fromkeys((0, 1), FOUR))
        attempt.share()
        attempt.mask({number: attempt.relayed(number) for number in (0, 1)})
        attempt.check({0: (0, 2, 3), 1: (1, 2, 3)})
        attempt.unmask((0, 1))
        assert singles(server.sums(), sites) == wanted


@pytest.mark.parametrize("signs_for", ["the session that the site made", "a session of its own"])
def test_attack_2_a_server_that_plays_the_other_sites(tmp_path: Path, signs_for: str) -> None:
    sites = consortium(tmp_path, 4, Policy())
    attempt = Attempt(LyingServer(), sites, {0: FOUR})
    attempt.share()
    session = attempt.sessions[0]
    made_up = {number: Identity.generate() for number in (1, 2, 3)}
    members = {**session.members, **{number: identity.public for number, identity in made_up.items()}}
    own = Session(session.run, 1, members, 3, LENGTH, session.nonce, session.job)
    signed = session if signs_for == "the session that the site made" else own
    played = {}
    for number, identity in made_up.items():
        parts = Envelope.from_bytes(SecureClient(number, own, identity).share_keys()).parts
        keys = parts[number][:ADVERTISED_BYTES]
        played[number] = keys + identity.sign(signed.keys_message(number, keys)) + parts[0]
    assert attempt.mask({0: played}) == [], "their keys are not signed by the sites of the roster"


def lists(attempt: Attempt, choose: Choose, draws: np.random.Generator, old: Sequence[Attempt]) -> dict[int, Parts]:
    """The keys and shares that sites are told: complete ones, or left out, replayed, exchanged or made up."""
    found = {}
    for number in attempt.members:
        parts = attempt.relayed(number)
        victim = int(draws.integers(len(attempt.sites)))
        if choose(0.2):
            parts = {one: part for one, part in parts.items() if choose(0.8)}
        if choose(0.1) and old:
            parts |= {victim: old[-1].relayed(number).get(victim, b"")}
        if choose(0.1):
            keys = draws.bytes(ADVERTISED_BYTES)
            parts |= {victim: keys + Identity.generate().sign(keys) + draws.bytes(160)}
        if choose(0.1) and len(parts) > 1:
            first, second = list(parts)[:2]
            parts |= {first: parts[first][:ADVERTISED_BYTES] + parts[second][ADVERTISED_BYTES:]}
        found[number] = parts
    return found


def told_members(
    count: int, honest: Sequence[int], choose: Choose, draws: np.random.Generator
) -> dict[int, Sequence[int]]:
    """The lists of members that sites are told: the truth, less of it, or other things for everyone."""

    def some() -> list[int]:
        return sorted(draws.choice(count, size=int(draws.integers(2, count + 1)), replace=False).tolist())

    common = list(range(count)) if choose(0.6) else some()
    told = {number: common if choose(0.85) else some() for number in honest}
    return {number: listed for number, listed in told.items() if number in listed}


def told_jobs(honest: Sequence[int], choose: Choose, draws: np.random.Generator) -> dict[int, Claims]:
    """The sites that are told another round, recipe, run or threshold than the others, each one of its own.

    Several sites in another run would sum other updates there, or reveal what attack 3 reveals.
    """
    kinds: Sequence[Callable[[int], Claims]] = (
        lambda number: Claims(round=2 + number),
        lambda number: Claims(recipe=f"another {number}"),
        lambda number: Claims(run=secrets.token_hex(16)),
        lambda number: Claims(share=float(draws.choice([0.6, 0.8, 1.0]))),
    )
    return {number: kinds[draws.integers(len(kinds))](number) for number in honest if choose(0.1)}


def lie(attempt: Attempt, choose: Choose, draws: np.random.Generator, old: list[Attempt]) -> int:
    """One session of random lies within valid formats; how many sites helped to unmask something."""
    attempt.share()
    arrived = attempt.mask(lists(attempt, choose, draws, old))
    old.append(attempt)
    everybody = set(attempt.members) | set(attempt.colluding)
    stories = [{*arrived, *attempt.colluding}] + [
        {one for one in everybody if choose(0.7)} for _ in range(int(draws.integers(0, 3)))
    ]
    attempt.check({number: stories[draws.integers(len(stories))] | {number} for number in arrived})
    return len(attempt.unmask([number for number in arrived if choose(0.8)]))


@pytest.fixture(scope="module")
def consortia(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[int, int], list[HonestSite]]]:
    folder = tmp_path_factory.mktemp("consortia")
    yield {
        (count, colluders): consortium(folder / f"{count}-{colluders}", count, Policy(colluders=colluders))
        for count in range(3, 7)
        for colluders in range(count - 1)
    }


@pytest.mark.parametrize("part", range(4))
def test_no_random_lies_reveal_a_single_update(part: int, consortia: dict[tuple[int, int], list[HonestSite]]) -> None:
    """FEDPROMPT_ATTACK_TRIES=1000 tries a thousand lying servers."""
    opened = 0
    for number in range(part, TRIES, 4):
        draws = numpy_stream(number, "lying server")

        def choose(chance: float, draws: np.random.Generator = draws) -> bool:
            return bool(draws.random() < chance)

        pairs = sorted(consortia)
        count, colluders = pairs[draws.integers(len(pairs))]
        sites = consortia[count, colluders]
        honest, old = list(range(count - colluders)), []
        identities = {one: load_identity(sites[one].folder) for one in range(count - colluders, count)}
        server = LyingServer(run=secrets.token_hex(16), colluders=identities)
        for _ in range(int(draws.integers(1, 5))):  # several sessions of one round, which sum the same updates
            members, claims = told_members(count, honest, choose, draws), told_jobs(honest, choose, draws)
            opened += lie(Attempt(server, sites, members, claims=claims), choose, draws, old)
        sums = list(server.sums())
        assert not singles(sums, sites), f"try {number}"
        assert all(len(who) >= 2 for who, _ in sums)
    assert opened, "some of the lies are harmless, so that sums are unmasked"


def changes(shared: State, clients: int) -> list[Update]:
    return [
        Update(client, 1, {"w": shared["w"] + 0.1 * torch.randn(1000, generator=stream(5, client))}, {}, 0.5, 0.0)
        for client in range(clients)
    ]


def difference(secure: SecureSum, clients: int = 5) -> float:
    """The relative error with which two runs, the second without the last client, reveal its update."""
    shared: State = {"w": torch.zeros(1000)}
    sent = changes(shared, clients)
    (full,), _ = simulate(secure, 1, shared, sent)
    (without,), _ = simulate(secure, 1, shared, sent[:-1])
    found = clients * full.shared["w"] - (clients - 1) * without.shared["w"]
    wanted = sent[-1].shared["w"]
    return float((found - wanted).norm() / wanted.norm())


def test_attack_3_the_difference_of_two_runs_is_an_update_unless_clients_add_noise() -> None:
    assert difference(SecureSum()) < 1e-3, "what secure sums do not protect from, as the documentation says"
    noisy = DistributedPrivacy(clip=4.0, noise=1.0, epsilon=50.0, delta=1e-3)
    assert difference(SecureSum(clip=4.0, privacy=noisy)) > 10


def test_the_noise_of_the_fewest_honest_survivors_is_what_is_accounted() -> None:
    privacy = DistributedPrivacy(clip=4.0, noise=0.5, epsilon=50.0, delta=1e-3)
    shared: State = {"w": torch.zeros(100_000)}
    still = [Update(client, 1, {"w": shared["w"]}, {}, 0.5, 0.0) for client in range(5)]
    for colluders in (0, 1):
        secure = SecureSum(clip=4.0, privacy=privacy, colluders=colluders)
        threshold = threshold_of(2 / 3, 5, colluders=colluders)
        (cohort,), _ = simulate(secure, 1, shared, still, present=lambda step, client, t=threshold: client < t)
        noise = cohort.shared["w"].double() * threshold  # of all survivors, of whom some collude and know theirs
        honest = (threshold - colluders) / threshold * noise.square().mean()
        assert float(honest.sqrt()) == pytest.approx(0.5 * 4.0, rel=0.02)
        assert np.isnan(cohort.loss), "the loss of a client is not protected, so none leaves it"
