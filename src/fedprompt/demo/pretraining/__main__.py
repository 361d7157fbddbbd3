"""Pretrain the embedded CLIP contrastively on emoji by three hands (`python -m fedprompt.demo.pretraining`).

The folder `--out` holds `checkpoint.safetensors`, from which a run resumes bit for bit, `log.jsonl`, and at the end
`weights/`, a Hugging Face folder. The learning rate is stable until the last `--decay` steps of `--steps`, so a run may
be stopped at any time and finished from its checkpoint with a smaller `--steps`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from fedprompt.demo.pretraining.bpe import learn
from fedprompt.demo.pretraining.captions import corpus
from fedprompt.demo.pretraining.model import CONTEXT, save
from fedprompt.demo.pretraining.probe import Probe
from fedprompt.demo.pretraining.rasters import default_cache
from fedprompt.demo.pretraining.samples import Sampler
from fedprompt.demo.pretraining.trainer import Schedule, Trainer
from fedprompt.demo.pretraining.vocabulary import load_vocabulary

SAVE_EVERY = 120  # seconds
LOG_EVERY, PROBE_EVERY = 25, 250  # steps


def pretrain(trainer: Trainer, sampler: Sampler, schedule: Schedule, out: Path) -> None:
    """Train from the trainer's step to the schedule's end; checkpoints and the log go to `out`."""
    probe = Probe()
    begin, saved = time.monotonic() - trainer.seconds, time.monotonic()
    smooth: dict[str, float] = {}
    while trainer.step < schedule.steps:
        loss, facts = trainer.loss(sampler.batch(trainer.step))
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
        file.write(json.dumps({"step": trainer.step, "seconds": round(trainer.seconds, 1), **rounded}) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"), help="checkpoint, log and weights")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10_000, help="the step at which training ends")
    parser.add_argument("--decay", type=int, default=2_500, help="over how many last steps the rate falls to zero")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--groups", type=int, default=4, help="groups of 38 images per batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the fetched drawings are kept")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    vocabulary = load_vocabulary(given.cache)
    tokenizer = learn(corpus(vocabulary), tokens=CONTEXT)
    trainer = Trainer(given.seed, tokenizer, given.device, len(vocabulary.concepts))
    checkpoint = given.out / "checkpoint.safetensors"
    if checkpoint.exists():
        trainer.restore(checkpoint)
    schedule = Schedule(given.steps, given.decay, given.lr)
    pretrain(trainer, Sampler(vocabulary, given.seed, given.groups), schedule, given.out)
    save(trainer.model.cpu(), tokenizer, given.out / "weights")


if __name__ == "__main__":
    main()
