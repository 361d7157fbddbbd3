"""Copies of backbones from the Hugging Face Hub as folders, to carry to machines without a network.

Only safetensors, configuration and tokenizer files are taken, at one commit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fedprompt.clip.hub import CONFIGS, is_hub_id
from fedprompt.clip.model import Clip
from fedprompt.errors import UserError, did_you_mean
from fedprompt.file_system import entries, new_folder

WEIGHTS = "model.safetensors"
SHARDS = ("model-*-of-*.safetensors", "model.safetensors.index.json")  # of weights in several files
OPEN_CLIP = ("open_clip_model.safetensors",)
OTHERS = ("*.json", "*.txt", "README.md", "LICENSE*")  # configuration, preprocessing, tokenizer, model card
PROVENANCE = "revision.txt"  # the Hub id and the commit, written into the folder


@dataclass(frozen=True)
class Fetched:
    """A copy of a CLIP: its commit, the fingerprint of its weights, and the bytes of the folder."""

    folder: Path
    commit: str
    fingerprint: str
    size: int


def fetch(name: str, folder: Path, *, revision: str = "main", load: Callable[[Path], Clip] = Clip.load) -> Fetched:
    """Copy the CLIP `name` of the Hub into a new folder at the commit that `revision` is now.

    The folder appears when everything is there and opens as a CLIP, or not at all. Raises UserError if the Hub has no
    such CLIP with safetensors, does not answer, or the folder cannot be made.
    """
    if not is_hub_id(name):
        raise UserError(f"{name!r} is no id of the Hub; write owner/name, e.g. openai/clip-vit-base-patch16.")
    with new_folder(folder) as part:
        with _sentences(name, revision):
            about = HfApi(endpoint=constants.ENDPOINT).model_info(name, revision=revision)
            commit, files = str(about.sha), [one.rfilename for one in about.siblings or ()]
            wanted = _wanted(name, revision, files)
            snapshot_download(name, revision=commit, local_dir=part, allow_patterns=wanted, endpoint=constants.ENDPOINT)
        shutil.rmtree(part / ".cache", ignore_errors=True)  # what the client keeps to continue downloads
        clip = load(part)
        (part / PROVENANCE).write_text(f"{name} {commit}\n", encoding="utf-8")
    size = sum(entry.stat().st_size for entry in entries(folder))
    return Fetched(folder, commit, clip.fingerprint, size)


def _wanted(name: str, revision: str, files: Sequence[str]) -> list[str]:
    """The files of a repository that make a folder; UserError if it has no configuration or no safetensors.

    Of a repository with a model of transformers and a checkpoint of open_clip, the model is taken.
    """
    top = [file for file in files if "/" not in file]
    if not any(config in top for config in CONFIGS):
        raise UserError(
            f"{name} has no {' or '.join(CONFIGS)} at revision {revision!r}, so it is no CLIP; give another id."
        )
    own = CONFIGS[0] in top
    weights = [file for file in top if any(fnmatch(file, one) for one in ((WEIGHTS, *SHARDS) if own else OPEN_CLIP))]
    weights = [WEIGHTS] if WEIGHTS in weights else weights
    if not any(file.endswith(".safetensors") for file in weights):
        raise UserError(
            f"{name} has no weights as safetensors at revision {revision!r}, and other forms may run code when they "
            f"are opened. Give another id, or --revision with a conversion: see the pull requests of {name} on the "
            "Hub, e.g. --revision refs/pr/1."
        )
    others = [file for file in top if any(fnmatch(file, one) for one in OTHERS) and not fnmatch(file, "*.index.json")]
    return sorted({*weights, *others})


@contextmanager
def _sentences(name: str, revision: str) -> Iterator[None]:
    """Turn what the Hub and its client raise into UserErrors."""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{name} is given only to those who accept its terms: do so on the Hub and set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"The Hub has no model {name!r}, or it is private; correct the id, or set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        hint = did_you_mean(revision, ("main",)) or "; give a branch, a tag or a commit."
        raise UserError(f"{name} has no revision {revision!r}{hint}") from error
    except HFValidationError as error:
        raise UserError(f"{name!r} is no id of the Hub ({error}); write owner/name.") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            "HF_HUB_OFFLINE is set, so nothing can be fetched; unset it on a machine with a network."
        ) from error
    except UserError:
        raise
    except Exception as error:  # of any kind: a name that is not resolved, a refused connection, a full disk
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"{name} cannot be fetched from {constants.ENDPOINT} ({reason}). Run this on a machine with a network, and "
            "carry the folder over."
        ) from error
