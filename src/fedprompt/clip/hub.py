"""Whether a CLIP can be had: from a folder, from the cache of the Hugging Face Hub, or from the Hub itself.

Neither torch nor transformers is imported here, so that a backbone that cannot be had is refused at once.
"""

from __future__ import annotations

import functools
import threading
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from fedprompt.errors import UserError
from fedprompt.file_system import entries, obstacle, read_bytes
from fedprompt.text_files import load_json_object

HUB_SECONDS = 1.5
CONFIGS = ("config.json", "open_clip_config.json")  # of transformers, and of open_clip
WEIGHTS = "open_clip_model.safetensors"
OPEN_CLIP_FILES = ("open_clip_*", "tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json")
INPUT_SIDE = 224


def require_available(path: str | Path) -> None:
    """Raise UserError if there is no such folder, or if a Hub id is neither in the Hub's cache nor reachable."""
    name, folder = str(path), Path(path).expanduser()
    if folder.is_dir():
        for entry in entries(folder):  # the library would wait for ever for what a pipe may hold
            if "not a regular file" in (what := obstacle(folder / entry.name, "file")):
                raise UserError(f"The backbone {name!r} has {entry.name}, which {what}; remove it.")
        return
    if not obstacle(folder, "file"):
        return
    if isinstance(path, Path) or not is_hub_id(name):
        raise UserError(
            f"There is no backbone folder {name!r}; give a folder with a CLIP in it or a Hub id such as 'owner/name'."
        )
    if not any(isinstance(try_to_load_from_cache(name, one), str) for one in CONFIGS) and not hub_answers():
        raise UserError(
            f"The backbone {name!r} cannot be opened: it is not in the cache of the Hugging Face Hub, and the Hub does "
            "not answer. Set backbone.path=demo for the small embedded CLIP (trained on drawings), or to the folder of "
            f"a CLIP. To carry one here, run `fedprompt backbone fetch {name} FOLDER` on a machine with a network."
        )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name, and is not a path by its beginning."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and all(name.split("/"))


def published_id(path: str) -> str | None:
    """The Hub id of a backbone, by which everybody can have it; None for a folder and for the embedded one."""
    return path if is_hub_id(path) and not Path(path).expanduser().is_dir() else None


def cached_folder(name: str) -> Path:
    """The folder of the Hub's cache that holds the model with this id; the id is never looked up as a path.

    Raises UserError if the model is not in the cache. Nothing is fetched.
    """
    found = None
    with suppress(HFValidationError):
        found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        raise UserError(
            f"The backbone {name!r} is not in the cache of the Hugging Face Hub ({constants.HF_HUB_CACHE}); fetch it "
            "into the cache, or name the folder of a copy."
        )
    return Path(found).parent


def hub_checkpoint(name: str) -> Path | None:
    """The folder of the Hub's cache with an open_clip checkpoint, fetched if need be; None for a model of transformers.

    Of a repository that holds both, transformers' model is taken.
    """
    cached = [try_to_load_from_cache(name, one) for one in CONFIGS]
    if isinstance(cached[0], str):
        return None
    if isinstance(cached[1], str) and not hub_answers():
        return Path(cached[1]).parent
    files = HfApi(endpoint=constants.ENDPOINT).list_repo_files(name) if hub_answers() else []
    if CONFIGS[0] in files or CONFIGS[1] not in files:
        return None
    patterns = [*OPEN_CLIP_FILES] if WEIGHTS not in files else [*OPEN_CLIP_FILES[1:], CONFIGS[1], WEIGHTS]
    return Path(snapshot_download(name, allow_patterns=patterns, endpoint=constants.ENDPOINT))


@functools.cache
def hub_answers() -> bool:
    """Whether the Hugging Face Hub can be reached, asked once per process and for at most `HUB_SECONDS`."""
    if constants.HF_HUB_OFFLINE:
        return False
    found: list[object] = []

    def ask() -> None:
        with suppress(Exception):  # of any kind: a name that is not resolved, a refused connection, a proxy
            found.append(get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS))

    asking = threading.Thread(target=ask, daemon=True)  # resolving a name has no timeout of its own
    asking.start()
    asking.join(HUB_SECONDS)
    return bool(found)


def input_side(path: str | Path) -> int:
    """The side in pixels of the images that a CLIP reads; 224, as of most CLIPs, where its folder is not at hand."""
    folder = Path(path).expanduser()
    found = folder / "config.json" if folder.is_dir() else try_to_load_from_cache(str(path), "config.json")
    try:
        config = load_json_object(read_bytes(Path(found))) if isinstance(found, str | Path) else {}
        return int(config.get("vision_config", {}).get("image_size", INPUT_SIDE))
    except (OSError, ValueError, TypeError, AttributeError):  # what is wrong with it is said when it is opened
        return INPUT_SIDE
