"""The generated part of docs/backbones.md: which methods train on which families of backbones, each tried once."""

from __future__ import annotations

from fedprompt import methods
from fedprompt.clip.backbone import CAPABILITIES, Family
from fedprompt.clip.model import Clip
from fedprompt.data.labels import Kind
from fedprompt.methods.base import Method
from fedprompt.seeding import stream
from fedprompt.testing import FAMILIES, tiny_backbone
from fedprompt.testing.federation import build, examples, train
from tools.markdown import bullet

# The tiny backbones of `fedprompt.testing`, and what stands behind them.
TITLES = {
    "clip": "CLIP; OpenAI's and open_clip's checkpoints",
    "metaclip_2": "MetaCLIP 2",
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2, fixed resolution",
    "vit_bert": "ViT and BERT (BiomedCLIP)",
}


def conformance() -> str:
    """A row per method and a column per family, and the reasons of those that are refused."""
    reasons: dict[str, int] = {}
    opened = {name: tiny_backbone(name) for name in FAMILIES}
    lines = [f"| method | {' | '.join(TITLES[name] for name in opened)} |", "|---" * (1 + len(opened)) + "|"]
    for name in methods.installed():
        kind, cells = methods.load(name), []
        for clip in opened.values():
            if reason := _reason(kind, clip.family):
                cells.append(f"no ({reasons.setdefault(reason, len(reasons) + 1)})")
            else:
                cells.append("yes" if all(_trains(kind, clip, task) for task in ("single", "multi")) else "fails")
        lines.append(f"| [`{name}`](methods/{name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "".join(bullet(f"({number}) {said}") for said, number in reasons.items())


def _reason(kind: type[Method], family: Family) -> str:
    """Why a method does not run on a family; "" if it does."""
    lacking = [need for need in kind.requires if need in family.lacks]
    return f"It {CAPABILITIES[lacking[0]]}. {family.title}: {family.lacks[lacking[0]]}." if lacking else ""


def _trains(kind: type[Method], clip: Clip, task: Kind) -> bool:
    """Whether a step on a backbone has a finite loss and a gradient, if the method trains anything."""
    method, data = build(kind, clip, {}), examples((0, 1, 2), (0, 1, 2), kind=task)
    reached = train(method, clip, data, 1)
    loss = method.loss(clip, data.images, data.targets, data.space, stream=stream(0))
    return bool(loss.isfinite()) and (any(reached.values()) or not reached)
