"""The embedded demo: data sets drawn from icon fonts, and a small CLIP pretrained on such drawings."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEMO = "demo"  # the name of the embedded CLIP in recipes
SOURCES = ("pictograms", "scenes")  # whose images are drawn on demand


def weights_folder() -> Path:
    """The embedded CLIP: a Hugging Face `CLIPModel` folder with its tokenizer, image processor and CARD.md."""
    return Path(str(files("fedprompt.demo") / "weights"))
