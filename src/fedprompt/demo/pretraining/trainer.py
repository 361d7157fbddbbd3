"""Trainer of the embedded CLIP: the weights with their optimisers, the loss, and checkpoints that resume bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPModel, CLIPTokenizer

from fedprompt.demo.pretraining.captions import EMPTY
from fedprompt.demo.pretraining.forward import TextEncoder, encode_images
from fedprompt.demo.pretraining.model import make_model
from fedprompt.demo.pretraining.samples import BACKGROUND, IGNORED, Batch
from fedprompt.seeding import stream

PATCH_WEIGHT, GROUND_WEIGHT = 0.5, 0.3  # of the patch loss; of background patches in it, which are the most


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a stable rate, and a linear decay to zero over the last `decay` of `steps` steps.

    The rate before the decay does not depend on `steps`: any checkpoint can be decayed, or trained on.
    """

    steps: int
    decay: int
    lr: float = 2e-3
    warm_up: int = 300

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
    step: int = 0
    seconds: float = 0.0
    images: int = 0
    model: CLIPModel = field(init=False)  # float32
    fast: CLIPModel = field(init=False)  # the same in the compute type, for forward and backward passes
    muon: torch.optim.Optimizer = field(init=False)
    adam: torch.optim.Optimizer = field(init=False)
    text_encoder: TextEncoder = field(init=False)

    def __post_init__(self) -> None:
        self.text_encoder = TextEncoder(self.tokenizer)
        self.model = make_model(self.tokenizer, self.seed).to(self.device)
        self.fast = make_model(self.tokenizer, self.seed).to(self.device, compute_type(self.device))
        named = dict(self.model.named_parameters())
        hidden = sorted(name for name, weight in named.items() if ".layers." in name and weight.ndim == 2)
        self.muon = torch.optim.Muon(
            [named[name] for name in hidden], lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
        others = [weight for name, weight in named.items() if name not in set(hidden)]
        self.adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, lr: float) -> None:
        """Copy the gradients to the float32 weights, step, and copy the weights back."""
        pairs = list(zip(self.model.parameters(), self.fast.parameters(), strict=True))
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
        for name, optimizer in (("muon", self.muon), ("adam", self.adam)):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(state, f"{name}.").items():
                number, _, slot = key.partition(".")
                slots.setdefault(int(number), {})[slot] = value
            optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Contrast of images with captions and of patches with captions, equal concepts masked."""
        generator = stream(self.seed, "step", self.step)
        image, patches, kept = encode_images(self.fast, batch.pixels.to(self.device), generator)
        text = self.text_encoder.encode(self.fast, (*batch.texts, EMPTY))  # [T + 1, D]
        scale = self.model.logit_scale.exp()  # the float32 one: bfloat16 would round its steps away
        positive, masked = batch.positive.to(self.device), batch.masked.to(self.device)
        logits = (scale * image @ text[:-1].T).masked_fill(masked, -1e4)  # [B, T]
        contrast = (
            F.cross_entropy(logits, positive / positive.sum(dim=1, keepdim=True))
            + F.cross_entropy(logits.T, batch.image.to(self.device))
        ) / 2
        local = scale * patches @ text.T  # [B, k, T + 1]
        local = local.masked_fill(F.pad(masked, (0, 1))[:, None], -1e4)
        labels = batch.patches.to(self.device).gather(1, kept)  # [B, k]
        labels = torch.where(labels == BACKGROUND, len(text) - 1, labels)
        weight = torch.ones(len(text), device=self.device)
        weight[-1] = GROUND_WEIGHT
        patch = F.cross_entropy(local.flatten(0, 1), labels.flatten(), weight, ignore_index=IGNORED)
        right = positive.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean()
        facts = {"contrast": contrast, "patch": patch, "right": right, "scale": scale}
        return contrast + PATCH_WEIGHT * patch, {name: float(value.detach()) for name, value in facts.items()}


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
