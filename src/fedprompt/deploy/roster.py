"""Rosters: the identity keys that a site knows of its peers, as a file at the server and as settings at each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprompt.deploy.certificates import authority_fingerprint, fingerprint
from fedprompt.deploy.identity import identities_of, load_identity, public_key, public_line, read_identities
from fedprompt.deploy.settings import SITE, SiteFile, load_site, save
from fedprompt.errors import UserError
from fedprompt.records.atomic_files import write_atomic

ROSTER = "roster.pub"  # in the server's folder: the identity keys of all sites, one a line, to hand to every site


@dataclass(frozen=True)
class Member:
    """A peer with its identity key; `replaces` is the fingerprint of the key that the site knew before, if any."""

    name: str
    line: str
    replaces: str = ""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its key."""
        return fingerprint(public_key(self.line))


def write_roster(deployment: Path) -> list[Member]:
    """Write the identity keys that sites have sent to one file for all sites; returns them."""
    found = [Member(name, public_line(key, name)) for name, key in identities_of(deployment).items()]
    write_atomic(deployment / ROSTER, "".join(f"{member.line}\n" for member in found))
    return found


def members(folder: Path) -> list[Member]:
    """The roster of a site, itself first."""
    site = load_site(folder)
    own = Member(site.name, public_line(load_identity(folder).public, site.name))
    return [own, *(Member(name, line) for name, line in sorted(site.roster.sites.items()))]


def proposed(folder: Path, files: Sequence[Path]) -> list[Member]:
    """The peers in files of public keys whose keys the site's roster does not have yet.

    Raises UserError if a file has another key in place of the site's own.
    """
    site, own = load_site(folder), load_identity(folder)
    found: dict[str, Member] = {}
    for file in files:
        for name, line in read_identities(file).items():
            known = site.roster.sites.get(name)
            if name == site.name and public_key(line) != own.public:
                raise UserError(
                    f"{file} has another key in place of this site's own ({fingerprint(public_key(line))}, not "
                    f"{fingerprint(own.public)}); ask the server's operator where it comes from."
                )
            if name == site.name or (known is not None and public_key(known) == public_key(line)):
                continue
            found[name] = Member(name, line, "" if known is None else fingerprint(public_key(known)))
    return [found[name] for name in sorted(found)]


def accept(folder: Path, peers: Sequence[Member]) -> None:
    """Put peers into the site's roster, whose fingerprints somebody has compared."""
    site = load_site(folder)
    _save(folder, site, {**site.roster.sites, **{peer.name: peer.line for peer in peers}})


def remove(folder: Path, name: str) -> None:
    """Remove a peer: this site takes part in no secure sum with it any more, from the next message on."""
    site = load_site(folder)
    if name not in site.roster.sites:
        raise UserError(
            f"{name} is not in the roster of {site.name}; it has {', '.join(site.roster.sites) or 'nobody'}."
        )
    _save(folder, site, {peer: line for peer, line in site.roster.sites.items() if peer != name})


def check_authority(folder: Path, site: SiteFile) -> None:
    """Raise UserError if ca.crt is not of the certificate authority that the site's roster names."""
    found = authority_fingerprint(folder / "ca.crt")
    if site.roster.server and found != site.roster.server:
        raise UserError(
            f"{folder / 'ca.crt'} is of another server ({found}) than [roster] in {SITE} says ({site.roster.server}); "
            "compare the fingerprints with the server's operator."
        )


def _save(folder: Path, site: SiteFile, sites: dict[str, str]) -> None:
    roster = {"server": site.roster.server, "sites": sites}
    save(folder / SITE, SiteFile(**{**site.model_dump(), "roster": roster}))
