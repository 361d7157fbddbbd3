"""Where results are to be written, checked before anything is opened: a new folder, or a file that can be made.

Nothing that takes long to import is needed here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedprompt.errors import UserError, option, wording
from fedprompt.file_system import entries, is_file, obstacle

# What a run that stopped before its first record leaves behind; hidden files count as well.
BEGUN = frozenset({"run.jsonl", "recipe.toml", "partition.json", "annotation.safetensors", "federation.json"})
FINAL = "final"  # folder of the final run of a search for settings, in the folder of the search
ROUNDS = "rounds.json"  # in the folder of a search: its numbers of rounds, which a later call takes from there


def resuming(path: Path) -> str:
    """How a run is continued, in a message."""
    return f"`fedprompt resume {path}`" if wording() == "shell" else f"`fedprompt.resume({str(path)!r})`"


def final_folder(path: Path) -> Path | None:
    """The folder of the final run of a search for settings; None if `path` holds no search."""
    return path / FINAL if is_file(path / ROUNDS) and not is_file(path / "run.jsonl") else None


def searching(path: Path) -> str:
    """That a folder holds a search and how it goes on, in a message."""
    call = f"`fedprompt tune` command with --out {path}"
    if wording() != "shell":
        call = f"call of `fedprompt.tune` with out={str(path)!r}"
    return f"{path} holds a search, which goes on with the same {call} as before"


def require_no_search(path: Path) -> None:
    """Raise UserError if a folder holds a search, which is no run to resume."""
    if final_folder(path) is not None:
        raise UserError(f"{searching(path)}.")


def require_no_run(path: Path) -> None:
    """Raise UserError if a folder holds a run."""
    log = path / "run.jsonl"
    if log.exists() and log.stat().st_size:
        raise UserError(
            f"The folder {path} already holds a run; continue it with {resuming(path)}, delete it, or choose another "
            f"folder with {option('out')}."
        )


def require_output_folder(path: Path) -> None:
    """Raise UserError unless a run can be written to a folder: it holds nothing, or does not exist and can be made."""
    if _is_there(path):
        require_no_run(path)
        other = [one.name for one in entries(path) if one.name not in BEGUN and not one.name.startswith(".")]
        if other:
            raise UserError(
                f"The folder {path} is not empty (it holds {other[0]!r}); choose a new folder for the run with "
                f"{option('out')}."
            )
    require_writable(path)


def require_study_folder(path: Path) -> None:
    """Raise UserError unless a study can be written to a folder: it may hold one that goes on, but no single run."""
    if _is_there(path):
        require_no_run(path)
    require_writable(path)


def _is_there(path: Path) -> bool:
    """Whether a folder for results exists; UserError if something else than a folder is at its place."""
    what = obstacle(path, "folder")
    if what and what != "does not exist":
        raise UserError(
            f"The results cannot be written to {path}, which {what}; choose another folder with {option('out')}."
        )
    return not what


def require_output_file(path: Path, option: str) -> None:
    """Raise UserError unless a file can be written; `option` is how the user named it.

    "-", by which other programs mean the output, is no file here.
    """
    if path == Path("-"):
        raise UserError(f"{option} - cannot be written to the output; give the path of a file.")
    what = obstacle(path, "file")
    if what and what != "does not exist":
        raise UserError(f"{option} {path} cannot be written: it {what}; give the path of a file.")
    if what := obstacle(path.parent, "folder"):
        raise UserError(
            f"{option} {path} cannot be written: the folder {path.parent} {what}; give another, or make it."
        )
    require_writable(path.parent)


def require_writable(folder: Path) -> None:
    """Raise UserError unless files can be made in a folder, or in the one above it that exists."""
    existing = next((place for place in (folder, *folder.absolute().parents) if not obstacle(place, "folder")), folder)
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"fedprompt")
    except OSError as error:
        raise UserError(
            f"Nothing can be written to {folder} ({error.strerror}); choose another folder, or free some space."
        ) from error
