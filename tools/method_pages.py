"""A page and a figure for every method, made from its file, its constructor and one training step that is observed."""

from __future__ import annotations

import functools
import html
import inspect
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.clip.sizes import VIT_B_16
from fedprompt.data.dataset import Dataset
from fedprompt.demo import weights_folder
from fedprompt.demo.emoji import emoji
from fedprompt.methods.base import Method
from fedprompt.seeding import stream
from tools.markdown import ROOT, bullet, cell, wrapped

FOLDER = ROOT / "docs" / "methods"
MADE = "<!-- Made by `python -m tools.collect` from the code; edit the docstrings and comments there. -->\n"
CLASSES = ("anchor", "apple")
FROZEN, LIVE, SHARED, OWN = "#f0f2f5", "#d3e5f4", "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Step:
    """What one training step did with the backbone."""

    text: bool  # gradients went through the text tower
    image: bool
    regions: bool  # patches were compared, not only the whole image
    guided: bool = False  # what the image tower gives depends on the attributes of the classes


@functools.cache
def backbone() -> tuple[Clip, Dataset]:
    """The embedded CLIP and the demo's images."""
    return Clip.load(weights_folder()), emoji(train=1, test=1)


def build(name: str, clip: object) -> Method:
    """A fresh method on a backbone or on the sizes of one."""
    kind = methods.load(name)
    return kind(clip, **methods.class_options(kind, CLASSES), generator=stream(0))


def observe(name: str) -> Step:
    """Take one step on two images and see through which towers gradients passed."""
    clip, dataset = backbone()
    patches = ("patch_features", "value_tokens")
    encoded: list[torch.Tensor] = []  # what the image tower gave
    seen = dict.fromkeys(("encode_text", "encode_shared_prefixes", "encode_image", *patches), False)

    def observed(call: str) -> Callable[..., Any]:
        plain = getattr(Clip, call)

        def run(self: Clip, *given: Any, **named: Any) -> Any:
            found = plain(self, *given, **named)
            tensor = found.tokens if call == "encode_image" else found
            seen[call] |= tensor.requires_grad or call in patches
            if call == "encode_image":
                encoded.append(tensor.detach())
            return found

        return run

    class Observed(Clip):
        pass

    for call in seen:
        setattr(Observed, call, observed(call))
    clip.__class__ = Observed
    try:
        method = build(name, clip)
        rows = dataset.rows(split="train", classes=dataset.base[:2])[:2]
        examples = dataset.examples(rows, dataset.base[:2])
        method.loss(clip, examples.images, examples.targets, examples.space, stream=stream(0))
        encoded.clear()
        for attribute in ("has legs", "is round") if "attributes" in method.reads else ():
            attributes = dict.fromkeys(examples.space.names, (attribute,))
            method.classifier(clip, replace(examples.space, attributes=attributes))(examples.images)
    finally:
        clip.__class__ = Clip
    half = len(encoded) // 2
    guided = any(not torch.equal(one, other) for one, other in zip(encoded[:half], encoded[half:], strict=False))
    text = seen["encode_text"] or seen["encode_shared_prefixes"]
    return Step(text, seen["encode_image"], any(seen[call] for call in patches), guided)


def tensors(method: Method) -> list[tuple[str, tuple[int, ...], bool]]:
    """(name, shape, stays with the client) of everything that is trained."""
    return [(name, tuple(p.shape), name.startswith(method.personal)) for name, p in method.named_parameters()]


def parameters(name: str) -> int:
    """How many numbers a method trains at ViT-B/16."""
    return sum(tensor.numel() for tensor in build(name, VIT_B_16).parameters())


def page(name: str, remarks: list[str]) -> str:
    """The text of docs/methods/<name>.md."""
    kind, step = methods.load(name), observe(name)
    equation, _, body = inspect.cleandoc(kind.__doc__ or "").partition("\n")
    options = methods.options(kind)
    meanings = dict(re.findall(r"^(\w+): ((?:.|\n(?= ))+)", body, re.MULTILINE))
    prose = re.split(r"^(?:" + "|".join(options) + r"): ", body, maxsplit=1, flags=re.MULTILINE)[0] if options else body
    rows = [f"| `{key}` | `{p.default!r}` | {cell(meanings.get(key, ''))} |\n" for key, p in options.items()]
    shapes = [
        f"| `{key}` | {' x '.join(map(str, shape)) or '1'} | {'the client' if own else 'the server, averaged'} |\n"
        for key, shape, own in tensors(build(name, VIT_B_16))
    ]
    parts = [
        f"{MADE}# {name}\n\n{wrapped(_first(kind))}\n\n![what is learned where]({name}.svg)\n",
        f"\n## Equation\n\n{_text(equation)}\n",
        f"\n## What is implemented\n\n{_text(prose.strip())}\n\n{_towers(step)}\n"
        if prose.strip()
        else f"\n{_towers(step)}\n",
        "\n## What differs from papers and releases\n\n" + "".join(bullet(text) for text in remarks) if remarks else "",
        f"\n## Parameters\n\n{parameters(name):,} at ViT-B/16{_note(options)}.\n",
        "\n| tensor | shape | kept by |\n| --- | --- | --- |\n" + "".join(_folded(shapes)) if shapes else "",
        "\n## Options\n\n| option | default | meaning |\n| --- | --- | --- |\n" + "".join(rows) if rows else "",
        f"\n## Source\n\n[src/fedprompt/methods/{name}.py](../../src/fedprompt/methods/{name}.py)\n",
    ]
    return "".join(parts)


def _text(prose: str) -> str:
    """Prose in which no scalar product <v, t> is taken for an HTML tag."""
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", prose)


def _first(kind: type[Method]) -> str:
    return (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n")[0]


def _note(options: Container[str]) -> str:
    return f", with {len(CLASSES)} classes" if "classes" in options else ""


def _folded(rows: list[str], most: int = 12) -> list[str]:
    return rows if len(rows) <= most else [*rows[:most], f"| and {len(rows) - most} more | | |\n"]


def _towers(step: Step) -> str:
    said = {True: "gradients pass through it in every step", False: "frozen and cached, it runs once"}
    reads = "patches as well as the whole image" if step.regions else "the whole image for single-label tasks"
    return wrapped(f"Text tower: {said[step.text]}. Image tower: {said[step.image]}. The method reads {reads}.")


def picture(name: str) -> str:
    """An SVG of both towers, which of them gradients pass through, and the tensors that are trained."""
    step, method = observe(name), build(name, VIT_B_16)
    passes = {True: ("differentiable", LIVE), False: ("frozen", FROZEN)}
    (text, text_colour), (image, image_colour) = passes[step.text], passes[step.image]
    boxes = [
        _box(10, 10, 130, _words(method), FROZEN),
        _box(180, 10, 200, f"text tower, {text}", text_colour),
        _box(10, 110, 130, "images", FROZEN),
        _box(180, 110, 200, f"image tower, {image}", image_colour),
        _box(430, 60, 130, "regions" if step.regions else "cosine", FROZEN),
    ]
    arrows = [(140, 35, 180, 35), (140, 135, 180, 135), (380, 35, 430, 75), (380, 135, 430, 95)]
    arrows += [(120, 60, 195, 110)] if step.guided else []
    lines = [f'<path d="M{a} {b}L{c} {d}" stroke="#5f6873" stroke-width="1.5"/>' for a, b, c, d in arrows]
    found: dict[str, tuple[int, bool]] = {}
    for key, shape, own in tensors(method):
        top = key.split(".")[0]
        found[top] = (found.get(top, (0, own))[0] + torch.Size(shape).numel(), own)
    labels = [
        f'<text x="10" y="{190 + 20 * place}" fill="{OWN if own else SHARED}">{html.escape(key)}: {count:,} numbers, '
        f"{'stays with the client' if own else 'averaged by the server'}</text>"
        for place, (key, (count, own)) in enumerate(found.items())
    ] or ['<text x="10" y="190" fill="#5f6873">nothing is trained</text>']
    height = 200 + 20 * len(labels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 570 {height}" font-family="system-ui, sans-serif" '
        f'font-size="13">\n<rect width="570" height="{height}" fill="#ffffff"/>\n'
        + "\n".join([*lines, *boxes, *labels])
        + "\n</svg>\n"
    )


def _words(method: Method) -> str:
    """What of the classes a method reads; a template goes without saying."""
    further = [what for what in method.reads if what != "template"]
    return ", ".join(("names", *further)) if further else "class names"


def _box(x: int, y: int, width: int, text: str, colour: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="50" rx="6" fill="{colour}"/>'
        f'<text x="{x + width / 2:g}" y="{y + 30}" text-anchor="middle" fill="#1c2128">{text}</text>'
    )
