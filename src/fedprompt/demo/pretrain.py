"""Makes the embedded CLIP: image-text contrast on drawings of seen hands (`python -m fedprompt.demo.pretrain`)."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from fedprompt.demo import captions
from fedprompt.demo.drawing import Dice
from fedprompt.demo.lessons import BACKGROUND, UNSURE, Lesson, lesson
from fedprompt.demo.lexicon import lexicon
from fedprompt.demo.tower import CONTEXT, MEAN, STD, make_model, make_tokenizer, save
from fedprompt.seeding import stream

COUNTS = (24, 28, 32, 36, 64)  # patches kept in a step


class Pool:
    """A ring of rendered lessons, a quarter of each batch fresh: drawing costs as much as learning otherwise."""

    def __init__(self, seed: int, size: int, number: int, progress: float) -> None:
        self.seed, self.size, self.number = seed, size, number
        self.pixels = torch.empty(size, 3, 64, 64, dtype=torch.uint8)
        self.cells = torch.empty(size, 64, dtype=torch.int64)
        self.lessons: list[Lesson | None] = [None] * size
        self.refill(size, progress)

    def refill(self, count: int, progress: float) -> None:
        for _ in range(count):
            one, at = lesson(self.seed, self.number, progress), self.number % self.size
            self.pixels[at], self.cells[at] = torch.from_numpy(one.pixels), torch.from_numpy(one.cells)
            self.lessons[at] = one
            self.number += 1


def see(model: CLIPModel, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Image features [B, D], patch features [B, K, D] and the kept patches [B, K]; dropped patches and stray tokens."""
    tower = model.vision_model
    images = (pixels.to(torch.bfloat16) / 255 - MEAN) / STD
    batch = len(images)
    squares = images.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, 8, 8, p, p]
    squares = squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [B, P, 3 p p]
    count = COUNTS[int(torch.randint(len(COUNTS), (), generator=generator))]
    kept = torch.rand(batch, 64, generator=generator).argsort(dim=1)[:, :count]  # [B, K]
    embed = tower.embeddings
    chosen = squares.gather(1, kept[..., None].expand(-1, -1, squares.shape[-1]))
    patches = F.linear(chosen, embed.patch_embedding.weight.flatten(1)) + embed.position_embedding.weight[1:][kept]
    first = (embed.class_embedding + embed.position_embedding.weight[0]).expand(batch, 1, -1)
    tokens = torch.cat([first, patches], dim=1)  # [B, 1 + K, W]
    if torch.rand((), generator=generator) < 0.5:
        extra = int(torch.randint(1, 9, (), generator=generator))
        spread = float(torch.rand((), generator=generator)) * 0.1 + 0.005
        stray = spread * torch.randn(1 if torch.rand((), generator=generator) < 0.5 else batch, extra, tokens.shape[-1], generator=generator)
        tokens = torch.cat([tokens, stray.to(tokens.dtype).expand(batch, -1, -1)], dim=1)
    x = tower.pre_layrnorm(tokens)
    for layer in tower.encoder.layers:
        x = block(layer, x)
    x = model.visual_projection(tower.post_layernorm(x[:, : 1 + count]))
    x = F.normalize(x.float(), dim=-1)
    return x[:, 0], x[:, 1:], kept


def block(layer: nn.Module, x: Tensor, *, causal: bool = False) -> Tensor:
    """One transformer layer, written out: transformers' own builds masks that training does not need."""
    a = layer.self_attn
    y = layer.layer_norm1(x)
    q, k, v = (p(y).unflatten(-1, (a.num_heads, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5)  # [B, H, T, T]; the fused kernel's backward is slow on CPU
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -1e4, dtype=scores.dtype).triu(1)
    x = x + a.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
    return x + layer.mlp.fc2(F.relu(layer.mlp.fc1(layer.layer_norm2(x))))


class Reader:
    """Texts to features; texts of alike length go together, because padding costs as much as words."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.rows: dict[str, Tensor] = {}
        vocabulary = tokenizer.get_vocab()
        self.wild = torch.tensor([vocabulary[captions.WILD], vocabulary[captions.WILD + "</w>"]])

    def ids(self, texts: Sequence[str]) -> list[Tensor]:
        """Token ids of each text, remembered."""
        if len(self.rows) > 200_000:
            self.rows.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self.rows]
        if new:
            found = self.tokenizer(new, truncation=True, max_length=CONTEXT).input_ids
            self.rows.update(zip(new, map(torch.tensor, found), strict=True))
        return [self.rows[text] for text in texts]

    def read(self, model: CLIPModel, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """[N, D] unit norm."""
        rows = self.ids(texts)
        order = sorted(range(len(rows)), key=lambda position: len(rows[position]))
        groups = [order[start : start + 64] for start in range(0, len(order), 64)]
        found = torch.cat([self._encode(model, [rows[position] for position in group], generator) for group in groups])
        return found[torch.tensor(order).argsort()]

    def _encode(self, model: CLIPModel, rows: list[Tensor], generator: torch.Generator) -> Tensor:
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eos_token_id)  # [N, T]
        tower = model.text_model
        x = tower.embeddings.token_embedding(ids)
        spread = torch.rand(len(ids), 1, 1, generator=generator) * 0.05 + 0.003
        random = (spread * torch.randn(x.shape, generator=generator)).to(x.dtype)
        x = torch.where(torch.isin(ids, self.wild)[..., None], random, x)
        x = x + tower.embeddings.position_embedding.weight[: ids.shape[1]]
        for layer in tower.encoder.layers:
            x = block(layer, x, causal=True)
        ends = torch.tensor([len(row) - 1 for row in rows])
        x = model.text_projection(tower.final_layer_norm(x[torch.arange(len(ids)), ends]))
        return F.normalize(x.float(), dim=-1)


@dataclass
class Course:
    """Everything that changes while learning, saved and resumed as one file."""

    seed: int
    batch: int
    model: CLIPModel  # float32
    twin: CLIPModel  # bfloat16, what the passes run through
    step: int = 0
    seconds: float = 0.0
    muon: torch.optim.Optimizer = field(init=False)
    adam: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        hidden = {name for name, weight in self.model.named_parameters() if ".layers." in name and weight.ndim == 2}
        named = dict(self.model.named_parameters())
        self.muon = torch.optim.Muon(
            [named[name] for name in sorted(hidden)], lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(
            [weight for name, weight in named.items() if name not in hidden], lr=1.0, betas=(0.9, 0.98), weight_decay=0.01
        )

    def update(self, lr: float) -> None:
        """Carry the twin's gradients to the float32 weights, step, and copy the weights back."""
        pairs = list(zip(self.model.parameters(), self.twin.parameters(), strict=True))
        for weight, copy in pairs:
            if copy.grad is not None:
                weight.grad, copy.grad = copy.grad.float(), None
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = lr if optimizer is self.muon else lr / 2
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
            torch._foreach_copy_([copy for _, copy in pairs], [weight for weight, _ in pairs])

    def save(self, path: Path) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("model", "muon", "adam")}
        torch.save({**state, "step": self.step, "seconds": self.seconds}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name in ("model", "muon", "adam"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        self.twin.load_state_dict(self.model.state_dict())


def lesson_loss(course: Course, pool: Pool, reader: Reader) -> tuple[Tensor, dict[str, float]]:
    """Concept cross-entropy + 0.5 caption contrast + 0.5 patch cross-entropy + 0.3 attribute cross-entropy."""
    generator = stream(course.seed, "step", course.step)
    dice = Dice(course.seed, "words", course.step)
    rows = torch.randint(pool.size, (course.batch,), generator=generator)
    lessons = [pool.lessons[row] for row in rows.tolist()]
    world = lexicon()
    number = {name: position for position, name in enumerate(world.concepts)}
    shown = {number[thing.concept] for one in lessons for thing in one.things}
    candidates = sorted({*range(len(world.classes)), *shown, *dice.sample(range(len(world.concepts)), 12)})
    asked = dice.sample(tuple(world.attributes), 24)
    texts = [captions.concept_text(dice, world.concepts[position]) for position in candidates] + [captions.EMPTY]
    texts += [captions.attribute_text(dice, attribute) for attribute in asked]
    texts += [one.caption(dice) for one in lessons[: course.batch // 4]]
    model = course.twin
    image, patches, kept = see(model, pool.pixels[rows], generator)
    text = reader.read(model, texts, generator)
    nouns, attributes, said = text.split([len(candidates) + 1, len(asked), course.batch // 4])
    scale = course.model.logit_scale.exp()  # float32: bfloat16 would round its steps away

    column = torch.full((len(number) + 2,), UNSURE)  # the last two entries answer BACKGROUND and UNSURE
    column[candidates] = torch.arange(len(candidates))
    column[BACKGROUND] = len(candidates)
    present = torch.zeros(course.batch, len(candidates))
    has = torch.zeros(course.batch, len(asked))
    for row, one in enumerate(lessons):
        for thing in one.things:
            present[row, column[number[thing.concept]]] = 1
            has[row] += torch.tensor([thing.concept in world.attributes[attribute] for attribute in asked])
    logits = scale * image @ nouns[:-1].T  # [B, K]
    concept = F.cross_entropy(logits, present / present.sum(dim=1, keepdim=True))
    known = has.sum(dim=1) > 0
    spread = (has > 0).float()
    attribute = F.cross_entropy(scale * image[known] @ attributes.T, (spread / spread.sum(dim=1, keepdim=True))[known])
    half = scale * image[: course.batch // 4] @ said.T
    target = torch.arange(len(half))
    contrast = (F.cross_entropy(half, target) + F.cross_entropy(half.T, target)) / 2
    labels = column[pool.cells[rows].gather(1, kept)]  # [B, k]
    weight = torch.ones(len(candidates) + 1)
    weight[-1] = 0.3
    local = F.cross_entropy(scale * (patches @ nouns.T).flatten(0, 1), labels.flatten(), weight, ignore_index=UNSURE)
    loss = concept + 0.5 * contrast + 0.5 * local + 0.3 * attribute
    single = present.sum(dim=1) == 1
    right = (logits.argmax(dim=1) == present.argmax(dim=1))[single].float().mean()
    named = {"concept": concept, "contrast": contrast, "patch": local, "attribute": attribute, "right": right, "scale": scale}
    return loss, {name: float(value.detach()) for name, value in named.items()}


def pretrain(*, seed: int, steps: int, minutes: float, batch: int, lr: float, scratch: Path, export: Path | None) -> Course:
    tokenizer = make_tokenizer(captions.corpus())
    reader = Reader(tokenizer)
    course = Course(seed, batch, make_model(tokenizer, seed), make_model(tokenizer, seed).bfloat16())
    scratch.mkdir(parents=True, exist_ok=True)
    checkpoint, log = scratch / "course.pt", scratch / "log.jsonl"
    if checkpoint.exists():
        course.restore(checkpoint)
    progress = 0.0
    pool = Pool(seed, 24 * batch * 8, course.step * batch // 4, progress) if not course.step else Pool(seed, 24 * batch * 8, course.step * batch // 4, 1.0)
    begin = time.monotonic() - course.seconds
    saved = exported = time.monotonic()
    averages: dict[str, float] = {}
    while progress < 1:
        loss, facts = lesson_loss(course, pool, reader)
        loss.backward()
        progress = max(course.step / steps, (time.monotonic() - begin) / 60 / minutes)
        rate = lr * min(1, (course.step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, progress))))
        course.update(rate)
        course.step += 1
        course.seconds = time.monotonic() - begin
        pool.refill(batch // 4, progress)
        for name, value in facts.items():
            averages[name] = value if name not in averages else 0.97 * averages[name] + 0.03 * value
        if course.step % 25 == 0:
            with log.open("a") as file:
                file.write(json.dumps({"step": course.step, "seconds": round(course.seconds, 1), **{n: round(v, 4) for n, v in averages.items()}}) + "\n")
        if time.monotonic() - saved > 120:
            course.save(checkpoint)
            saved = time.monotonic()
        if export is not None and time.monotonic() - exported > 300:
            save(course.model, tokenizer, export)
            exported = time.monotonic()
    course.save(checkpoint)
    save(course.model, tokenizer, export or scratch / "weights")
    return course


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--export", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pretrain(
        seed=given.seed, steps=given.steps, minutes=given.minutes, batch=given.batch, lr=given.lr, scratch=given.scratch, export=given.export
    )


if __name__ == "__main__":
    main()
