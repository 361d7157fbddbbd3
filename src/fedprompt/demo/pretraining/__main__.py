"""Makes the embedded CLIP: image-text contrast on drawings of seen hands (`python -m fedprompt.demo.pretraining`).

Progress goes to `log.jsonl` in the scratch folder, where a stopped course is also continued from.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from fedprompt.clip.model import Clip
from fedprompt.demo.concepts import SEEN, drawings, lexicon
from fedprompt.demo.pretraining import captions
from fedprompt.demo.pretraining.bpe import learn
from fedprompt.demo.pretraining.evaluate import examine
from fedprompt.demo.pretraining.forward import Reader
from fedprompt.demo.pretraining.model import CONTEXT, make_model, save
from fedprompt.demo.pretraining.trainer import Pool, Trainer, lesson_loss

WARM_UP = 200  # steps
SAVE_EVERY, EXPORT_EVERY = 120, 300  # seconds


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn; whichever of `steps` and `minutes` is reached first ends it."""

    steps: int
    minutes: float
    batch: int
    lr: float
    seed: int
    scratch: Path
    export: Path

    def progress(self, course: Trainer) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, max(course.step / self.steps, course.seconds / 60 / self.minutes))

    def rate(self, course: Trainer) -> float:
        """Linear warm-up, then a cosine down to a fiftieth."""
        fall = 0.02 + 0.49 * (1 + math.cos(math.pi * self.progress(course)))
        return self.lr * min(1.0, (course.step + 1) / WARM_UP) * fall


def pretrain(plan: Plan) -> Trainer:
    """Run or continue a course, export the tower, examine it and write its card."""
    tokenizer = learn(captions.corpus(), tokens=CONTEXT)
    reader = Reader(tokenizer)
    twin = make_model(tokenizer, plan.seed).bfloat16()
    course = Trainer(plan.seed, plan.batch, make_model(tokenizer, plan.seed), twin)
    plan.scratch.mkdir(parents=True, exist_ok=True)
    checkpoint = plan.scratch / "course.safetensors"
    if checkpoint.exists():
        course.restore(checkpoint)
    if plan.progress(course) < 1:
        _learn(course, reader, plan, checkpoint)
    save(course.model, tokenizer, plan.export, card=card(course, plan))
    return course


def _learn(course: Trainer, reader: Reader, plan: Plan, checkpoint: Path) -> None:
    fresh = plan.batch // 4
    pool = Pool(plan.seed, 64 * plan.batch, number=course.step * fresh, progress=plan.progress(course))
    begin = saved = exported = time.monotonic()
    begin -= course.seconds
    smooth: dict[str, float] = {}
    while plan.progress(course) < 1:
        loss, facts = lesson_loss(course, pool, reader)
        torch.autograd.backward(loss)
        course.update(plan.rate(course))
        pool.refill(fresh, plan.progress(course))
        course.step += 1
        now = time.monotonic()
        course.seconds = now - begin
        smooth = {name: 0.97 * smooth.get(name, value) + 0.03 * value for name, value in facts.items()}
        if course.step % 25 == 0:
            _log(plan.scratch / "log.jsonl", course, smooth)
        if now - saved > SAVE_EVERY:
            course.save(checkpoint)
            saved = now
        if now - exported > EXPORT_EVERY:
            save(course.model, reader.tokenizer, plan.export)
            exported = now
    course.save(checkpoint)


def _log(path: Path, course: Trainer, facts: Mapping[str, float]) -> None:
    rounded = {name: round(value, 4) for name, value in facts.items()}
    line = {"step": course.step, "seconds": round(course.seconds, 1), **rounded}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def card(course: Trainer, plan: Plan) -> str:
    """The model card: what was learned from, how, how long, where, and what the result can do."""
    save(course.model, learn(captions.corpus(), tokens=CONTEXT), plan.scratch / "weights")
    measured = examine(Clip.load(plan.scratch / "weights", batch=32)).table()
    world = lexicon()
    return (
        (files("fedprompt.demo") / "card.md")
        .read_text()
        .format(
            course=course,
            plan=plan,
            tower=course.model.config.vision_config,
            weights=sum(weight.numel() for weight in course.model.parameters()),
            concepts=len(world.concepts),
            classes=len(world.classes),
            glyphs=sum(len(drawings(concept, family)) for concept in world.concepts for family in SEEN),
            minutes=course.seconds / 60,
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
    pretrain(Plan(**given))


if __name__ == "__main__":
    main()
