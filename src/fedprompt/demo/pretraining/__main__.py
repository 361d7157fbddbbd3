"""Pretrain the embedded CLIP contrastively on drawings (`python -m fedprompt.demo.pretraining`).

Progress goes to `log.jsonl` in the scratch folder, which also holds the checkpoint to resume from.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from fedprompt.clip.model import Clip
from fedprompt.demo.concepts import SEEN, glyph_names, load_concepts
from fedprompt.demo.pretraining import captions
from fedprompt.demo.pretraining.bpe import learn
from fedprompt.demo.pretraining.evaluate import evaluate
from fedprompt.demo.pretraining.forward import TextEncoder
from fedprompt.demo.pretraining.model import CONTEXT, make_model, save
from fedprompt.demo.pretraining.trainer import SampleBuffer, Trainer, step_loss
from fedprompt.text_files import json_text

WARM_UP = 200  # steps
SAVE_EVERY, EXPORT_EVERY = 120, 300  # seconds


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of pretraining, which ends when either `steps` or `minutes` is reached."""

    steps: int
    minutes: float
    batch: int
    lr: float
    seed: int
    scratch: Path
    export: Path

    def progress(self, trainer: Trainer) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, max(trainer.step / self.steps, trainer.seconds / 60 / self.minutes))

    def rate(self, trainer: Trainer) -> float:
        """The learning rate: linear warm-up, then a cosine decay to 2%."""
        fall = 0.02 + 0.49 * (1 + math.cos(math.pi * self.progress(trainer)))
        return self.lr * min(1.0, (trainer.step + 1) / WARM_UP) * fall


def pretrain(schedule: Schedule) -> Trainer:
    """Pretrain or resume, export the model, evaluate it and write its card."""
    tokenizer = learn(captions.corpus(), tokens=CONTEXT)
    text_encoder = TextEncoder(tokenizer)
    bf16_model = make_model(tokenizer, schedule.seed).bfloat16()
    trainer = Trainer(schedule.seed, schedule.batch, make_model(tokenizer, schedule.seed), bf16_model)
    schedule.scratch.mkdir(parents=True, exist_ok=True)
    checkpoint = schedule.scratch / "checkpoint.safetensors"
    if checkpoint.exists():
        trainer.restore(checkpoint)
    if schedule.progress(trainer) < 1:
        _train(trainer, text_encoder, schedule, checkpoint)
    save(trainer.model, tokenizer, schedule.export, card=card(trainer, schedule))
    return trainer


def _train(trainer: Trainer, text_encoder: TextEncoder, schedule: Schedule, checkpoint: Path) -> None:
    fresh = schedule.batch // 4
    buffer = SampleBuffer(
        schedule.seed, 64 * schedule.batch, number=trainer.step * fresh, progress=schedule.progress(trainer)
    )
    begin = saved = exported = time.monotonic()
    begin -= trainer.seconds
    smooth: dict[str, float] = {}
    while schedule.progress(trainer) < 1:
        loss, facts = step_loss(trainer, buffer, text_encoder)
        torch.autograd.backward(loss)
        trainer.update(schedule.rate(trainer))
        buffer.refill(fresh, schedule.progress(trainer))
        trainer.step += 1
        now = time.monotonic()
        trainer.seconds = now - begin
        smooth = {name: 0.97 * smooth.get(name, value) + 0.03 * value for name, value in facts.items()}
        if trainer.step % 25 == 0:
            _log(schedule.scratch / "log.jsonl", trainer, smooth)
        if now - saved > SAVE_EVERY:
            trainer.save(checkpoint)
            saved = now
        if now - exported > EXPORT_EVERY:
            save(trainer.model, text_encoder.tokenizer, schedule.export)
            exported = now
    trainer.save(checkpoint)


def _log(path: Path, trainer: Trainer, facts: Mapping[str, float]) -> None:
    rounded = {name: round(value, 4) for name, value in facts.items()}
    line = {"step": trainer.step, "seconds": round(trainer.seconds, 1), **rounded}
    with path.open("a") as file:
        file.write(json_text(line) + "\n")


def card(trainer: Trainer, schedule: Schedule) -> str:
    """The model card: data, schedule, cost and measured results."""
    save(trainer.model, learn(captions.corpus(), tokens=CONTEXT), schedule.scratch / "weights")
    measured = evaluate(Clip.load(schedule.scratch / "weights", batch=32)).table()
    world = load_concepts()
    return (
        (files("fedprompt.demo.pretraining") / "card.md")
        .read_text()
        .format(
            trainer=trainer,
            schedule=schedule,
            tower=trainer.model.config.vision_config,
            weights=sum(weight.numel() for weight in trainer.model.parameters()),
            concepts=len(world.concepts),
            classes=len(world.classes),
            glyphs=sum(len(glyph_names(concept, family)) for concept in world.concepts for family in SEEN),
            minutes=trainer.seconds / 60,
            threads=torch.get_num_threads(),
            processor=_processor(),
            torch=torch.__version__,
            measured=measured,
        )
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scratch", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--export", type=Path, default=Path("runs/pretrain/export"))
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    pretrain(Schedule(**given))


if __name__ == "__main__":
    main()
