"""Emoji drawings by six artists as pixels: npm packages fetched by name, checked, rasterised and cached.

A developer's step: users need only the sprites of the downstream classes, which the package contains.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedprompt.demo.render import SPRITE
from fedprompt.demo.sprites import SEEN
from fedprompt.errors import UserError

LEAST_PIXELS = 34  # drawings that cover fewer of SPRITE x SPRITE pixels are taken as missing
INK = "#222222"  # what `currentColor` stands for in the single-colour set


@dataclass(frozen=True)
class Package:
    """One npm package of a fixed version; `sha512` is the registry's checksum of its archive, in base64."""

    name: str
    version: str
    sha512: str

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ARTISTS: Mapping[str, Package] = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "contrast": Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    ),
}
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


def default_cache() -> Path:
    """Where archives and pixels are kept: `fedprompt/emoji` under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedprompt" / "emoji"


def fetch(package: Package, cache: Path) -> Path:
    """The package's archive in the cache, fetched with `npm pack` if absent; UserError if its checksum is wrong."""
    path = cache / package.archive
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        wanted = f"{package.name}@{package.version}"
        try:
            command = ["npm", "pack", "--silent", "--pack-destination", str(cache), wanted]
            subprocess.run(command, check=True, stdout=subprocess.PIPE)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"`npm pack {wanted}` failed: {error}. Pretraining fetches the drawings with npm."
            ) from None
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise UserError(f"{path} has the SHA-512 {found}, not {package.sha512}; delete the file and try again.")
    return path


def _member(package: Package, cache: Path, name: str) -> Any:
    with tarfile.open(fetch(package, cache)) as archive:
        file = archive.extractfile(f"package/{name}")
        assert file is not None, f"{package.name} has no {name}"
        return json.load(file)


@dataclass(frozen=True)
class Emoji:
    """One entry of emojibase: its code points, its CLDR name and keywords, and Unicode's group and subgroup."""

    code: str
    label: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def read_emoji(cache: Path) -> tuple[Emoji, ...]:
    """All emoji but flags, skin tones and hair, without the variants of people by gender."""
    messages, data = _member(NAMES, cache, "en/messages.json"), _member(NAMES, cache, "en/data.json")
    groups = {entry["order"]: entry["key"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    found = (
        Emoji(
            entry["hexcode"].lower().replace("-fe0f", ""),
            entry["label"],
            tuple(entry.get("tags", ())),
            groups[entry["group"]],
            subgroups[entry["subgroup"]],
        )
        for entry in data
        if "group" in entry
    )
    return tuple(one for one in found if not _variant(one))


def _variant(emoji: Emoji) -> bool:
    person = emoji.label.startswith(("man ", "woman ", "men ", "women "))
    return emoji.group in {"component", "flags"} or person or (": " in emoji.label and emoji.group == "people-body")


@dataclass(frozen=True, eq=False)
class _Artist:
    """The drawings of one artist, as Iconify stores them."""

    icons: Mapping[str, dict[str, object]]
    aliases: Mapping[str, dict[str, object]]
    defaults: Mapping[str, object]
    names: Mapping[str, str]  # code points -> icon

    @classmethod
    def read(cls, package: Package, cache: Path) -> _Artist:
        data, names = _member(package, cache, "icons.json"), _member(package, cache, "chars.json")
        known = {code.lower().replace("-fe0f", ""): name for code, name in names.items()}
        return cls(data["icons"], data.get("aliases", {}), data, known)

    def svg(self, candidates: Iterator[str]) -> str | None:
        """The drawing under the first known name."""
        name = next((name for name in candidates if name in self.icons or name in self.aliases), None)
        if name is None:
            return None
        icon = self.icons.get(name) or self.icons[str(self.aliases[name]["parent"])]
        edges = [icon.get(key, self.defaults.get(key, 0)) for key in ("left", "top", "width", "height")]
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        box = " ".join(map(str, edges))
        body = str(icon["body"]).replace("currentColor", INK)
        return f'<svg {spaces} viewBox="{box}" width="{SPRITE}" height="{SPRITE}">{body}</svg>'


@dataclass(frozen=True, eq=False)
class Rasters:
    """Pixels [N, 4, SPRITE, SPRITE] (RGB and opacity, uint8) per artist, and which artist drew which emoji."""

    emoji: tuple[Emoji, ...]
    pixels: Mapping[str, Tensor]

    @cached_property
    def drawn(self) -> Mapping[str, Tensor]:
        """Per artist, which emoji it drew [N]."""
        return {artist: (pixels[:, 3] > 40).flatten(1).sum(1) >= LEAST_PIXELS for artist, pixels in self.pixels.items()}


def load_rasters(cache: Path) -> Rasters:
    """Every emoji by every artist, rasterised once and then read from the cache; the first call takes a minute."""
    emoji = read_emoji(cache)
    path = cache / f"rasters-{_fingerprint(emoji)}.safetensors"
    if not path.exists():
        save_file({artist: _rasterise(emoji, artist, cache) for artist in ARTISTS}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    with safe_open(path, "pt") as file:
        return Rasters(emoji, {artist: file.get_tensor(artist) for artist in ARTISTS})


def _fingerprint(emoji: tuple[Emoji, ...]) -> str:
    return hashlib.sha256(repr((emoji, SPRITE, ARTISTS)).encode()).hexdigest()[:16]


def _rasterise(emoji: tuple[Emoji, ...], artist: str, cache: Path) -> Tensor:
    own, others = _Artist.read(ARTISTS[artist], cache), [_Artist.read(ARTISTS[name], cache) for name in SEEN]
    found = torch.zeros(len(emoji), 4, SPRITE, SPRITE, dtype=torch.uint8)
    for row, one in enumerate(emoji):
        # An icon set without a code point may still know the drawing by the name that another set gives it.
        names = (
            [own.names.get(one.code)] if one.code in own.names else [artist.names.get(one.code) for artist in others]
        )
        svg = own.svg(name for name in [*names, one.label.replace(" ", "-")] if name)
        if svg is not None:
            found[row] = torch.from_numpy(_pixels(svg))
    return found


def _pixels(svg: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        import resvg_py
    except ImportError:
        raise UserError("Pretraining rasterises the drawings with resvg; `pip install resvg_py`.") from None
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE, height=SPRITE)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((SPRITE, SPRITE))
    return np.asarray(image).transpose(2, 0, 1).copy()
