"""What reads images that are given in another form than a source takes: a table for a folder, or the reverse."""

from __future__ import annotations

from pathlib import Path

from fedprompt.data.intake.tables import column_names, is_table
from fedprompt.errors import UserError, wording
from fedprompt.file_system import is_file, is_folder, require_file, require_folder
from fedprompt.text_files import data_setting

TABULAR = (".parquet", ".json", ".arrow", ".feather", ".xlsx", ".xls", ".ods")  # which no source takes by their path


def train_command(path: Path) -> str:
    """The command that trains on a folder or a table of images."""
    single = "label" in column_names(path)
    recipe = "own_folder" if is_folder(path) or single else "own_table"
    source = "--set data.source=class_table " if single else ""
    return f"fedprompt run {recipe} {source}{data_setting('path', str(path))}"


def require_image_folder(path: Path) -> None:
    """UserError unless the path is a folder, which says how a table is read."""
    if is_file(path) and (reader := _other(path)):
        raise UserError(f"{path} is a file, not a folder; {reader}.")
    require_folder(path, f"give the folder that holds the images with {data_setting('path', 'FOLDER')}")


def require_image_table(path: Path) -> None:
    """UserError unless the path is a file, which says how a folder of images is read."""
    require_file(path, _other(path) or f"give the table of images with {data_setting('path', 'FILE')}")


def _has_columns(path: Path) -> bool:
    """Whether a file is a table with a column for images and one for labels, at least; a list or a note is none."""
    return len(column_names(path)) > 1


def _other(path: Path) -> str:
    """What reads a path that is there but not in the form that a source takes; empty if nothing is known to."""
    if is_file(path) and path.suffix.lower() in TABULAR:
        return (
            f"{path.suffix} files are not read by their path: write the table as CSV (image,label or image,labels), "
            "or give the folder of a saved Hugging Face or COCO data set, of which fedprompt check says what reads it"
        )
    if not is_table(path) and not is_folder(path):
        return ""
    if is_folder(path) and (tables := sorted(filter(_has_columns, path.iterdir()))):
        path = tables[0]
    kind = "folder of images" if is_folder(path) else f"table such as {path.name}"
    if wording() == "shell":
        return f"a {kind} is read by: {train_command(path)}, with your other options"
    source = "image_folder" if is_folder(path) else "class_table" if "label" in column_names(path) else "label_table"
    return f"a {kind} is read by the source {source!r}"
