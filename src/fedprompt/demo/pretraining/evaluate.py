"""The eight acceptance targets of the embedded CLIP, measured before any federated run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Dataset
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace, with_attribute
from fedprompt.demo.emoji import BASE, emoji
from fedprompt.demo.render import PATCH, SIZE
from fedprompt.demo.rendered import RenderedImages
from fedprompt.demo.scenes import compose, paint_scene, scenes
from fedprompt.demo.sprites import MONO, SEEN, UNSEEN
from fedprompt.methods.fedvpt import FedVPT
from fedprompt.ops.layers import unit
from fedprompt.ops.metrics import mean_average_precision
from fedprompt.ops.scoring import region_scores
from fedprompt.seeding import stream

SEED = 1000  # images that no run with seed 0, 1, 2, ... sees
SHOTS, CLIENTS = 8, 3


@dataclass(frozen=True)
class Target:
    """One measured value with the bounds that it must keep."""

    code: str  # "A1"
    name: str
    value: float
    low: float = -float("inf")
    high: float = float("inf")

    @property
    def holds(self) -> bool:
        """Whether the value lies within its bounds."""
        return self.low <= self.value <= self.high

    def row(self) -> str:
        """A row of the card's table."""
        low, high = (f"{bound:g}" if abs(bound) < float("inf") else "" for bound in (self.low, self.high))
        bounds = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""
        verdict = ("yes" if self.holds else "**no**") if bounds else ""
        return f"| {self.code} | {self.name} | {self.value:.1f} | {bounds} | {verdict} |"


@dataclass(frozen=True, eq=False)
class Measured:
    """Features of the test images of `emoji`, shared by the measurements. Classes are base or new."""

    clip: Clip
    dataset: Dataset

    def accuracy(self, classes: range, artists: Sequence[str], text: Tensor | None = None) -> float:
        """Zero-shot accuracy in percent among these classes; `text` [C, D] replaces the names' features."""
        images, labels = self.images(classes, artists)
        text = self.clip.text_features(self.dataset.space.take(classes).texts()) if text is None else text
        return share((self.clip.image_features(images) @ text.T).argmax(dim=1) == labels)

    def images(self, classes: range, artists: Sequence[str], split: str = "test") -> tuple[Images, Tensor]:
        """Images and their positions among the classes."""
        rows = self.dataset.rows(split=split, classes=classes, domains=artists)
        examples = self.dataset.examples(rows, classes)
        return examples.images, examples.targets


BASE_CLASSES, NEW_CLASSES = range(BASE), range(BASE, 2 * BASE)


def share(right: Tensor) -> float:
    """The percentage of true entries."""
    return 100 * float(right.float().mean())


def evaluate(clip: Clip, others: Dataset | None = None, *, test: int = 12, scenes_test: int = 80) -> tuple[Target, ...]:
    """Measure all targets; `others` has classes of the same look that are no downstream classes, for A2.

    `test` images per class and artist, and `scenes_test` scenes per domain.
    """
    measured = Measured(clip, emoji(seed=SEED, train=SHOTS, test=test))
    multi = scenes(seed=SEED, train=0, test=scenes_test)
    with torch.inference_mode():
        found = [*_zero_shot(measured), *_words(measured), *_tolerance(measured), *_artists(measured)]
    found += [*_probe(measured), *_clients(measured)]
    if others is not None:
        found += _look(measured, others)
    with torch.inference_mode():
        found += _scenes(clip, multi)
    return tuple(sorted(found, key=lambda target: target.code))


def table(targets: Sequence[Target]) -> str:
    """The targets as a Markdown table."""
    head = ["| | measured | value | target | holds |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(target.row() for target in targets)])


def _zero_shot(measured: Measured) -> list[Target]:
    base, new = (measured.accuracy(classes, SEEN) for classes in (BASE_CLASSES, NEW_CLASSES))
    return [
        Target("A1", "zero-shot by name, 60 base classes", base, 60, 76),
        Target("A1", "zero-shot by name, 60 new classes", new, 60, 76),
        Target("A1", "base minus new", base - new, -5, 5),
    ]


def _look(measured: Measured, others: Dataset) -> list[Target]:
    """Points that visual prompts gain downstream when trained on other classes: what the look alone teaches."""
    clip = measured.clip
    method = FedVPT(clip, depth=1, generator=stream(SEED, "vpt"))
    examples = others.examples(others.rows(split="train"))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    classify = method.classifier(clip, examples.space)
    for epoch in range(6):
        order = torch.randperm(len(examples), generator=stream(SEED, "vpt", epoch))
        for rows in torch.split(order, 32):
            loss = F.cross_entropy(classify(examples.images.take(rows.tolist())), examples.targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    found = []
    for name, classes in (("base", BASE_CLASSES), ("new", NEW_CLASSES)):
        images, labels = measured.images(classes, SEEN)
        with torch.inference_mode():
            scores = method.classifier(clip, measured.dataset.space.take(classes))
            parts = [scores(images.take(part.tolist())) for part in torch.split(torch.arange(len(images)), 128)]
        moved = share(torch.cat(parts).argmax(dim=1) == labels) - measured.accuracy(classes, SEEN)
        found.append(Target("A2", f"points that prompts trained on other classes move {name}", moved, high=2))
    return found


def _probe(measured: Measured) -> list[Target]:
    """A linear probe on SHOTS images per base class, spread over the seen artists, against zero-shot."""
    clip, (images, labels) = measured.clip, measured.images(BASE_CLASSES, SEEN, "train")
    kept = torch.cat([(labels == label).nonzero()[:, 0][:: len(SEEN)][:SHOTS] for label in BASE_CLASSES])
    features = clip.image_features(images)[kept] * 10
    weight = torch.zeros(BASE, features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T, labels[kept]) + 1e-3 * weight.square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    gain = measured.accuracy(BASE_CLASSES, SEEN, weight.detach()) - measured.accuracy(BASE_CLASSES, SEEN)
    return [Target("A3", f"{SHOTS}-shot linear probe minus zero-shot, base classes", gain, low=8)]


def _mean_text(clip: Clip, texts: Sequence[Sequence[str]]) -> Tensor:
    """[C, D] the mean feature of each class's texts."""
    found = clip.text_features([text for own in texts for text in own])
    return torch.stack([unit(part.mean(dim=0)) for part in torch.split(found, [len(own) for own in texts])])


def _words(measured: Measured) -> list[Target]:
    """What attributes add to names, what wrong ones cost, and what they are worth alone, on new classes."""
    clip, space = measured.clip, measured.dataset.space.take(NEW_CLASSES)

    def accuracy(texts: Sequence[Sequence[str]]) -> float:
        return measured.accuracy(NEW_CLASSES, SEEN, _mean_text(clip, texts))

    names, right = measured.accuracy(NEW_CLASSES, SEEN), accuracy(space.attribute_texts())
    wrong = accuracy(shuffled(space).attribute_texts())
    bare = accuracy(
        [[with_attribute("a photo of a thing.", phrase) for phrase in space.attributes[n]] for n in space.names]
    )
    return [
        Target("A4", "attribute sentences minus names, new classes", right - names, 1, 5),
        Target("A4", "sentences with shuffled attributes minus right ones", wrong - right, high=-2),
        Target("A4", "bare attributes, percent of the names' accuracy", 100 * bare / max(names, 1e-9), low=40),
    ]


def shuffled(space: LabelSpace) -> LabelSpace:
    """The space with every class's attributes taken from another class."""
    order = torch.randperm(len(space), generator=stream(SEED, "shuffled")).tolist()
    names = [space.names[position] for position in order]
    attributes = {name: space.attributes[names[number - 1]] for number, name in enumerate(names)}
    return replace(space, attributes={name: attributes[name] for name in space.names})


def _tolerance(measured: Measured) -> list[Target]:
    """Points lost to four random tokens (std 0.02), once after the patches, once before the class names."""
    clip, (images, labels) = measured.clip, measured.images(NEW_CLASSES, SEEN)
    names, generator = measured.dataset.space.take(NEW_CLASSES), stream(SEED, "random tokens")
    text, before = clip.text_features(names.texts()), measured.accuracy(NEW_CLASSES, SEEN)
    embeddings, appended, renamed = clip.image_embeddings(images), [], []
    for _ in range(3):
        tokens = 0.02 * torch.randn(4, clip.image_width, generator=generator)
        extended = torch.cat([embeddings, tokens.expand(len(embeddings), -1, -1)], dim=1)  # [B, 1 + P + 4, W]
        moved = torch.cat([clip.encode_image(part).image for part in torch.split(extended, 256)])
        appended.append(before - share((moved @ text.T).argmax(dim=1) == labels))
        context = 0.02 * torch.randn(4, clip.text_width, generator=generator)
        prompts = clip.fill([f"<ctx> {name}." for name in names.names], ctx=context)
        renamed.append(before - measured.accuracy(NEW_CLASSES, SEEN, unit(clip.encode_text(prompts))))
    return [
        Target("A5", "points lost to four random visual tokens", sum(appended) / 3, high=2),
        Target("A5", "points lost to a random text context", sum(renamed) / 3, 5, 25),
    ]


def _artists(measured: Measured) -> list[Target]:
    """Zero-shot accuracy by artist, base and new classes alike."""

    def both(artists: Sequence[str]) -> float:
        return (measured.accuracy(BASE_CLASSES, artists) + measured.accuracy(NEW_CLASSES, artists)) / 2

    seen = both(SEEN)
    found = [Target("", f"zero-shot {artist}", both([artist])) for artist in SEEN]
    for artist in UNSEEN:
        low = 20 if artist == MONO else seen / 2
        found.append(Target("A6", f"zero-shot {artist} (unseen)", both([artist]), low=low))
    return found


def _clients(measured: Measured) -> list[Target]:
    """Cross-entropy of the clients' images over their own classes before training, base classes dealt to CLIENTS."""
    clip, losses = measured.clip, []
    for client in range(CLIENTS):
        classes = range(client * BASE // CLIENTS, (client + 1) * BASE // CLIENTS)
        images, labels = measured.images(classes, SEEN, "train")
        text = clip.text_features(measured.dataset.space.take(classes).texts())
        losses.append(float(F.cross_entropy(clip.scale * clip.image_features(images) @ text.T, labels)))
    return [Target("A7", "cross-entropy at clients of 20 classes, times 100", 100 * sum(losses) / CLIENTS, low=60)]


def _scenes(clip: Clip, multi: Dataset) -> list[Target]:
    text, found = clip.text_features(multi.space.texts()), []
    for split, name in (("test", "natural"), ("broken", "broken")):
        rows = multi.rows(split=split)
        images, targets = multi.examples(rows).images, multi.targets[rows]
        kinds: dict[str, Callable[[], Tensor]] = {
            "patches": lambda images=images: region_scores(clip.patch_features(images), text),  # type: ignore[misc]
            "class token": lambda images=images: clip.image_features(images) @ text.T,  # type: ignore[misc]
        }
        for kind, scores in kinds.items():
            bounds = (45, 75) if kind == "patches" else (-float("inf"), float("inf"))
            value = 100 * mean_average_precision(scores(), targets)[0]
            found.append(Target("A8", f"scenes {name} mAP, {kind}", value, *bounds))
    return [*found, *_localisation(clip, multi, text)]


def _localisation(clip: Clip, multi: Dataset, text: Tensor) -> list[Target]:
    """How often the best patch for an object lies on it, in scenes of two objects; and how often by chance."""
    rows = [row for row in range(len(multi.targets)) if int(multi.targets[row].sum()) == 2]
    best = (clip.patch_features(multi.examples(torch.tensor(rows)).images) @ text.T).argmax(dim=1)  # [B, C]
    assert isinstance(multi.source, RenderedImages)
    hits, by_chance = [], []
    for row, patches in zip(rows, best, strict=True):
        scene = compose(SEED, multi.source.addresses[row])
        for label, cover in zip(scene.labels, paint_scene(scene)[1], strict=True):
            touched = F.max_pool2d(cover[None, None], PATCH).flatten() > 0.5  # [P]
            assert len(touched) == (SIZE // PATCH) ** 2
            hits.append(touched[patches[label]])
            by_chance.append(touched.float().mean())
    return [
        Target("A8", "best patch on its object, scenes of two objects", share(torch.stack(hits)), low=85),
        Target("A8", "the same by chance", 100 * float(torch.stack(by_chance).mean())),
    ]
