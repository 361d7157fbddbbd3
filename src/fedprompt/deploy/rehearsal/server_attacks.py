"""Messages of a lying server to the sites of a rehearsal, and what their audit trails say."""

from __future__ import annotations

import itertools
import secrets
from base64 import b64encode
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from fedprompt.deploy.audit import read_audit
from fedprompt.deploy.identity import load_identity
from fedprompt.deploy.rehearsal.lying_server import (
    ROUNDS,
    T1,
    T2,
    T4,
    TRIAL,
    Change,
    LyingServer,
    Outcome,
    changed,
    new_run,
)
from fedprompt.deploy.rehearsal.records_attacks import damaged_records, lines, unknown_types
from fedprompt.deploy.rehearsal.site_changes import (
    few_images,
    made_images,
    other_backbone,
    other_image,
    policy,
    training_images,
    undivided_images,
)
from fedprompt.deploy.secure_member import secure_sum_of_job
from fedprompt.federated.secure.envelope import SERVER, Envelope
from fedprompt.federated.secure.secure_client import SecureClient
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import Identity
from fedprompt.federated.secure.vector import vector_length
from fedprompt.runtimes.payload import DONE, EVALUATE, HELLO, MASKED_INPUT, MESSAGE, SHARE_KEYS, TRAIN, Payload
from fedprompt.runtimes.tensor_codec import decode

BUDGET, NOISE = 6.0, 1.0  # epsilon of the site's policy, which a few trainings with this noise reach
MOST_RUNS = 9  # that try to exceed it
SMALLEST = 5  # count that may leave a site, as its policy says by default
SECURE_SUM: Change = {"train.server.secure": {"share": 0.51}}


def privacy(name: str, *, noise: float, delta: float = 1e-3, epsilon: float = 4.0) -> Change:
    """The change of a recipe that asks for differential privacy."""
    return {
        "train.server.privacy": {"name": name, "clip": 1.0, "noise": noise, "epsilon": epsilon, "delta": delta},
        "method.sigma": 0.0,  # the LoRA phase depends on the images, which no privacy budget accounts for
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
        trained = [server.ask(site, TRAIN, run, change=sample)]
        silent = _without_figures(trained[0], server.ask(site, EVALUATE, run, change=sample))
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
        while len(trained) < MOST_RUNS and trained[-1].kind == DONE:
            trained.append(server.ask(site, TRAIN, new_run(), change=sample))
        last = server.judge("4: new runs until the budget is spent", site, trained[-1], ("epsilon",))
        # Plain trainings have no epsilon; their images are counted from when there is a budget.
        spent = max((epsilon for entry in read_audit(folder) if (epsilon := entry.fields["epsilon"])), default=0.0)
    happened = f"{last.happened} after {len(trained) - 1} trainings; epsilon {spent:.2f} of {BUDGET:g}"
    held = last.held and len(trained) > 1 and 0 < spent <= BUDGET
    return [*found, silent, Outcome(last.attack, T2, happened, held)]


def _without_figures(trained: Payload, tested: Payload) -> Outcome:
    """Whether a training and a score beside a privacy budget are answered without any figure of the images."""
    given = [name for name in ("loss", "validation") if trained.fields.get(name) is not None]
    given += ["score"] * (tested.fields.get("score") is not None)
    happened = f"it sends {', '.join(given) or 'no score and no loss'}, and an update with noise"
    held = not given and (tested.kind, trained.kind) == (DONE, DONE)
    return Outcome("exact losses and scores beside a privacy budget", T2, happened, held)


def secure_sums(server: LyingServer, site: str) -> list[Outcome]:
    """Lists of members that are too short or made up, and a plain request in a job of secure sums."""
    clients, own = list(range(len(server.folders))), list(server.folders).index(site)
    pair = sorted((own, (own + 1) % len(clients)))
    fields = {"members": pair, "nonce": secrets.token_hex(8)}
    short = server.ask(site, SHARE_KEYS, new_run(), change=SECURE_SUM, **fields)
    found = [server.judge("1: the site is told that there are two members", site, short, ("secure",))]
    twice = {"members": [*pair, pair[-1]], "nonce": secrets.token_hex(8)}
    repeated = server.ask(site, SHARE_KEYS, new_run(), change=SECURE_SUM, **twice)
    found.append(server.judge("1: a list of members with a site twice", site, repeated, ("secure",)))
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


def images_that_leave_no_trace(server: LyingServer, site: str) -> list[Outcome]:
    """What the preflight says of a class with two images, and of images that were made to stop the site."""
    folder = server.folders[site]
    with few_images(folder, left=2):
        images, said = len(training_images(folder)), server.ask(site, HELLO, new_run())
    counts, total = said.fields.get("labels", [0]), said.fields.get("images")
    hidden = isinstance(counts, list) and all(count is None for count in counts)
    withheld = said.kind == DONE and hidden and type(total) is int and images - SMALLEST < total < images
    happened = f"it says {total} of {images} images, and {'no' if hidden else 'the'} counts per class"
    found = [Outcome("14: a class with two images in the preflight", T1, happened, withheld)]
    with made_images(folder):
        said = server.ask(site, HELLO, new_run())
    answered = (
        said.kind == DONE
        and said.fields.get("images") == (images := len(training_images(folder))) // SMALLEST * SMALLEST
    )
    happened = f"{site} answered for its {images} other images" if answered else f"{said.kind or 'no answer'}"
    return [*found, Outcome("9, 10: a pipe and 2^60 pixels among its images", T4, happened, answered)]


def splits_and_scores(server: LyingServer, site: str) -> list[Outcome]:
    """Jobs that choose which images are tested, and what scores tell: which images a model gets right, and counts."""
    folder, found = server.folders[site], []
    sites, others = list(server.folders), [f"{name}-other" for name in server.folders]
    splits: Sequence[Change] = (
        {},
        {"data.test_fraction": 0.9, "data.seed": 7},
        {"data.test_fraction": 0.0, "seed": 9, "data.validation_fraction": 0.9},
        {"evaluate.held_out": 0.5, "partition.sites": sorted([*sites, *others])},
    )
    with undivided_images(folder):
        said = [
            server.ask(site, EVALUATE, new_run(), change=split, client=_client(split, sites, site)) for split in splits
        ]
        scores = [answer.fields.get("score") for answer in said]
        rule = {"partition": {"rule": "by_domain", "shots": 1}}
        chosen = server.ask(site, TRAIN, new_run(), change=rule)
        found.append(server.judge("a job that chooses training images by a partition", site, chosen, ("partition",)))
    same = all(answer.kind == DONE for answer in said) and scores.count(scores[0]) == len(scores)
    happened = f"{'one score' if same else 'several scores'} of one model under {len(splits)} splits"
    found.append(Outcome("scores under splits that the job names", T2, happened, same))
    return [*found, _rounded_score(server, site)]


def _client(split: Change, sites: Sequence[str], site: str) -> int:
    named = split.get("partition.sites", sites)
    assert isinstance(named, Sequence)
    return sorted(named).index(site)


def _rounded_score(server: LyingServer, site: str) -> Outcome:
    score = server.ask(site, EVALUATE, new_run()).fields.get("score") or {}
    total, figures = score.get("num_examples", 1), score.get("figures", {})
    right = figures.get("accuracy", 0.5) * total
    whole = total % SMALLEST == 0 and abs(right - round(right / SMALLEST) * SMALLEST) < 1e-6
    alone = not any(one is not None for one in (figures.get("macro_f1"), *score.get("per_class", ())))
    happened = f"{right:g} of {total} images right, {'no other figure' if alone else 'and further figures'}"
    return Outcome("14: a score that counts the images of a class", T1, happened, whole and alone)


ATTACKS: Sequence[Callable[[LyingServer, str], list[Outcome]]] = (
    order_and_facts,
    jobs_beyond_the_policy,
    secure_sums,
    budgets,
    images_that_leave_no_trace,
    splits_and_scores,
    unknown_types,
    damaged_records,
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
