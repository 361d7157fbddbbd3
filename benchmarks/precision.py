"""Benchmark of precisions: what each one costs in accuracy on the embedded CLIP, frozen and with trained methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import DTYPES, Precision
from fedprompt.demo import weights_folder
from fedprompt.demo.emoji import BASE, emoji
from fedprompt.demo.pretraining.evaluate import SEED, evaluate
from fedprompt.demo.sprites import SEEN
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.evaluate import predict
from fedprompt.federated.rounds import initial_state
from fedprompt.seeding import stream

FULL: Precision = "float32"


def precision(
    *, test: int = 2, scenes_test: int = 20, rounds: int = 2, names: Sequence[str] = ("promptfl", "fedmvp")
) -> dict[str, float]:
    """Percent of images right (or mAP) in float32, and in points how far the other precisions are from it."""
    found = {
        one: {**_frozen(one, test, scenes_test), **{name: _trained(name, one, test, rounds) for name in names}}
        for one in DTYPES
    }
    table: dict[str, float] = {}
    for what, value in found[FULL].items():
        table[f"{what}: {FULL}"] = value
        table |= {f"{what}: {one}, points": found[one][what] - value for one in DTYPES if one != FULL}
    return table


def _frozen(precision: Precision, test: int, scenes_test: int) -> Mapping[str, float]:
    clip = Clip.load(weights_folder(), precision=precision)
    measured = evaluate(clip, test=test, scenes_test=scenes_test)
    return {one.name: one.value for one in measured if one.name.startswith("zero-shot") or "mAP" in one.name}


def _trained(name: str, precision: Precision, test: int, rounds: int) -> float:
    """Accuracy on test images of base classes after these rounds of one client with one image per class and style."""
    clip = Clip.load(weights_folder(), precision=precision)
    data = emoji(seed=SEED, train=1, test=test)
    train, held = (
        data.examples(data.rows(split=split, domains=SEEN, classes=range(BASE)), range(BASE))
        for split in ("train", "test")
    )
    method = methods.load(name)(clip, generator=stream(1, "method"))
    shared, personal = initial_state(method)
    settings = TrainSettings(rounds=rounds, batch_size=32, lr=0.003)
    for number in range(1, rounds + 1):
        update = train_client(
            method,
            clip,
            Client(0, "client", train),
            shared=shared,
            personal=personal,
            round_number=number,
            settings=settings,
        )
        shared, personal = {**shared, **update.shared}, {**personal, **update.personal}
    method.load_state_dict({**shared, **personal})
    chosen = predict(method.eval(), clip, held.images, held.space).argmax(dim=1)
    return 100 * float((chosen == held.targets).float().mean())
