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

from fedprompt.errors import UserError, wording
from fedprompt.file_system import entries, is_file, is_folder, obstacle, read_bytes
from fedprompt.text_files import load_json_object

HUB_SECONDS = 1.5
CONFIGS = ("config.json", "open_clip_config.json")  # of transformers, and of open_clip
WEIGHTS, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
OPEN_CLIP_FILES = (CONFIGS[1], WEIGHTS, PICKLED, "tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json")
INPUT_SIDE = 224


def require_available(path: str | Path, *, fix: str = "") -> None:
    """Raise UserError if there is no such folder, or if a Hub id is neither in the Hub's cache nor reachable.

    `fix` is what to do about it, where no other backbone can be taken.
    """
    name, folder = str(path), Path(path).expanduser()
    if is_folder(folder):
        for entry in entries(folder):  # the library would wait for ever for what a pipe may hold
            if "not a regular file" in (what := obstacle(folder / entry.name, "file")):
                raise UserError(f"The backbone {name!r} has {entry.name}, which {what}; remove it.")
        return
    if not obstacle(folder, "file"):
        return
    if isinstance(path, Path) or not is_hub_id(name):
        fix = fix or "give a folder with a CLIP in it or a Hub id such as 'owner/name'"
        raise UserError(f"There is no backbone folder {name!r}; {fix}.")
    if not any(_cached_configs(name)) and not hub_answers():
        why = "is not asked, since HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "does not answer"
        raise UserError(
            f"The backbone {name!r} cannot be opened: it is not in the cache of the Hugging Face Hub, and the Hub "
            f"{why}; {fix or _other_backbone()}. To carry one here, run `fedprompt backbone fetch {name} FOLDER` on a "
            "machine with a network."
        )


def _other_backbone() -> str:
    """What else to take, as a caller names it."""
    if wording() == "keywords":
        return 'give "demo" for the small embedded CLIP (trained on drawings), or the folder of a CLIP'
    return "set backbone.path=demo for the small embedded CLIP (trained on drawings), or to the folder of a CLIP"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name, and is not a path by its beginning."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and all(name.split("/"))


def published_id(path: str) -> str | None:
    """The Hub id of a backbone, by which everybody can have it; None for a folder and for the embedded one."""
    return path if is_hub_id(path) and not is_folder(Path(path).expanduser()) else None


def cached_folder(name: str) -> Path:
    """The folder of the Hub's cache that holds the model with this id; the id is never looked up as a path.

    Raises UserError if the model is not in the cache. Nothing is fetched.
    """
    found = next((path for path in _cached_configs(name) if path is not None), None)
    if found is None:
        raise UserError(
            f"The backbone {name!r} is not in the cache of the Hugging Face Hub ({constants.HF_HUB_CACHE}); fetch it "
            "into the cache, or name the folder of a copy."
        )
    return found.parent


def _cached_configs(name: str) -> list[Path | None]:
    """Where the Hub's cache has the configurations `CONFIGS` of a model."""
    found: list[object] = [None] * len(CONFIGS)
    with suppress(HFValidationError):
        found = [try_to_load_from_cache(name, one) for one in CONFIGS]
    return [Path(one) if isinstance(one, str) else None for one in found]


def hub_checkpoint(name: str) -> Path | None:
    """The folder of the Hub's cache with an open_clip checkpoint, fetched if need be; None for a model of transformers.

    Of a repository that holds both, transformers' model is taken.
    """
    model, checkpoint = _cached_configs(name)
    if model is not None or not is_hub_id(name):
        return None
    if not hub_answers():
        return checkpoint.parent if checkpoint else None
    with suppress(Exception):  # of any kind; what is wrong with the id is said by the reader of models
        about = HfApi(endpoint=constants.ENDPOINT).model_info(name)
        files = [one.rfilename for one in about.siblings or ()]
        if CONFIGS[0] not in files and CONFIGS[1] in files:
            whole = [one for one in OPEN_CLIP_FILES if one != PICKLED or WEIGHTS not in files]
            folder = snapshot_download(name, allow_patterns=whole, endpoint=constants.ENDPOINT)
            return Path(folder)
    return None


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
    places = [folder / one for one in CONFIGS] if is_folder(folder) else _cached_configs(str(path))
    for place in places:
        try:
            config = load_json_object(read_bytes(place)) if place is not None and is_file(place) else {}
            config = config.get("model_cfg", config)
            found = config.get("vision_config", config.get("vision_cfg", {})).get("image_size")
            if found is not None:
                return int(found)
        except (OSError, ValueError, TypeError, AttributeError):  # what is wrong is said when it is opened
            return INPUT_SIDE
    return INPUT_SIDE
