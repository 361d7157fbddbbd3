"""Trainer of the embedded CLIP: weights, optimisers, the loss, and checkpoints that resume bit for bit."""

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
from transformers import CLIPModel, CLIPTokenizer

from fedprompt.demo.pretraining.forward import COUNTS, TextEncoder, encode_images
from fedprompt.demo.pretraining.model import make_model
from fedprompt.demo.pretraining.samples import BACKGROUND, IGNORED, Batch
from fedprompt.seeding import stream

WEIGHTS = {"image": 1.0, "attribute": 0.5, "patch": 0.5, "text": 0.5, "contrast": 1.0}
GROUND_WEIGHT = 0.3  # of background patches, which are the most


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a stable rate, and a linear decay to zero over the last `decay` of `steps` steps.

    The rate before the decay does not depend on `steps`: any checkpoint can be decayed, or trained on.
    """

    steps: int
    decay: int
    late: int = 0  # the last so many steps have another mixture of images and captions
    lr: float = 2e-3
    warm_up: int = 300

    def decays(self, step: int) -> bool:
        """Whether the rate falls at a step."""
        return step >= self.steps - self.decay

    def is_late(self, step: int) -> bool:
        """Whether a step has the late mixture."""
        return step >= self.steps - max(self.late, self.decay)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        left = (self.steps - step) / max(1, self.decay)
        return self.lr * min(1.0, (step + 1) / self.warm_up, left)


def compute_type(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively (several times as fast), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.exists() else ""
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


@dataclass
class Trainer:
    """The state of pretraining, saved in one safetensors file."""

    seed: int
    tokenizer: CLIPTokenizer
    device: torch.device
    concepts: int
    attributes: int
    step: int = 0
    seconds: float = 0.0
    images: int = 0
    model: CLIPModel = field(init=False)  # float32
    fast: CLIPModel = field(init=False)  # the same in the compute type, for forward and backward passes
    prototypes: nn.Parameter = field(init=False)  # [K + 1, D], the last for the background
    attribute_prototypes: nn.Parameter = field(init=False)  # [A, D]
    muon: torch.optim.Optimizer = field(init=False)
    adam: torch.optim.Optimizer = field(init=False)
    text_encoder: TextEncoder = field(init=False)

    def __post_init__(self) -> None:
        self.text_encoder = TextEncoder(self.tokenizer)
        self.model = make_model(self.tokenizer, self.seed).to(self.device)
        self.fast = make_model(self.tokenizer, self.seed).to(self.device, compute_type(self.device))
        self.prototypes = self._new_prototypes("concepts", self.concepts + 1)
        self.attribute_prototypes = self._new_prototypes("attributes", self.attributes)
        named = dict(self.model.named_parameters())
        hidden = sorted(name for name, weight in named.items() if ".layers." in name and weight.ndim == 2)
        self.muon = torch.optim.Muon(
            [named[name] for name in hidden], lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
        others = [weight for name, weight in named.items() if name not in set(hidden)]
        others += [self.prototypes, self.attribute_prototypes]
        self.adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)

    def _new_prototypes(self, name: str, count: int) -> nn.Parameter:
        first = torch.randn(count, self.model.projection_dim, generator=stream(self.seed, "prototypes", name))
        return nn.Parameter((first * first.shape[1] ** -0.5).to(self.device))

    def update(self, lr: float) -> None:
        """Copy the gradients to the float32 weights, step, and copy the weights back."""
        pairs = list(zip(self.model.parameters(), self.fast.parameters(), strict=True))
        for weight, copy in pairs:
            if copy.grad is not None:
                weight.grad, copy.grad = copy.grad.float(), None
        nn.utils.clip_grad_norm_([*self.model.parameters(), self.prototypes, self.attribute_prototypes], 1.0)
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
        state |= {"prototypes": self.prototypes.data, "attribute_prototypes": self.attribute_prototypes.data}
        for name, optimizer in (("muon", self.muon), ("adam", self.adam)):
            for number, slots in optimizer.state_dict()["state"].items():
                state |= {f"{name}.{number}.{slot}": value for slot, value in slots.items()}
        facts = {"step": str(self.step), "seconds": str(self.seconds), "images": str(self.images)}
        save_file({name: value.contiguous() for name, value in state.items()}, path.with_suffix(".new"), metadata=facts)
        path.with_suffix(".new").rename(path)

    def restore(self, path: Path) -> None:
        """Load the state from a file of `save`."""
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open has no __iter__)
            facts = file.metadata()
        self.step, self.seconds, self.images = int(facts["step"]), float(facts["seconds"]), int(facts["images"])
        self.model.load_state_dict(_under(state, "model."))
        self.fast.load_state_dict(self.model.state_dict())
        self.prototypes.data.copy_(state["prototypes"])
        self.attribute_prototypes.data.copy_(state["attribute_prototypes"])
        for name, optimizer in (("muon", self.muon), ("adam", self.adam)):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(state, f"{name}.").items():
                number, _, slot = key.partition(".")
                slots.setdefault(int(number), {})[slot] = value
            optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})

    def loss(self, batch: Batch, counts: Sequence[int] = COUNTS) -> tuple[Tensor, dict[str, float]]:
        """Images against learned prototypes of concepts and attributes and against captions; patches and texts too.

        The prototypes only serve training. They teach the image tower to tell concepts apart, and the text tower what
        words stand for, much faster than the contrast of a small batch alone. `counts` are the numbers of patches that
        may be kept.
        """
        generator = stream(self.seed, "step", self.step)
        image, patches, kept = encode_images(self.fast, batch.pixels.to(self.device), generator, counts)
        text = self.text_encoder.encode(self.fast, batch.texts)  # [T, D]
        scale = self.model.logit_scale.exp()  # the float32 one: bfloat16 would round its steps away
        prototypes = scale * F.normalize(self.prototypes, dim=1).T  # [D, K + 1], the last for the background
        concept, captioned = batch.text_concept.to(self.device), batch.text_image.to(self.device)
        shares = batch.shares(prototypes.shape[1]).to(self.device)  # [B, K + 1]
        labels = batch.patches.to(self.device).gather(1, kept)  # [B, k]
        labels = torch.where(labels == BACKGROUND, prototypes.shape[1] - 1, labels).flatten()
        weight = torch.ones(prototypes.shape[1], device=self.device)
        weight[-1] = GROUND_WEIGHT
        scores = image @ prototypes
        parts = {
            "image": F.cross_entropy(scores, shares),
            "attribute": F.cross_entropy(
                scale * image @ F.normalize(self.attribute_prototypes, dim=1).T, batch.attributes.to(self.device)
            ),
            "patch": F.cross_entropy((patches @ prototypes).flatten(0, 1), labels, weight, ignore_index=IGNORED),
            "text": F.cross_entropy(text @ prototypes, concept),
            "contrast": _contrast(scale * image[captioned] @ text[: len(captioned)].T, concept[: len(captioned)]),
        }
        loss = sum((WEIGHTS[name] * part for name, part in parts.items()), start=torch.zeros((), device=self.device))
        right = shares.gather(1, scores.argmax(dim=1, keepdim=True)).gt(0).float().mean()
        facts = {**parts, "right": right, "scale": scale}
        return loss, {name: float(value.detach()) for name, value in facts.items()}


def _contrast(logits: Tensor, concept: Tensor) -> Tensor:
    """CLIP's loss of [S, S] pairs, texts of the same concept in other pairs left out."""
    same = (concept[:, None] == concept) & ~torch.eye(len(concept), dtype=torch.bool, device=logits.device)
    logits, target = logits.masked_fill(same, -1e4), torch.arange(len(concept), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
