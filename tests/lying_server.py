"""A server of secure sums that sends whatever it likes, together with colluding sites, and what it learns from that."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedprompt.deploy.identity import load_identity, make_site_keys, public_line
from fedprompt.deploy.secure_member import SecureMember, secure_sum_of_site
from fedprompt.deploy.settings import Policy, Roster, SiteFile
from fedprompt.deploy.site_state import SiteState
from fedprompt.errors import UserError
from fedprompt.federated.secure.envelope import SERVER, Envelope, Step
from fedprompt.federated.secure.masks import MaskedVector, agree, derive, mask, public_key
from fedprompt.federated.secure.secure_client import MASKING, SEED, SecureClient, commitment
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import Identity, Session
from fedprompt.federated.secure.shamir import SHARE_BYTES, join
from fedprompt.federated.secure.vector import Codec
from fedprompt.runtimes.payload import MESSAGE, Payload, done

LENGTH = 3
RUN = "5" * 32
CARRIES: dict[Step, Step] = {"masked_input": "share_keys"}  # what a request relays, if not of its own step
Parts = Mapping[int, bytes]


@dataclass(frozen=True)
class Claims:
    """What a site is told of its job; `run` is "" for that of the server."""

    round: int = 1
    recipe: str = "r"
    share: float = 0.51
    run: str = ""


AGREED = Claims()


class HonestSite:
    """A site's real part in secure sums, with its own roster and policy."""

    def __init__(self, folder: Path, number: int, names: Sequence[str], policy: Policy) -> None:
        keys = {name: public_line(load_identity(folder.parent / name).public, name) for name in names}
        self.number, self.names, self.folder = number, names, folder
        peers = {name: line for name, line in keys.items() if name != names[number]}
        self.settings = SiteFile(name=names[number], superlink="h:1", roster=Roster(sites=peers), policy=policy)
        self.member = SecureMember(folder)
        self.vector: MaskedVector = np.array([1, 0, 10**6 + 7**number], dtype=np.uint64)

    def answer(
        self, step: Step, run: str, members: list[int], nonce: str, parts: Parts, told: Claims = AGREED
    ) -> Parts | None:
        """Its answer to a request; None if it refuses."""
        message = b64encode(Envelope(CARRIES.get(step, step), SERVER, 1, parts).to_bytes()).decode()
        run = told.run or run
        job = {"run": run, "trial": "t", "recipe": told.recipe, "round": told.round, "client": self.number}
        request = Payload(f"train.{step}", {**job, "members": members, "nonce": nonce, MESSAGE: message})

        def train(codec: Codec) -> tuple[MaskedVector, bytes]:
            return self.vector, b""

        state = SiteState(self.folder / "state", run, "t")
        try:
            secure = secure_sum_of_site(
                SecureSum(share=told.share), job, self.names, settings=self.settings, folder=self.folder
            )
            said = done(self.member.answer(request, secure, state, train, lambda: LENGTH))
        except UserError:
            return None
        return Envelope.from_bytes(said.tensors[MESSAGE].data).parts


def consortium(folder: Path, count: int, policy: Policy) -> list[HonestSite]:
    """So many sites that know each other."""
    names = [f"site{number}" for number in range(count)]
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        make_site_keys(folder / name, name)
    return [HonestSite(folder / name, number, names, policy) for number, name in enumerate(names)]


@dataclass(frozen=True)
class Key:
    """A site's keys of one session, by its masking key; a site that begins a session anew has others."""

    owner: int
    advertised: bytes

    @property
    def masking(self) -> bytes:
        return self.advertised[MASKING]


@dataclass(frozen=True)
class Masked:
    """A masked vector that arrived, with the keys that its sender used."""

    key: Key
    peers: tuple[Key, ...]
    session: Session
    vector: MaskedVector


@dataclass
class LyingServer:
    """Collects everything that sites say, and computes the sums that follow from it."""

    run: str = RUN
    colluders: Mapping[int, Identity] = field(default_factory=dict)
    masked: list[Masked] = field(default_factory=list)
    # (masking key of the owner, which of its two secrets) -> share per helper
    shares: dict[tuple[bytes, int], dict[int, bytes]] = field(default_factory=dict)
    privates: dict[bytes, bytes] = field(default_factory=dict)  # masking key -> private key of whom the server plays

    def play(self, client: SecureClient) -> SecureClient:
        """Take part as a client whose identity the server has."""
        self.privates[public_key(client._masking)] = client._masking
        return client

    def learn_shares(self, helper: int, keys: Mapping[int, Key], survivors: Collection[int], parts: Parts) -> None:
        """What an honest site reveals in the last step."""
        for owner, share in parts.items():
            self.learn_share(helper, keys[owner], int(owner in survivors), share)

    def learn_share(self, helper: int, key: Key, secret: int, share: bytes) -> None:
        """One share of a site's masking key (0) or of its own seed (1)."""
        self.shares.setdefault((key.masking, secret), {})[helper] = share

    def learn_from_colluder(self, helper: int, client: SecureClient, keys: Mapping[int, Key]) -> None:
        """Both shares of every site, as a colluding site has them."""
        for owner, both in client._shares.items():
            self.learn_share(helper, keys[owner], 0, both[:SHARE_BYTES])
            self.learn_share(helper, keys[owner], 1, both[SHARE_BYTES:])

    def sums(self) -> Iterator[tuple[frozenset[int], MaskedVector]]:
        """The sums of vectors of honest sites that can be computed: who is in one, and what it is."""
        opened = [one for one in map(self._open, self.masked) if one is not None]
        while opened:
            group = [opened.pop()]
            pairs = set(group[0][2])
            while found := [one for one in opened if pairs & set(one[2])]:
                group += found
                opened = [one for one in opened if not any(one is other for other in found)]
                pairs |= {pair for one in found for pair in one[2]}
            counts = [pair for one in group for pair in one[2]]
            if all(counts.count(pair) == 2 for pair in pairs):
                total = np.sum([value for _, value, _ in group], axis=0, dtype=np.uint64)
                yield frozenset(owner for owner, _, _ in group), total

    def _open(self, one: Masked) -> tuple[int, MaskedVector, list[tuple[bytes, ...]]] | None:
        """A vector without the masks that the server knows, and those that are left; None with its own mask."""
        seed = self._secret(one.key, 1, one.session.threshold)
        if seed is None:
            return None
        value, left = one.vector - mask(derive(seed, "own mask"), LENGTH), []
        for peer in one.peers:
            agreed = self._agreed(one.key, peer, one.session.threshold)
            if agreed is None:
                left.append((*sorted((one.key.masking, peer.masking)), one.session.digest))
                continue
            pair = mask(derive(agreed, "pair mask", one.session.digest.hex()), LENGTH)
            value = value - pair if one.key.owner < peer.owner else value + pair
        return one.key.owner, value, left

    def _agreed(self, key: Key, peer: Key, threshold: int) -> bytes | None:
        for mine, other in ((key, peer), (peer, key)):
            private = self.privates.get(mine.masking) or self._secret(mine, 0, threshold)
            if private is not None:
                return agree(private, other.masking)
        return None

    def _secret(self, key: Key, secret: int, threshold: int) -> bytes | None:
        shares = self.shares.get((key.masking, secret), {})
        for chosen in _subsets(shares, threshold):
            found = join(chosen)
            fits = found is not None and (
                commitment(found) == key.advertised[SEED] if secret else public_key(found) == key.masking
            )
            if fits:
                return found
        return None


def _subsets(shares: dict[int, bytes], threshold: int) -> Iterable[dict[int, bytes]]:
    if len(shares) >= threshold:
        yield dict(list(shares.items())[:threshold])
        yield shares


def singles(sums: Iterable[tuple[frozenset[int], MaskedVector]], sites: Sequence[HonestSite]) -> set[int]:
    """The sites whose own vectors follow from sums, by themselves or by differences of several; sums are verified."""
    known = list(sums)
    for who, total in known:
        wanted = np.sum([sites[number].vector for number in who], axis=0, dtype=np.uint64)
        assert np.array_equal(total, wanted), "the server's arithmetic is right"
    rows = np.array([[float(number in who) for number in range(len(sites))] for who, _ in known])
    if not len(rows):
        return set()
    found = set()
    for number in range(len(sites)):
        wanted = np.eye(len(sites))[number]
        weights = np.linalg.lstsq(rows.T, wanted, rcond=None)[0]
        if np.abs(rows.T @ weights - wanted).max() < 1e-6:
            found.add(number)
    return found
