"""The embedded demo: data sets rendered from emoji, and a small CLIP pretrained on such images."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEMO = "demo"  # the name of the embedded CLIP in recipes
LIMIT = "The embedded demo CLIP was trained on emoji and knows neither photographs nor most other drawings."
SOURCES = ("emoji", "scenes")  # whose images are drawn on demand


def weights_folder() -> Path:
    """The embedded CLIP: a Hugging Face `CLIPModel` folder with its tokenizer, image processor and CARD.md."""
    return Path(str(files("fedprompt.demo") / "weights"))
