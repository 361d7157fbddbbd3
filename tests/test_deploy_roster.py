"""Identity keys and rosters, the commands around them, and certificates that expire."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("flwr")

from fedprompt.cli import main as cli
from fedprompt.cli.doctor import run_checks
from fedprompt.deploy import certificates, daemons, roster
from fedprompt.deploy.audit import AUDIT, AuditTrail, Verdict
from fedprompt.deploy.certificates import authority_fingerprint, days_left, fingerprint
from fedprompt.deploy.identity import (
    IDENTITY,
    identities_of,
    load_identity,
    public_line,
    read_identities,
    rotate_site_keys,
)
from fedprompt.deploy.init import expiry_warnings, init_deployment, init_site, remove_site, renew_certificates
from fedprompt.deploy.roster import ROSTER, accept, members, proposed, write_roster
from fedprompt.deploy.settings import ADMITTED, SITE, Deployment, Policy, Roster, load_deployment, load_site, save
from fedprompt.errors import UserError
from fedprompt.federated.secure.session import Identity
from fedprompt.runtimes.payload import Payload

SITES = ("east", "north", "south")


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A deployment whose sites have made their keys and sent them."""
    folder = tmp_path / "hospitals"
    init_deployment(folder, Deployment(name="hospitals", address="localhost", sites=SITES))
    for name in SITES:
        public = init_site(folder / "sites" / name)
        (folder / "keys" / public.name).write_bytes(public.read_bytes())
    return folder


def run(*arguments: object, answer: str = "", code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(one) for one in arguments], input=answer)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_sites_private_keys_are_readable_by_their_owner_only(server: Path) -> None:
    east = server / "sites" / "east"
    assert [(east / name).stat().st_mode & 0o777 for name in ("site.key", IDENTITY)] == [0o600, 0o600]
    identity = load_identity(east)
    with pytest.raises(UserError, match=r"holds more than site.toml and ca.crt: .*identity.key.* site rotate"):
        init_site(east)
    assert load_identity(east) == identity
    (east / IDENTITY).chmod(0o644)
    with pytest.raises(UserError, match="Others can read"):
        load_identity(east)


@pytest.mark.parametrize("sent", ["torch.py", IDENTITY, "site.key", "state/", "ledger.jsonl"])
def test_a_folder_that_was_sent_with_more_than_settings_is_refused(tmp_path: Path, sent: str) -> None:
    init_deployment(tmp_path / "fed", Deployment(name="fed", address="localhost", sites=SITES))
    east = tmp_path / "fed" / "sites" / "east"
    if sent.endswith("/"):
        (east / sent).mkdir()
    else:
        (east / sent).write_text("")
    said = run("site", "init", east, code=2)
    assert sent.removesuffix("/") in said and "Delete all that was sent to you." in said
    assert not (east / "east.pub").exists()


def test_peers_and_settings_that_were_sent_are_noticed(tmp_path: Path) -> None:
    init_deployment(tmp_path / "fed", Deployment(name="fed", address="localhost", sites=SITES))
    east = tmp_path / "fed" / "sites" / "east"
    site = load_site(east)
    sham = {"north": public_line(Identity.generate().public, "north")}
    save(east / SITE, site.model_copy(update={"roster": Roster(server=site.roster.server, sites=sham)}))
    assert "peers in [roster.sites] (north); delete that table" in run("site", "init", east, code=2)
    save(east / SITE, site.model_copy(update={"policy": Policy(smallest_count=1)}))
    assert "Set by whoever sent you the folder: policy.smallest_count = 1;" in run("site", "init", east)


def test_a_roster_takes_one_file_and_one_question(server: Path) -> None:
    shown = run("deploy", "roster", server)
    east = server / "sites" / "east"
    said = run("site", "roster", "add", east, server / ROSTER, answer="y\n")
    north = fingerprint(load_identity(server / "sites" / "north").public)
    assert north in shown and north in said and "Added north, south." in said
    assert {one.name for one in members(east)} == set(SITES)
    assert "already" in run("site", "roster", "add", east, server / ROSTER)
    show = run("site", "roster", "show", east)
    assert north in show and authority_fingerprint(server / "certificates" / "ca.crt") in show


def test_a_roster_stays_as_it_is_unless_somebody_says_yes(server: Path) -> None:
    write_roster(server)
    east = server / "sites" / "east"
    run("site", "roster", "add", east, server / ROSTER, answer="n\n", code=1)
    assert load_site(east).roster.sites == {}
    run("site", "roster", "add", east, server / ROSTER, "--yes")
    assert "Removed north." in run("site", "roster", "remove", east, "north")
    assert load_site(east).roster.sites.keys() == {"south"}
    with pytest.raises(UserError, match="north is not in the roster of east; it has south"):
        roster.remove(east, "north")


def test_a_file_with_another_key_in_place_of_ones_own_is_refused(server: Path) -> None:
    east = server / "sites" / "east"
    made_up = rotate_site_keys(server / "sites" / "north", "east")
    with pytest.raises(UserError, match="another key in place of this site's own"):
        proposed(east, [made_up])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ssh-ed25519 AAAA east\n", "line 1: this is no public key"),
        ("{line}\n{other}\n", "line 2: the key has no name"),
        ("{line} more words\n", "line 1: the key has no name"),
        ("{bare}\n", "line 1: the key has no name"),
    ],
)
def test_a_malformed_file_of_keys_is_refused_with_its_line(server: Path, text: str, reason: str) -> None:
    lines = [read_identities(server / "keys" / f"{name}.pub")[name] for name in SITES[:2]]
    other = lines[1].replace("north", "east")
    path = server / "x.pub"
    path.write_text(text.format(line=lines[0], other=other, bare=lines[0].removesuffix(" east")))
    with pytest.raises(UserError, match=reason):
        read_identities(path)


def test_a_site_with_new_keys_is_added_again_and_the_old_fingerprint_is_shown(server: Path) -> None:
    east, north = server / "sites" / "east", server / "sites" / "north"
    write_roster(server)
    accept(east, proposed(east, [server / ROSTER]))
    before = fingerprint(load_identity(north).public)
    said = run("site", "rotate", north)
    assert before not in said and fingerprint(load_identity(north).public) in said
    (found,) = proposed(east, [north / "north.pub"])
    assert (found.name, found.replaces) == ("north", before)
    assert (north / IDENTITY).stat().st_mode & 0o777 == 0o600


def test_the_server_admits_new_keys_and_takes_back_old_ones(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def ask(command: list[str], folder: Path) -> dict[str, object]:
        asked.append(command[2:4])
        return {"success": True, "node-id": len(asked)}

    monkeypatch.setattr(daemons.commands, "ask", ask)
    said: list[str] = []
    daemons.admit_sites(server, SITES, say=said.append)
    assert len(asked) == 3 and read_identities(server / ROSTER).keys() == set(SITES)
    daemons.admit_sites(server, SITES, say=said.append)
    assert len(asked) == 3, "nothing has changed"
    rotated = rotate_site_keys(server / "sites" / "north", "north")
    (server / "keys" / "north.pub").write_bytes(rotated.read_bytes())
    remove_site(server, "south")
    del asked[:]
    daemons.admit_sites(server, load_deployment(server).sites, say=said.append)
    assert [one[0] for one in asked] == ["unregister", "unregister", "register"]
    assert sorted(path.name.partition("-")[0] for path in (server / ADMITTED).iterdir()) == ["east", "north"]
    assert identities_of(server).keys() == {"east", "north"}


def test_only_a_site_of_the_deployment_can_be_removed_and_not_the_last(server: Path) -> None:
    with pytest.raises(UserError, match="west is not a site"):
        remove_site(server, "west")
    for name in SITES[:2]:
        remove_site(server, name)
    with pytest.raises(UserError, match="only site"):
        remove_site(server, "south")


def test_certificates_that_expire_are_named_and_renewed_by_one_command(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = server / "certificates"
    assert not expiry_warnings(server) and days_left(own / "server.pem") in (729, 730)
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(certificates, "_now", lambda: now + datetime.timedelta(days=700))
    (warning,) = expiry_warnings(server)
    assert "server.pem expires in" in warning and "fedprompt deploy renew" in warning
    found = {one.what: one for one in run_checks(server, "demo", server)}["certificates of hospitals"]
    assert "server.pem expires in" in found.found and found.failed
    before, key = authority_fingerprint(own / "ca.crt"), (own / "server.key").read_bytes()
    assert len(renew_certificates(server, authority_key=None)) == 1 and not expiry_warnings(server)
    monkeypatch.setattr(certificates, "_now", lambda: now + datetime.timedelta(days=5 * 730 - 10))
    assert "has expired" in " ".join(expiry_warnings(server))
    assert "ca.crt expires in" in " ".join(expiry_warnings(server / "sites" / "east"))
    steps = renew_certificates(server, authority_key=None)
    assert "every site" in steps[0] and not expiry_warnings(server)
    assert authority_fingerprint(own / "ca.crt") == before and (own / "server.key").read_bytes() == key


def test_a_renewal_says_when_the_authoritys_key_is_elsewhere(server: Path, tmp_path: Path) -> None:
    key = (server / "certificates" / "ca.key").rename(tmp_path / "ca.key")
    with pytest.raises(UserError, match="--authority-key"):
        renew_certificates(server, authority_key=None)
    assert renew_certificates(server, authority_key=key)
    key.write_text("nonsense")
    with pytest.raises(UserError, match="no private key"):
        renew_certificates(server, authority_key=key)


def test_a_site_refuses_the_authority_of_another_server(server: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    init_deployment(other, Deployment(name="hospitals", address="localhost", sites=SITES))
    east = server / "sites" / "east"
    assert run_checks(east, "demo", east)[-1].fix == ""
    (east / "ca.crt").write_bytes((other / "certificates" / "ca.crt").read_bytes())
    with pytest.raises(UserError, match="of another server"):
        daemons.site_up(east, data=None, say=print)


def test_a_site_whose_ledger_is_gone_says_so_when_it_starts_and_to_the_doctor(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    east, said = server / "sites" / "east", []
    monkeypatch.setattr(daemons, "_supervise", lambda *_: None)
    AuditTrail(east).record(Payload("train"), Payload("done"), Verdict(ledger="0" * 64))
    daemons.site_up(east, data=None, say=said.append)
    assert "lacks the training of line 1" in said[-1] and said[-1].endswith("Until then the site answers nothing.")
    assert [one.failed for one in run_checks(server, "demo", east) if one.what == "records of east"] == [True]


def test_a_running_site_says_once_that_its_records_are_damaged_and_once_that_they_are_whole(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    east, said = server / "sites" / "east", []
    trail, record = east / AUDIT, AuditTrail(east).record
    record(Payload("train"), Payload("done"), Verdict())

    def supervise(*given: object) -> None:
        on_poll = given[-1]
        assert callable(on_poll)
        before = len(said)
        on_poll()
        record(Payload("train"), Payload("done"), Verdict())
        on_poll()
        assert len(said) == before, "whole, and longer"
        whole = trail.read_bytes()
        for damaged in (whole.replace(b"train", b"taken"), whole[: whole.index(b"\n") + 1]):
            trail.write_bytes(damaged)
            for _ in range(3):
                on_poll()
            trail.write_bytes(whole)
            for _ in range(3):
                on_poll()
        trail.unlink()
        on_poll()
        del said[:before]

    monkeypatch.setattr(daemons, "_supervise", supervise)
    daemons.site_up(east, data=None, say=said.append)
    changed, again, cut, once_more, gone = said
    assert "Line 1 of" in changed and "has lost lines: line 2 was its last" in cut and f"{trail} is gone" in gone
    assert again == once_more == "The site's records are whole again: it answers."


def test_a_made_key_in_a_roster_is_refused_when_the_file_is_read(server: Path) -> None:
    write_roster(server)
    east = server / "sites" / "east"
    accept(east, proposed(east, [server / ROSTER]))
    lines = load_site(east).roster.sites
    for wrong in ("nonsense", lines["south"]):
        text = (east / SITE).read_text()
        (east / SITE).write_text(text.replace(json.dumps(lines["north"]), json.dumps(wrong)))
        with pytest.raises(UserError, match="roster"):
            load_site(east)
        (east / SITE).write_text(text)
    save(east / SITE, load_site(east))
