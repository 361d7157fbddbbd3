"""Attacks of docs/privacy.md on the real processes of a rehearsal, and a table of what happened to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from fedprompt.config.recipe import parse_recipe
from fedprompt.deploy.rehearsal.accidents import killed_command, silent_connections
from fedprompt.deploy.rehearsal.checks import DISTURBED, BackgroundRun, refused_access, write_results
from fedprompt.deploy.rehearsal.lying_server import NETWORK, T2, LyingServer, Outcome, changed, new_run
from fedprompt.deploy.rehearsal.processes import SITES, LocalFederation, Say, local_federation
from fedprompt.deploy.rehearsal.records_attacks import lines
from fedprompt.deploy.rehearsal.relay import MARK, relay
from fedprompt.deploy.rehearsal.server_attacks import SECURE_SUM, attack_sites, privacy
from fedprompt.deploy.rehearsal.site_attacks import late_site, lying_site, wrong_clock
from fedprompt.deploy.rehearsal.site_changes import policy
from fedprompt.errors import UserError
from fedprompt.runtimes.payload import DONE, HELLO

RESULT = "attacks.json"
ONE_SUM = 4.0  # epsilon for one secure sum with a noise multiplier of 1, and not for two
Play = Callable[[LocalFederation], list[Outcome]]


def play_attacks(folder: Path, *, say: Say, settings: Sequence[str] = ()) -> list[Outcome]:
    """Play every attack and return what happened, which is also written to `attacks.json` in the folder."""
    found: list[Outcome] = []
    with local_federation(folder, say=say, settings=settings) as federation:
        for play in PLAYS:
            for one in _outcomes(play, federation):
                found.append(one)
                say(f"{'held  ' if one.held else 'FAILED'} {one.attack}: {one.happened}")
            write_results(folder / RESULT, federation.recipe, [asdict(one) for one in found])
    return found


def _outcomes(play: Play, federation: LocalFederation) -> list[Outcome]:
    """What happened, or why an attack could not be played; the others are played in any case."""
    try:
        return play(federation)
    except (UserError, OSError) as error:
        return [Outcome(play.__name__.replace("_", " "), "", f"not played: {error}", held=False)]


def strangers(federation: LocalFederation) -> list[Outcome]:
    """Connections of those who are no site."""
    return [Outcome(one.what, NETWORK, one.measured, one.met) for one in refused_access(federation)]


def lying_server(federation: LocalFederation) -> list[Outcome]:
    """The messages of a lying server, sent by the deployment's own SuperLink."""
    folders = {name: federation.site(name) for name in SITES}
    with relay(federation.server, "relay") as channel:
        found = attack_sites(LyingServer.of(channel, federation.recipe, folders))
    return [*found, judge_code("code in the app that the server sends", folders)]


def agent_run(federation: LocalFederation) -> list[Outcome]:
    """A run whose type makes Flower's SuperNode start another program than a ClientApp's."""
    folders, what = {name: federation.site(name) for name in SITES}, "the app as a run of another type"
    with relay(federation.server, "agent", agent=True) as channel:
        answer = LyingServer.of(channel, federation.recipe, folders).ask(DISTURBED, HELLO, new_run())
    answered = answer.kind == DONE
    happened = "fedprompt answered it" if answered else f"no answer: {answer.fields.get('reason', '')}"
    return [judge_code(what, folders), Outcome("the message of that run", T2, happened, answered)]


def repeated_sums(federation: LocalFederation) -> list[Outcome]:
    """The same job of secure sums with distributed noise, twice: two sums can differ by a single update."""
    change = {**SECURE_SUM, **privacy("distributed", noise=1.0, epsilon=ONE_SUM)}
    recipe = parse_recipe(changed(federation.recipe.to_toml(), change))
    with ExitStack() as stack:
        for name in SITES:
            stack.enter_context(policy(federation.site(name), epsilon=ONE_SUM))
        first, second = (
            BackgroundRun(replace(federation, recipe=recipe), f"sum-{number}", rounds=1).end()[-1] for number in (1, 2)
        )
    refused = [reason for reason in second.failed.values() if "epsilon" in reason]
    happened = f"{len(first.kept)} sites answered the first run; {len(refused)} refused the second, rule epsilon"
    held = len(first.kept) == len(refused) == len(SITES)
    return [Outcome("3: the same job of secure sums twice", T2, happened, held)]


def judge_code(what: str, folders: Mapping[str, Path]) -> Outcome:
    """Whether a site has installed or imported an app of the server."""
    ran = [name for name, folder in folders.items() if (folder / "flower" / MARK).exists()]
    installed = [name for name, folder in folders.items() if any((folder / "flower" / "apps").glob("*"))]
    happened = f"imported at {ran or 'no site'}, installed at {installed or 'no site'}".replace("'", "")
    return Outcome(what, T2, happened, not ran and not installed)


def trails(federation: LocalFederation) -> list[Outcome]:
    """The trails of all sites after all attacks; DamagedError for a line that was changed."""
    found = ", ".join(f"{name} {lines(federation.site(name))}" for name in SITES)
    rounds = BackgroundRun(federation, "afterwards", rounds=1).end()
    answered = len(rounds[-1].losses)
    return [
        Outcome("all audit trails afterwards", "all", f"whole: {found} lines", held=True),
        Outcome("an honest run afterwards", "all", f"{answered} of {len(SITES)} updates", answered == len(SITES)),
    ]


PLAYS: Sequence[Play] = (
    strangers,
    repeated_sums,
    lying_server,
    agent_run,
    silent_connections,
    lying_site,
    late_site,
    wrong_clock,
    killed_command,
    trails,
)
