"""A site's records: trail and ledger belong together, damage is noticed at once, and every message has one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedprompt.cli.main import app
from fedprompt.deploy.audit import AUDIT, LEDGER, read_audit
from fedprompt.deploy.hash_chain import DamagedError
from fedprompt.deploy.identity import load_identity, make_site_keys, public_line
from fedprompt.deploy.metrics_site import INTACT, SiteMetrics
from fedprompt.deploy.settings import SITE, Roster, load_site, save
from fedprompt.deploy.site import Site
from fedprompt.runtimes.payload import DONE, EVALUATE, FAILED, HELLO, REFUSED, TRAIN, Payload, RawTensor
from test_deploy_trust import RECIPE, LyingServer, make_site, noisy, reason
from test_deploy_trust import start as start

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedprompt.deploy.metrics_site.folder_values", lambda folder: {})


def intact(folder: Path) -> bool:
    return SiteMetrics(folder).read()[INTACT] == {(): 1.0}


def first_lines(path: Path, count: int) -> bytes:
    return b"".join(path.read_bytes().splitlines(keepends=True)[:count])


@pytest.mark.parametrize("left", [0, 1, None])
def test_a_ledger_that_is_gone_or_older_than_the_trail_says_admits_nothing(
    tmp_path: Path, start: Mapping[str, RawTensor], left: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert [server.ask(kind, round=number).kind for kind, number in ((HELLO, 1), (TRAIN, 1), (TRAIN, 2))] == [DONE] * 3
    ledger, whole = tmp_path / LEDGER, (tmp_path / LEDGER).read_bytes()
    old = first_lines(ledger, left or 0)
    for site in (server.site, Site(tmp_path)):  # one that runs, and one that starts
        server.site = site
        if left is None:
            ledger.unlink()
        else:
            ledger.write_bytes(old)
        for kind in (HELLO, EVALUATE, TRAIN):
            assert "(rule records)" in reason(server.ask(kind, run="1" * 32))
        assert not intact(tmp_path)
        with pytest.raises(DamagedError, match="lacks the training of line"):
            list(read_audit(tmp_path))
        ledger.write_bytes(whole)
        assert server.ask(run="1" * 32, round=len(list(read_audit(tmp_path))) % 40 + 1).kind == DONE
        whole = ledger.read_bytes()
    assert "Restore" in caplog.text and str(tmp_path) not in str(reason(server.ask(round=0)))
    assert len(list(read_audit(tmp_path))) == len(server.messages) and intact(tmp_path)


def test_records_that_were_moved_away_together_begin_anew(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    """As the page on deploying says, for a ledger without a copy."""
    server = LyingServer(make_site(tmp_path), start)
    assert server.ask().kind == DONE
    (tmp_path / LEDGER).unlink()
    server.site = Site(tmp_path)
    assert "(rule records)" in reason(server.ask(round=2))
    (tmp_path / AUDIT).unlink()
    server.site = Site(tmp_path)
    assert server.ask(round=2).kind == DONE and len(list(read_audit(tmp_path))) == 1


def test_a_charge_that_no_line_of_the_trail_names_is_missed_if_it_is_removed(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was killed in a training has charged it and recorded nothing; the next message's line names it."""
    server = LyingServer(make_site(tmp_path), start)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fedprompt.deploy.site.train_client", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        server.ask()
    server.site = Site(tmp_path)
    assert server.ask(HELLO).kind == DONE
    (tmp_path / LEDGER).unlink()
    with pytest.raises(DamagedError, match="line 1 of"):
        list(read_audit(tmp_path))


def test_a_trail_that_is_gone_or_shorter_than_the_ledger_says_admits_nothing(
    tmp_path: Path, start: Mapping[str, RawTensor]
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert [server.ask(kind).kind for kind in (HELLO, HELLO, TRAIN)] == [DONE] * 3
    trail, whole = tmp_path / AUDIT, (tmp_path / AUDIT).read_bytes()
    trail.write_bytes(first_lines(trail, 1))
    with pytest.raises(DamagedError, match="has 1 lines, and had 2"):
        list(read_audit(tmp_path))
    server.site = Site(tmp_path)
    assert "(rule records)" in reason(server.ask(round=2))
    trail.write_bytes(whole)
    assert Site(tmp_path).answer(server.messages[-1]).kind == DONE


@pytest.mark.parametrize("name", [AUDIT, LEDGER])
def test_a_running_site_notices_an_edited_old_line_and_accepts_the_file_when_it_is_restored(
    tmp_path: Path, start: Mapping[str, RawTensor], name: str
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert [server.ask(round=number).kind for number in (1, 2, 3)] == [DONE] * 3
    path, whole = tmp_path / name, (tmp_path / name).read_bytes()
    for place in (30, len(whole) // 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for kind in (HELLO, TRAIN):
            assert "(rule records)" in reason(server.ask(kind, round=4))
        assert not intact(tmp_path)
        path.write_bytes(whole)
        assert server.ask(round=4).kind == DONE and intact(tmp_path)
        whole = path.read_bytes()
    assert len(server.site._ledger.lines()) == 5


def test_trainings_before_a_damaged_line_are_counted_after_it_is_restored(
    tmp_path: Path, start: Mapping[str, RawTensor]
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert [server.ask(round=number).kind for number in (1, 2, 3)] == [DONE] * 3
    path, whole = tmp_path / LEDGER, (tmp_path / LEDGER).read_bytes()
    path.write_bytes(whole[:-30] + b"x" + whole[-29:])
    server.site = Site(tmp_path)
    assert "(rule records)" in reason(server.ask(round=4))
    path.write_bytes(whole)
    assert server.ask(round=4).kind == DONE
    assert len(server.site._ledger.lines()) == 4


def test_what_is_in_the_records_alone_costs_a_message_no_reading(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    assert server.ask().kind == DONE
    opened: list[Path] = []
    whole = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode, **how: opened.append(self) or whole(self, *mode, **how))
    assert server.ask(HELLO).kind == server.ask(round=2).kind == DONE
    assert not [path for path in opened if path.suffix == ".jsonl"]


@pytest.mark.parametrize(
    ("job", "said", "rule"),
    [
        ({"run": "../x"}, "run id is not one", "request"),
        ({"trial": "other"}, "a trial that is not in its recipe", "request"),
        ({"server": "evil = 1\n"}, "has no key 'evil'", "recipe"),
        ({"server": "[train.server.aggregate]\nname = 'no_such'"}, "no_such", "recipe"),
        ({"recipe": "name = 'job'\na = " + "[" * 100_000 + "]" * 100_000}, "nested more than", "recipe"),
        ({"recipe": "name = \n"}, "not valid TOML", "recipe"),
    ],
)
def test_a_mistake_in_the_job_is_refused_in_words_about_the_job(
    tmp_path: Path, start: Mapping[str, RawTensor], job: dict, said: str, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = reason(LyingServer(make_site(tmp_path), start).ask(HELLO, **job))
    assert said in sentence and sentence.endswith(f"(rule {rule}).")
    assert str(tmp_path) not in sentence and "patient" not in sentence
    assert len(caplog.text.splitlines()) == 1, "one sentence in the log, no traceback"


@pytest.mark.parametrize(
    ("spoil", "said", "rule"),
    [
        (lambda site: (site / "images/train/cat").rename(site / "images/train/secret-clinic"), "class list", "classes"),
        (lambda site: shutil.rmtree(site / "images"), "images cannot be used", "images"),
        (
            lambda site: (site / SITE).write_text((site / SITE).read_text() + "\nsecret-key = 1\n"),
            "settings",
            "settings",
        ),
        (lambda site: (site / SITE).write_text("secret-clinic"), "settings", "settings"),
        (
            lambda site: (site / SITE).write_text(f'backbone = "{site / "secret"}"\n' + (site / SITE).read_text()),
            "backbone cannot be loaded",
            "backbone",
        ),
    ],
)
def test_a_mistake_at_the_site_is_refused_without_what_is_the_sites(
    tmp_path: Path, start: Mapping[str, RawTensor], spoil, said: str, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = LyingServer(make_site(tmp_path), start)
    text = (tmp_path / SITE).read_text()
    (tmp_path / SITE).write_text(text.replace('backbone = ""\n', ""))
    spoil(tmp_path)
    sentence = reason(server.ask(HELLO))
    assert said in sentence and "log" in sentence and sentence.endswith(f"(rule {rule}).")
    for secret in ("secret", "patient", "images/", str(tmp_path), SITE):
        assert secret not in sentence
    assert "secret" in caplog.text or str(tmp_path) in caplog.text, "the site's own log has the details"
    (line,) = [entry.fields for entry in read_audit(tmp_path)]
    assert line["rule"] == rule and "secret" not in str(line)


def test_what_a_method_of_the_sites_own_raises_stays_at_the_site(
    tmp_path: Path, start: Mapping[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_method.py").write_text("raise ImportError('no secret-clinic in /srv/patients')\n")
    monkeypatch.syspath_prepend(tmp_path)
    server = LyingServer(make_site(tmp_path, methods=("own_method",)), start)
    recipe = RECIPE.format(lr=0.01, server="").replace('"promptfl"', '"own_method"')
    answer = server.ask(HELLO, recipe=recipe, trial="own_method")
    assert answer.kind == FAILED and "secret" not in str(answer.fields) and "/srv" not in str(answer.fields)


def test_whatever_fails_writes_a_few_lines_to_the_log(
    tmp_path: Path, start: Mapping[str, RawTensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(number: int) -> int:
        return even(number + 1)

    def even(number: int) -> int:
        return odd(number + 1)

    monkeypatch.setattr("fedprompt.deploy.jobs.check_backbone", lambda *_: odd(0))
    with caplog.at_level(logging.WARNING):
        answer = LyingServer(make_site(tmp_path), start).ask(HELLO)
    assert answer.kind == FAILED and str(answer.fields["reason"]).startswith("RecursionError, reference ")
    assert "in odd" in caplog.text and len(caplog.text.splitlines()) < 100


def spent(folder: Path, start: Mapping[str, RawTensor]) -> None:
    """A trail of all kinds of lines."""
    server = LyingServer(make_site(folder), start)
    server.ask(server=noisy())
    server.ask("train.consistency_check", members=[0, 1], nonce="x")
    server.ask("../x" * 99, run=["x"])
    server.ask(run="1" * 32, round=2**52)
    server.ask(EVALUATE, run="2" * 32)
    server.send(Payload("malformed"))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_printed_trail_has_a_line_per_message_that_fits_the_terminal(
    tmp_path: Path, start: Mapping[str, RawTensor], width: int
) -> None:
    pytest.importorskip("dp_accounting")
    pytest.importorskip("flwr")
    spent(tmp_path, start)
    result = CliRunner().invoke(app, ["site", "audit", str(tmp_path)], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    head, *rows = result.output.splitlines()
    assert [row.split()[0] for row in rows[:6]] == list("123456")
    assert rows[6].startswith("6 messages" if "server" in head else "(left out for width: ")
    assert all(len(line) <= width for line in (head, *rows[:-2]))
    said = " ".join(rows[6:-2])
    assert ("server" in head) != ("; --json has all)" in said) and said.endswith("show later that no line was removed.")
    assert ("recipe" in head) == (width >= 120) and ("refused: order" in rows[3]) == (width >= 80)
    hashes = [row.split() for row in rows[-2:]]
    assert [(len(found), name) for found, name in hashes] == [(64, AUDIT), (64, LEDGER)]


def test_without_a_trail_nothing_is_said_to_be_as_it_was_written(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    make_site(tmp_path)
    result = CliRunner().invoke(app, ["site", "audit", str(tmp_path)], env={"COLUMNS": "60"})
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert said == "There is no audit trail: no message has come yet, or audit.jsonl was moved away."


def test_every_refusal_names_its_rule(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    """Those of a state with other tensors, and of secure sums, too."""
    server = LyingServer(make_site(tmp_path), start)
    server.start = {name: replace(raw, data=raw.data * 2) for name, raw in start.items()}
    server.ask()
    server.start = start
    make_site_keys(tmp_path, "east")
    (tmp_path / "north").mkdir()
    make_site_keys(tmp_path / "north", "north")
    peer = Roster(sites={"north": public_line(load_identity(tmp_path / "north").public, "north")})
    save(tmp_path / SITE, load_site(tmp_path).model_copy(update={"roster": peer}))
    secure = {"server": "[train.server.secure]\n", "run": "1" * 32, "nonce": "x"}
    for members in ([0, 1], [0, 0], [1, 5], "x"):
        server.ask("train.share_keys", members=members, **secure)
    server.ask("train.unmask", members=[0, 1], message="", **secure)
    server.ask("evaluate.zzz")
    server.send(Payload("malformed"))
    rules = [entry.fields["rule"] for entry in read_audit(tmp_path)]
    assert rules == ["size", "secure", "secure", "secure", "request", "secure sums", "request", "request"]
    for message, rule in zip(server.messages, rules, strict=True):
        said = reason(
            server.site.answer(replace(message, fields={**message.fields, "serial": [2, next(server.numbers)]}))
        )
        assert said.endswith(f"(rule {rule}).") and not said.startswith(f"{rule}:"), said


def test_the_trail_is_printed_as_json_with_whole_hashes(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    pytest.importorskip("dp_accounting")
    pytest.importorskip("flwr")
    spent(tmp_path, start)
    result = CliRunner().invoke(app, ["site", "audit", str(tmp_path), "--json", "--last", "2"])
    found = json.loads(result.output)
    entries = list(read_audit(tmp_path))
    assert [one["number"] for one in found["messages"]] == [5, 6]
    assert found["newest"][AUDIT] == found["messages"][-1]["hash"] == entries[-1].hash
    assert found["spent"][0]["epsilon"] == entries[0].fields["epsilon"] and found["trainings_without_noise"] == 0


def test_a_request_of_an_unknown_kind_is_refused_and_recorded(tmp_path: Path, start: Mapping[str, RawTensor]) -> None:
    server = LyingServer(make_site(tmp_path), start)
    for kind in ("train.foo", "query.evil", "reconnect", ""):
        answer = server.ask(kind)
        assert answer.kind == REFUSED and "unknown kind" in reason(answer)
    assert [entry.fields["rule"] for entry in read_audit(tmp_path)] == ["request"] * 4
