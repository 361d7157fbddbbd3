"""Pretrain the embedded CLIP contrastively on emoji by three artists (`python -m fedprompt.demo.pretraining`).

The folder `--out` holds `checkpoint.safetensors`, from which a run resumes bit for bit, `log.jsonl`, and at the end
`weights/`, a Hugging Face folder with its card. The learning rate is stable until the last `--decay` steps of
`--steps`, so a run may be stopped at any time and finished from its checkpoint with a smaller `--steps`. `--drawings`
writes the drawings and attributes that the package contains, and trains nothing.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch

from fedprompt.clip.model import Clip
from fedprompt.demo.emoji import DESCRIPTIONS
from fedprompt.demo.pretraining.bpe import learn
from fedprompt.demo.pretraining.captions import NAMED_HEAD, NAMED_TAIL, corpus
from fedprompt.demo.pretraining.evaluate import SEED, evaluate, table
from fedprompt.demo.pretraining.export import export
from fedprompt.demo.pretraining.forward import COUNTS, LATE_COUNTS
from fedprompt.demo.pretraining.model import CONTEXT, save
from fedprompt.demo.pretraining.probe import Probe
from fedprompt.demo.pretraining.rasters import default_cache
from fedprompt.demo.pretraining.samples import EARLY, LATE, Sampler
from fedprompt.demo.pretraining.trainer import Schedule, Trainer
from fedprompt.demo.pretraining.vocabulary import Vocabulary, load_vocabulary
from fedprompt.text_files import json_text

SAVE_EVERY = 120  # seconds
LOG_EVERY, PROBE_EVERY = 25, 250  # steps


def pretrain(trainer: Trainer, sampler: Sampler, schedule: Schedule, out: Path) -> None:
    """Train from the trainer's step to the schedule's end; checkpoints and the log go to `out`."""
    probe = Probe()
    begin, saved = time.monotonic() - trainer.seconds, time.monotonic()
    smooth: dict[str, float] = {}
    while trainer.step < schedule.steps:
        counts = LATE_COUNTS if schedule.decays(trainer.step) else COUNTS
        mixture = LATE if schedule.is_late(trainer.step) else EARLY
        loss, facts = trainer.loss(sampler.batch(trainer.step, mixture), counts)
        torch.autograd.backward(loss)
        trainer.update(schedule.rate(trainer.step))
        trainer.step += 1
        trainer.images += sampler.images
        trainer.seconds = time.monotonic() - begin
        smooth = {name: 0.97 * smooth.get(name, value) + 0.03 * value for name, value in facts.items()}
        if trainer.step % LOG_EVERY == 0:
            _log(out / "log.jsonl", trainer, smooth)
        if trainer.step % PROBE_EVERY == 0:
            _log(out / "log.jsonl", trainer, probe.measure(trainer.fast, trainer.text_encoder))
        if time.monotonic() - saved > SAVE_EVERY:
            trainer.save(out / "checkpoint.safetensors")
            saved = time.monotonic()
    trainer.save(out / "checkpoint.safetensors")


def _log(path: Path, trainer: Trainer, facts: Mapping[str, float]) -> None:
    rounded = {name: round(value, 4) for name, value in facts.items()}
    with path.open("a") as file:
        file.write(json_text({"step": trainer.step, "seconds": round(trainer.seconds, 1), **rounded}) + "\n")


def card(trainer: Trainer, schedule: Schedule, vocabulary: Vocabulary, measured: str) -> str:
    """The model card: data, schedule, cost and measured targets."""
    template = (files("fedprompt.demo.pretraining") / "card.md").read_text()
    return template.format(
        trainer=trainer,
        schedule=schedule,
        tower=trainer.model.config.vision_config,
        language=trainer.model.config.text_config,
        weights=sum(weight.numel() for weight in trainer.model.parameters()),
        concepts=len(vocabulary.concepts),
        classes=len(vocabulary.classes),
        attributes=len(vocabulary.attributes),
        named=(100 * NAMED_HEAD, 100 * NAMED_TAIL),
        minutes=trainer.seconds / 60,
        threads=torch.get_num_threads(),
        processor=_processor(),
        torch=torch.__version__,
        measured=measured,
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"), help="checkpoint, log and weights")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10_000, help="the step at which training ends")
    parser.add_argument("--decay", type=int, default=2_500, help="over how many last steps the rate falls to zero")
    parser.add_argument("--late", type=int, default=0, help="last steps with fewer true colours, if above --decay")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--groups", type=int, default=3, help="groups of 38 images per batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the fetched drawings are kept")
    parser.add_argument("--drawings", action="store_true", help="write the package's drawings and attributes only")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    vocabulary = load_vocabulary(given.cache)
    if given.drawings:
        export(vocabulary, DESCRIPTIONS)
        return
    tokenizer = learn(corpus(vocabulary), tokens=CONTEXT)
    trainer = Trainer(given.seed, tokenizer, given.device, len(vocabulary.concepts), len(vocabulary.attributes))
    checkpoint, weights = given.out / "checkpoint.safetensors", given.out / "weights"
    if checkpoint.exists():
        trainer.restore(checkpoint)
    schedule = Schedule(given.steps, given.decay, given.late, given.lr)
    pretrain(trainer, Sampler(vocabulary, given.seed, given.groups), schedule, given.out)
    save(trainer.model.cpu(), tokenizer, weights)
    targets = evaluate(Clip.load(weights, batch=32), vocabulary.other_classes(SEED))
    (weights / "CARD.md").write_text(card(trainer, schedule, vocabulary, table(targets)))


if __name__ == "__main__":
    main()
