"""What pretraining learns from and with: a ring of drawn lessons, the weights with their optimizers, and the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPModel

from fedprompt.demo.concepts import lexicon
from fedprompt.demo.drawing import SIZE, Dice
from fedprompt.demo.pretraining import captions
from fedprompt.demo.pretraining.forward import Reader, see
from fedprompt.demo.pretraining.samples import BACKGROUND, PATCH, UNSURE, Lesson, lesson
from fedprompt.seeding import stream

ASKED, MORE = 24, 12  # attributes, and absent concepts beside the classes, asked about in a step


class Pool:
    """A ring of drawn lessons: each serves about four times, because drawing costs as much as learning from it."""

    def __init__(self, seed: int, size: int, *, number: int, progress: float) -> None:
        self.seed, self.number = seed, number
        self.pixels = torch.empty(size, 3, SIZE, SIZE, dtype=torch.uint8)
        self.cells = torch.empty(size, (SIZE // PATCH) ** 2, dtype=torch.int64)
        self.lessons = [lesson(seed, number, progress)] * size
        self.refill(size, progress)

    def refill(self, count: int, progress: float) -> None:
        """Replace the oldest lessons by the next ones."""
        for _ in range(count):
            at, one = self.number % len(self.lessons), lesson(self.seed, self.number, progress)
            self.pixels[at], self.cells[at] = torch.from_numpy(one.pixels), torch.from_numpy(one.cells)
            self.lessons[at] = one
            self.number += 1


@dataclass
class Trainer:
    """Everything that changes while learning; one safetensors file holds it all."""

    seed: int
    batch: int
    model: CLIPModel  # float32
    twin: CLIPModel  # bfloat16, what the passes run through: seven times as fast on processors that know it
    step: int = 0
    seconds: float = 0.0
    muon: torch.optim.Optimizer = field(init=False)
    adam: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        named = dict(self.model.named_parameters())
        hidden = sorted(name for name, weight in named.items() if ".layers." in name and weight.ndim == 2)
        self.muon = torch.optim.Muon(
            [named[name] for name in hidden], lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
        others = [weight for name, weight in named.items() if name not in set(hidden)]
        self.adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, lr: float) -> None:
        """TransportFactory the twin's gradients to the float32 weights, step, and copy the weights back."""
        pairs = list(zip(self.model.parameters(), self.twin.parameters(), strict=True))
        for weight, copy in pairs:
            if copy.grad is not None:
                weight.grad, copy.grad = copy.grad.float(), None
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in ((self.muon, lr), (self.adam, lr / 2)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
            for weight, copy in pairs:
                copy.copy_(weight)

    def save(self, path: Path) -> None:
        """Write the whole course; the file is replaced at once."""
        state = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for name, optimizer in (("muon", self.muon), ("adam", self.adam)):
            for number, slots in optimizer.state_dict()["state"].items():
                state |= {f"{name}.{number}.{slot}": value for slot, value in slots.items()}
        facts = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file({name: value.contiguous() for name, value in state.items()}, path.with_suffix(".new"), metadata=facts)
        path.with_suffix(".new").rename(path)

    def restore(self, path: Path) -> None:
        """Continue from a file of `save`."""
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open has no __iter__)
            facts = file.metadata()
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.model.load_state_dict(_under(state, "model."))
        self.twin.load_state_dict(self.model.state_dict())
        for name, optimizer in (("muon", self.muon), ("adam", self.adam)):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(state, f"{name}.").items():
                number, _, slot = key.partition(".")
                slots.setdefault(int(number), {})[slot] = value
            optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Quiz:
    """What one step asks about its lessons: candidate concepts and attributes, and the answers."""

    candidates: tuple[int, ...]
    asked: tuple[str, ...]
    present: Tensor  # [B, K] 1 where the lesson shows the candidate
    has: Tensor  # [B, A] 1 where something in the lesson has the attribute

    def texts(self, dice: Dice) -> list[str]:
        """One sentence a candidate, one for what is nothing, one an attribute."""
        concepts = lexicon().concepts
        nouns = [captions.concept_text(dice, concepts[number]) for number in self.candidates]
        return [*nouns, captions.EMPTY, *(captions.attribute_text(dice, phrase) for phrase in self.asked)]

    def columns(self, cells: Tensor) -> Tensor:
        """Patch labels as positions among the candidates and, last, nothing; UNSURE stays."""
        column = torch.full((len(lexicon().concepts) + 2,), UNSURE)  # the last two answer for UNSURE and BACKGROUND
        column[list(self.candidates)] = torch.arange(len(self.candidates))
        column[BACKGROUND] = len(self.candidates)
        return column[cells]


def quiz(dice: Dice, lessons: Sequence[Lesson]) -> Quiz:
    """All classes, every concept shown and a few absent ones; some attributes."""
    world = lexicon()
    number = {name: position for position, name in enumerate(world.concepts)}
    shown = [[number[thing.concept] for thing in one.things] for one in lessons]
    more = dice.sample(range(len(number)), MORE)
    candidates = sorted({*range(len(world.classes)), *(concept for row in shown for concept in row), *more})
    asked = dice.sample(tuple(world.attributes), ASKED)
    column = {concept: position for position, concept in enumerate(candidates)}
    owners = [set(world.attributes[phrase]) for phrase in asked]
    present, has = torch.zeros(len(lessons), len(candidates)), torch.zeros(len(lessons), len(asked))
    for row, one in enumerate(lessons):
        present[row, [column[concept] for concept in shown[row]]] = 1
        names = {thing.concept for thing in one.things}
        has[row] = torch.tensor([float(bool(names & owner)) for owner in owners])
    return Quiz(tuple(candidates), tuple(asked), present, has)


def lesson_loss(course: Trainer, pool: Pool, reader: Reader) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy over concepts + 0.5 caption contrast + 0.5 of patches (RegionCLIP, 2022) + 0.3 of attributes."""
    generator, dice = stream(course.seed, "step", course.step), Dice(course.seed, "words", course.step)
    rows = torch.randint(len(pool.lessons), (course.batch,), generator=generator)
    lessons = [pool.lessons[row] for row in rows.tolist()]
    ask, told = quiz(dice, lessons), course.batch // 4  # captions are long: one lesson in four has one
    texts = ask.texts(dice) + [one.caption(dice) for one in lessons[:told]]
    image, patches, kept = see(course.twin, pool.pixels[rows], generator)
    text = reader.read(course.twin, texts, generator)
    nouns, phrases, said = torch.split(text, [len(ask.candidates) + 1, len(ask.asked), told])
    scale = course.model.logit_scale.exp()  # the float32 one: bfloat16 would round its steps away

    logits = scale * image @ nouns[:-1].T  # [B, K]
    known = ask.has.sum(dim=1) > 0
    half, target = scale * image[:told] @ said.T, torch.arange(told)  # [b, b]
    labels = ask.columns(pool.cells[rows].gather(1, kept))  # [B, k]
    weight = torch.ones(len(ask.candidates) + 1)
    weight[-1] = 0.3  # most patches show nothing
    local = scale * (patches @ nouns.T).flatten(0, 1)  # [B k, K + 1]
    parts = {
        "concept": F.cross_entropy(logits, _shares(ask.present)),
        "contrast": (F.cross_entropy(half, target) + F.cross_entropy(half.T, target)) / 2,
        "patch": F.cross_entropy(local, labels.flatten(), weight, ignore_index=UNSURE),
        "attribute": F.cross_entropy(scale * image[known] @ phrases.T, _shares(ask.has[known])),
    }
    loss = parts["concept"] + 0.5 * parts["contrast"] + 0.5 * parts["patch"] + 0.3 * parts["attribute"]
    single = ask.present.sum(dim=1) == 1
    right = (logits.argmax(dim=1) == ask.present.argmax(dim=1))[single].float().mean()
    facts = {**parts, "right": right, "scale": scale}
    return loss, {name: float(value.detach()) for name, value in facts.items()}


def _shares(rows: Tensor) -> Tensor:
    return rows / rows.sum(dim=1, keepdim=True)
