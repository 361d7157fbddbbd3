"""Messages of a lying server to the sites of a rehearsal, and what their audit trails say."""

from __future__ import annotations

import itertools
import secrets
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import load_file, save_file

from fedprompt.demo import weights_folder
from fedprompt.deploy.audit import read_audit
from fedprompt.deploy.identity import load_identity
from fedprompt.deploy.rehearsal.lying_server import ROUNDS, T2, TRIAL, Change, LyingServer, Outcome, changed, new_run
from fedprompt.deploy.secure_member import secure_sum_of_job
from fedprompt.deploy.settings import SITE, load_site, save
from fedprompt.federated.secure.envelope import SERVER, Envelope
from fedprompt.federated.secure.secure_client import SecureClient
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import Identity
from fedprompt.federated.secure.vector import vector_length
from fedprompt.runtimes.payload import DONE, HELLO, MASKED_INPUT, MESSAGE, SHARE_KEYS, TRAIN, Payload
from fedprompt.runtimes.tensor_codec import decode

BUDGET = 4.5  # epsilon of the site's policy: two trainings with NOISE, and no third
NOISE = 1.0
MOST_RUNS = 8  # runs that try to exceed it
SECURE_SUM: Change = {"train.server.secure": {"share": 0.51}}


def privacy(name: str, *, noise: float, delta: float = 1e-3, epsilon: float = 4.0) -> Change:
    """The change of a recipe that asks for differential privacy."""
    return {
        "train.server.privacy": {"name": name, "clip": 1.0, "noise": noise, "epsilon": epsilon, "delta": delta},
    }


def order_and_facts(server: LyingServer, site: str) -> list[Outcome]:
    """A run that begins honestly; then replays, other rounds, other recipes, other sites, other images and backbone."""
    run, folder, found = new_run(), server.folders[site], []

    def attack(what: str, rule: str, change: Change | None = None, **fields: object) -> None:
        answer = server.ask(site, TRAIN, run, change=change, **fields)
        found.append(server.judge(what, site, answer, (rule,)))

    begun = [server.ask(site, HELLO, run)]
    first = server.message(site, TRAIN, run, change={})
    begun.append(server.send(site, first))
    found.append(server.judge("a message sent again", site, server.send(site, first), ("order",)))
    attack("a round that the recipe lacks", "order", round=ROUNDS + 1)
    attack("another recipe in the same run", "pinned recipe", {"train.lr": 0.5})
    attack("a request for another site", "name", client=(list(server.folders).index(site) + 1) % len(server.folders))
    with other_image(folder):
        attack("7: an image changed after the preflight", "pinned data")
    with other_backbone(folder):
        attack("7: the backbone changed after the preflight", "pinned backbone")
    begun.append(server.ask(site, TRAIN, run, round=2))
    done = sum(answer.kind == DONE for answer in begun)
    happened = f"{done} of {len(begun)} honest messages answered, before and after the attacks"
    return [*found, Outcome("the honest messages of that run", T2, happened, done == len(begun))]


def jobs_beyond_the_policy(server: LyingServer, site: str) -> list[Outcome]:
    """Jobs that name a path or code."""
    cases: Sequence[tuple[str, str, Change]] = (
        ("20: a path as backbone", "backbone", {"backbone.path": str(server.folders[site])}),
        ("code as aggregation rule", "own code", {"train.server.aggregate": {"name": "os:system"}}),
        ("code as method", "methods", {"method.name": "os.path"}),
    )
    return [
        server.judge(what, site, server.ask(site, HELLO, new_run(), change=change), (rule,))
        for what, rule, change in cases
    ]


def budgets(server: LyingServer, site: str) -> list[Outcome]:
    """Claims of noise and delta against a site whose policy has a privacy budget."""
    if find_spec("dp_accounting") is None:
        return [
            Outcome("4, 5, 6: claims of noise and delta", T2, "not tried: fedprompt[privacy] is missing", held=False)
        ]
    folder, run = server.folders[site], new_run()
    sample = privacy("sample", noise=NOISE)
    with policy(folder, epsilon=BUDGET):
        server.ask(site, TRAIN, run, change=sample)
        cases: Sequence[tuple[str, str, str, Change]] = (
            ("4: the same run with noise 1000", run, "pinned recipe", privacy("sample", noise=1000.0)),
            ("5: delta = 0.9999", new_run(), "delta", privacy("sample", noise=NOISE, delta=0.9999)),
            ("6: noise that the server adds", new_run(), "epsilon", privacy("client", noise=100.0)),
            ("6: no noise at all", new_run(), "epsilon", {}),
        )
        found = [
            server.judge(what, site, server.ask(site, TRAIN, number, change=change), (rule,))
            for what, number, rule, change in cases
        ]
        answer = Payload(DONE)
        for _ in range(MOST_RUNS):
            answer = server.ask(site, TRAIN, new_run(), change=sample)
            if answer.kind != DONE:
                break
        last = server.judge("4: new runs until the budget is spent", site, answer, ("epsilon",))
        # Plain trainings have no epsilon; their images are counted from when there is a budget.
        spent = max((epsilon for entry in read_audit(folder) if (epsilon := entry.fields["epsilon"])), default=0.0)
    happened = f"{last.happened}; epsilon {spent:.2f} of {BUDGET:g}"
    return [*found, Outcome(last.attack, T2, happened, held=last.held and 0 < spent <= BUDGET)]


def secure_sums(server: LyingServer, site: str) -> list[Outcome]:
    """Lists of members that are too short or made up, and a plain request in a job of secure sums."""
    clients, own = list(range(len(server.folders))), list(server.folders).index(site)
    pair = sorted((own, (own + 1) % len(clients)))
    fields = {"members": pair, "nonce": secrets.token_hex(8)}
    short = server.ask(site, SHARE_KEYS, new_run(), change=SECURE_SUM, **fields)
    found = [server.judge("1: the site is told that there are two members", site, short, ("secure",))]
    plain = server.ask(site, TRAIN, new_run(), change=SECURE_SUM)
    found.append(server.judge("1: a plain update in a job of secure sums", site, plain, ("request",)))
    return [*found, _made_up_members(server, site, clients, own)]


def _made_up_members(server: LyingServer, site: str, clients: list[int], own: int) -> Outcome:
    """The server plays all other sites with keys of its own, whose sum would be the site's update."""
    what, run, nonce = "2: the server plays all other members", new_run(), secrets.token_hex(8)
    fields = {"members": clients, "nonce": nonce}
    said = server.ask(site, SHARE_KEYS, run, change=SECURE_SUM, **fields)
    if said.kind != DONE:
        return Outcome(what, T2, f"not tried: {said.fields.get('reason', 'no answer')}", held=False)
    played = {number: Identity.generate() for number in clients if number != own}
    public = {number: identity.public for number, identity in played.items()}
    public[own] = load_identity(server.folders[site]).public
    job = {"recipe": changed(server.recipe, SECURE_SUM), "run": run, "trial": TRIAL}
    secure = secure_sum_of_job(SecureSum(share=0.51), job, public)
    session = secure.session(1, clients, length=vector_length(decode(server.start)), nonce=nonce)
    parts = {}
    for number, identity in played.items():
        shared = Envelope.from_bytes(SecureClient(number, session, identity).share_keys()).parts
        parts[number] = shared[number] + shared[own]
    message = b64encode(Envelope("share_keys", SERVER, 1, parts).to_bytes()).decode()
    answer = server.ask(site, MASKED_INPUT, run, change=SECURE_SUM, **fields, **{MESSAGE: message})
    return server.judge(what, site, answer, ("secure", "message"))


ATTACKS: Sequence[Callable[[LyingServer, str], list[Outcome]]] = (
    order_and_facts,
    jobs_beyond_the_policy,
    secure_sums,
    budgets,
)


def attack_sites(server: LyingServer) -> list[Outcome]:
    """Play every attack, each on another site in turn, and verify the audit trails afterwards."""
    before = {name: lines(folder) for name, folder in server.folders.items()}
    found = []
    for attack, site in zip(ATTACKS, itertools.cycle(server.folders), strict=False):
        found += attack(server, site)
    for name, folder in server.folders.items():
        new, sent = lines(folder) - before[name], server.sent[name]
        happened = f"{sent} messages, {new} lines; both hash chains are whole"
        found.append(Outcome(f"the audit trail of {name}", T2, happened, new == sent))
    return found


def lines(folder: Path) -> int:
    """The lines of a site's audit trail, which is verified; DamagedError for one that was changed."""
    return sum(1 for _ in read_audit(folder))


@contextmanager
def policy(folder: Path, **changes: object) -> Iterator[None]:
    """A site whose administrator has another policy for a while."""
    site = load_site(folder)
    save(folder / SITE, site.model_copy(update={"policy": site.policy.model_copy(update=changes)}))
    try:
        yield
    finally:
        save(folder / SITE, site)


@contextmanager
def other_image(folder: Path) -> Iterator[None]:
    """A site one of whose training images is another for a while."""
    first, second = sorted(Path(load_site(folder).data, "train").rglob("*.png"))[:2]
    before = first.read_bytes()
    shutil.copyfile(second, first)
    try:
        yield
    finally:
        first.write_bytes(before)


@contextmanager
def other_backbone(folder: Path) -> Iterator[None]:
    """A site whose settings name another backbone for a while: the demo's, with one other weight."""
    shutil.copytree(weights_folder(), folder / "other-backbone", dirs_exist_ok=True)
    path = next((folder / "other-backbone").glob("*.safetensors"))
    weights = load_file(path)
    name = min(weights)
    save_file({**weights, name: weights[name] + 1}, path, {"format": "pt"})
    site = load_site(folder)
    save(folder / SITE, site.model_copy(update={"backbone": str(folder / "other-backbone")}))
    try:
        yield
    finally:
        save(folder / SITE, site)
        shutil.rmtree(folder / "other-backbone")
