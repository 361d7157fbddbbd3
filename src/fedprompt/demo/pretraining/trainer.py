"""Trainer of the embedded CLIP: a ring buffer of samples, the weights with their optimisers, and the loss."""

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

from fedprompt.demo.concepts import load_concepts
from fedprompt.demo.drawing import SIZE, Draws
from fedprompt.demo.pretraining import captions
from fedprompt.demo.pretraining.forward import TextEncoder, encode_images
from fedprompt.demo.pretraining.samples import BACKGROUND, IGNORED, PATCH, PretrainingSample, draw_sample
from fedprompt.seeding import stream

STEP_ATTRIBUTES, EXTRA_CONCEPTS = 24, 12  # attributes, and absent concepts beside the classes, in a step's loss


class SampleBuffer:
    """A ring buffer of samples: each is used about four times, because drawing costs as much as a training step."""

    def __init__(self, seed: int, size: int, *, number: int, progress: float) -> None:
        self.seed, self.number = seed, number
        self.pixels = torch.empty(size, 3, SIZE, SIZE, dtype=torch.uint8)
        self.patch_labels = torch.empty(size, (SIZE // PATCH) ** 2, dtype=torch.int64)
        self.samples = [draw_sample(seed, number, progress)] * size
        self.refill(size, progress)

    def refill(self, count: int, progress: float) -> None:
        """Replace the oldest samples by the next ones."""
        for _ in range(count):
            at, one = self.number % len(self.samples), draw_sample(self.seed, self.number, progress)
            self.pixels[at], self.patch_labels[at] = torch.from_numpy(one.pixels), torch.from_numpy(one.patch_labels)
            self.samples[at] = one
            self.number += 1


@dataclass
class Trainer:
    """The state of pretraining, saved in one safetensors file."""

    seed: int
    batch: int
    model: CLIPModel  # float32
    bf16_model: CLIPModel  # bfloat16, for forward and backward: seven times as fast on processors that support it
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
        """Copy the bfloat16 gradients to the float32 weights, step, and copy the weights back."""
        pairs = list(zip(self.model.parameters(), self.bf16_model.parameters(), strict=True))
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
        """Write the whole state; the file is replaced atomically."""
        state = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for name, optimizer in (("muon", self.muon), ("adam", self.adam)):
            for number, slots in optimizer.state_dict()["state"].items():
                state |= {f"{name}.{number}.{slot}": value for slot, value in slots.items()}
        facts = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file({name: value.contiguous() for name, value in state.items()}, path.with_suffix(".new"), metadata=facts)
        path.with_suffix(".new").rename(path)

    def restore(self, path: Path) -> None:
        """Load the state from a file of `save`."""
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open has no __iter__)
            facts = file.metadata()
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.model.load_state_dict(_under(state, "model."))
        self.bf16_model.load_state_dict(self.model.state_dict())
        for name, optimizer in (("muon", self.muon), ("adam", self.adam)):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(state, f"{name}.").items():
                number, _, slot = key.partition(".")
                slots.setdefault(int(number), {})[slot] = value
            optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class StepTargets:
    """The targets of one step: candidate concepts and attributes, and which of its samples show them."""

    candidates: tuple[int, ...]
    attributes: tuple[str, ...]
    present: Tensor  # [B, K] 1 where the sample shows the candidate
    has: Tensor  # [B, A] 1 where an object in the sample has the attribute

    def texts(self, draws: Draws) -> list[str]:
        """One sentence per candidate, one for the background, one per attribute."""
        concepts = load_concepts().concepts
        concept_texts = [captions.concept_text(draws, concepts[number]) for number in self.candidates]
        return [*concept_texts, captions.EMPTY, *(captions.attribute_text(draws, phrase) for phrase in self.attributes)]

    def columns(self, patch_labels: Tensor) -> Tensor:
        """Patch labels as positions among the candidates, then the background; IGNORED stays."""
        column = torch.full((len(load_concepts().concepts) + 2,), IGNORED)  # the last two are IGNORED and BACKGROUND
        column[list(self.candidates)] = torch.arange(len(self.candidates))
        column[BACKGROUND] = len(self.candidates)
        return column[patch_labels]


def make_targets(draws: Draws, samples: Sequence[PretrainingSample]) -> StepTargets:
    """All classes, every concept shown and a few absent ones as candidates; some attributes."""
    world = load_concepts()
    number = {name: position for position, name in enumerate(world.concepts)}
    shown = [[number[icon.concept] for icon in one.icons] for one in samples]
    more = draws.sample(range(len(number)), EXTRA_CONCEPTS)
    candidates = sorted({*range(len(world.classes)), *(concept for row in shown for concept in row), *more})
    attributes = draws.sample(tuple(world.attributes), STEP_ATTRIBUTES)
    column = {concept: position for position, concept in enumerate(candidates)}
    owners = [set(world.attributes[phrase]) for phrase in attributes]
    present, has = torch.zeros(len(samples), len(candidates)), torch.zeros(len(samples), len(attributes))
    for row, one in enumerate(samples):
        present[row, [column[concept] for concept in shown[row]]] = 1
        names = {icon.concept for icon in one.icons}
        has[row] = torch.tensor([float(bool(names & owner)) for owner in owners])
    return StepTargets(tuple(candidates), tuple(attributes), present, has)


def step_loss(trainer: Trainer, buffer: SampleBuffer, text_encoder: TextEncoder) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy over concepts + 0.5 caption contrast + 0.5 of patches (RegionCLIP, 2022) + 0.3 of attributes."""
    generator, draws = stream(trainer.seed, "step", trainer.step), Draws(trainer.seed, "words", trainer.step)
    rows = torch.randint(len(buffer.samples), (trainer.batch,), generator=generator)
    samples = [buffer.samples[row] for row in rows.tolist()]
    targets = make_targets(draws, samples)
    captioned = trainer.batch // 4  # captions are long: one sample in four has one
    texts = targets.texts(draws) + [one.caption(draws) for one in samples[:captioned]]
    image, patches, kept = encode_images(trainer.bf16_model, buffer.pixels[rows], generator)
    text = text_encoder.encode(trainer.bf16_model, texts, generator)
    counts = [len(targets.candidates) + 1, len(targets.attributes), captioned]
    concept_features, attribute_features, caption_features = torch.split(text, counts)
    scale = trainer.model.logit_scale.exp()  # the float32 one: bfloat16 would round its steps away

    logits = scale * image @ concept_features[:-1].T  # [B, K]
    known = targets.has.sum(dim=1) > 0
    pairs, target = scale * image[:captioned] @ caption_features.T, torch.arange(captioned)  # [b, b]
    labels = targets.columns(buffer.patch_labels[rows].gather(1, kept))  # [B, k]
    weight = torch.ones(len(targets.candidates) + 1)
    weight[-1] = 0.3  # most patches are background
    local = scale * (patches @ concept_features.T).flatten(0, 1)  # [B k, K + 1]
    parts = {
        "concept": F.cross_entropy(logits, _shares(targets.present)),
        "contrast": (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target)) / 2,
        "patch": F.cross_entropy(local, labels.flatten(), weight, ignore_index=IGNORED),
        "attribute": F.cross_entropy(scale * image[known] @ attribute_features.T, _shares(targets.has[known])),
    }
    loss = parts["concept"] + 0.5 * parts["contrast"] + 0.5 * parts["patch"] + 0.3 * parts["attribute"]
    single = targets.present.sum(dim=1) == 1
    right = (logits.argmax(dim=1) == targets.present.argmax(dim=1))[single].float().mean()
    facts = {**parts, "right": right, "scale": scale}
    return loss, {name: float(value.detach()) for name, value in facts.items()}


def _shares(rows: Tensor) -> Tensor:
    return rows / rows.sum(dim=1, keepdim=True)
