"""Adapters on the Hugging Face Hub: uploaded with their model card, downloaded at a pinned revision."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from fedprompt.errors import UserError

# What an adapter folder consists of; nothing else of a repository is downloaded, and no file is executed.
FILES = ("adapter_config.json", "adapter_model.safetensors", "attributes.json", "README.md", "*.json", "*.safetensors")


def download(name: str, *, revision: str | None, token: str | None) -> Path:
    """The folder of the Hub's cache with an adapter; UserError if there is none or the Hub cannot be reached."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"{name} does not exist; give the folder of an adapter or of a run, or owner/name on the Hub.")
    try:
        folder = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(FILES)))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is no folder here, and the Hub cannot be reached; copy the adapter here and give its folder."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"The Hub has no adapter {name!r} for you ({_reason(error)}); check name and token.") from error
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"The repository {name} holds no adapter: it has no adapter_config.json.")
    return folder


def upload(folder: Path, name: str, *, private: bool, token: str | None) -> str:
    """Upload an adapter folder as a repository and return its address; UserError if the Hub refuses."""
    api = HfApi(token=token)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a fedprompt adapter")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"The Hub did not take {name!r} ({_reason(error)}); check name and token.") from error
    return str(address)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
