"""Adapters on the Hugging Face Hub: uploaded with their model card, downloaded at a pinned revision."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath

from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from fedprompt.clip.hub import is_hub_id, published_id
from fedprompt.demo import DEMO
from fedprompt.errors import UserError
from fedprompt.records.adapter import WEIGHTS, load_adapter, to_json
from fedprompt.text_files import load_json_object

CONFIG = "adapter_config.json"
# What is read of a repository; nothing else is downloaded, and no file is executed.
FILES = (CONFIG, WEIGHTS, "attributes.json", "metrics.json", "provenance.json", "README.md")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PEFT = "peft"  # the folder of an export, which says itself on which backbone it stands
KINDS_OF_PATH = (PurePath, PureWindowsPath)


def download(name: str, *, revision: str | None, token: str | None) -> tuple[Path, str]:
    """The folder of the Hub's cache with an adapter, and the commit that it is of.

    Without a network the cache answers. Raises UserError if there is no adapter, or it cannot be had.
    """
    if not is_hub_id(name):
        raise UserError(f"{name} does not exist; give the folder of an adapter or of a run, or owner/name on the Hub.")
    try:
        about = HfApi(endpoint=constants.ENDPOINT, token=token).model_info(name, revision=revision)
        _check_files(name, [one.rfilename for one in about.siblings or ()])
        return _snapshot(name, str(about.sha), token=token)
    except UserError:
        raise
    except LocalEntryNotFoundError:
        return _from_cache(name, revision)
    except (HfHubHTTPError, ValueError) as error:
        at = f" at {revision!r}" if revision else ""
        raise UserError(
            f"The Hub has no adapter {name!r}{at} for you ({_reason(error)}); check name, revision and token."
        ) from error
    except Exception:  # of any kind: a name that is not resolved, a refused connection, HF_HUB_OFFLINE
        return _from_cache(name, revision)


def _snapshot(name: str, revision: str | None, *, token: str | None = None, local: bool = False) -> tuple[Path, str]:
    folder = Path(
        snapshot_download(
            name,
            revision=revision,
            token=token,
            allow_patterns=list(FILES),
            endpoint=constants.ENDPOINT,
            local_files_only=local,
        )
    )
    return folder, folder.name  # the Hub's cache names a snapshot by its commit


def _from_cache(name: str, revision: str | None) -> tuple[Path, str]:
    try:
        return _snapshot(name, revision, local=True)
    except (LocalEntryNotFoundError, ValueError) as error:
        raise UserError(
            f"{name} is no folder here nor in the Hub's cache, and the Hub cannot be reached; copy the adapter here "
            "and give its folder."
        ) from error


def _check_files(name: str, files: Sequence[str]) -> None:
    """Raise UserError unless a repository's files are those of an adapter."""
    if CONFIG not in files:
        raise UserError(f"The repository {name} holds no adapter: it has no {CONFIG}.")
    if WEIGHTS not in files:
        pickles = [file for file in files if file.endswith(PICKLES)]
        instead = f" but {pickles[0]}, a pickle, which could run code and is never loaded" if pickles else ""
        raise UserError(f"The repository {name} has no {WEIGHTS}{instead}; save the adapter with fedprompt again.")


def upload(folder: Path, name: str, *, private: bool, token: str | None, base_model: str | None) -> str:
    """Upload an adapter folder as the repository `name`, and return the commit.

    `base_model` is the Hub id of the backbone, if the adapter was trained with a copy in a folder. Raises UserError if
    it is needed or no id, and if the Hub refuses.
    """
    used = load_adapter(folder).card.base_model_name_or_path
    base = base_model or published_id(used)
    if base_model is not None and not is_hub_id(base_model):
        raise UserError(f"`base_model` is {base_model!r}; give the Hub id of the backbone, owner/name.")
    if base is None and used != DEMO:
        raise UserError(
            f"The backbone {used} is a folder on this machine, which others do not have; name its copy on the Hub: "
            "push_to_hub(name, base_model='owner/name')."
        )
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with tempfile.TemporaryDirectory(prefix="fedprompt-hub-") as place:
        staged = _staged(folder, Path(place) / "adapter", base)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=staged, commit_message="Upload a fedprompt adapter")
        except (HfHubHTTPError, ValueError) as error:
            raise UserError(f"The Hub did not take {name!r} ({_reason(error)}); check name and token.") from error
        except Exception as error:  # of any kind, as above
            raise UserError(f"The Hub cannot be reached ({_reason(error)}); save the adapter and try later.") from error
    return str(commit.oid)


def _staged(folder: Path, target: Path, base: str | None) -> Path:
    """A copy of an adapter as others may see it: on a backbone that they have, without paths of this machine."""
    ignored = shutil.ignore_patterns(*([] if base else [PEFT]), ".*")
    shutil.copytree(folder, target, ignore=ignored)
    if base is not None:
        for config in (target / CONFIG, target / PEFT / CONFIG):
            if config.is_file():
                found = load_json_object(config.read_bytes())
                config.write_text(to_json({**found, "base_model_name_or_path": base}), encoding="utf-8")
    provenance = target / "provenance.json"
    if provenance.is_file():
        provenance.write_text(to_json(_without_paths(load_json_object(provenance.read_bytes()))), encoding="utf-8")
    card = ModelCard.load(target / "README.md")
    card.data.base_model = base
    card.save(target / "README.md")
    return target


def _without_paths(value: object) -> object:
    """The value with the last part of each absolute path in place of it."""
    if isinstance(value, Mapping):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and (value.startswith("~") or any(kind(value).is_absolute() for kind in KINDS_OF_PATH)):
        return PureWindowsPath(value).name
    return value


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
