"""The folder of a run: its event log, its checkpoints and its lock."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

from pydantic import JsonValue, ValidationError

from fedprompt.errors import UserError
from fedprompt.file_system import obstacle, open_file, read_bytes, require_folder
from fedprompt.records import vectors
from fedprompt.records.atomic_files import acquire_lock, append_line, write_atomic
from fedprompt.records.checkpoints import ROUND, Checkpoint, read_checkpoint, write_checkpoint
from fedprompt.records.events import BaseEvent, Event, parse_event
from fedprompt.records.output_folder import final_folder, require_no_run, require_no_search
from fedprompt.text_files import json_text, load_json

LARGEST_LINE = 256 << 20  # bytes of an event
SCORES = ("score", "client_scores", "local_images")
_log = logging.getLogger(__name__)


def read_lines(folder: Path) -> Iterator[Mapping[str, JsonValue]]:
    """Yield the JSON objects of `run.jsonl` in order, with their long fields, without an incomplete last line.

    Raises UserError if the folder has no `run.jsonl`, another line is no JSON object, or a file of a line's long fields
    is missing or damaged.
    """

    def read(name: str) -> bytes:
        path = folder / vectors.FOLDER / name
        return read_bytes(path, "copy the whole folder of the run again", most=vectors.LARGEST_FILE)

    for fields in _bare_lines(folder):
        yield vectors.join_long(fields, read)


def _bare_lines(folder: Path) -> Iterator[Mapping[str, JsonValue]]:
    """As `read_lines`, without the long fields."""
    path = folder / "run.jsonl"
    require_folder(folder, "give the folder of a run")
    if what := obstacle(path, "file"):
        why = "" if what == "does not exist" else f" that can be read, it {what}"
        final = final_folder(folder)
        fix = "the folder of a run" if final is None else f"the final run of this search, {final}"
        raise UserError(f"The folder {folder} holds no run.jsonl{why}; give {fix}.")
    with open_file(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            fields = _parse(line)
            if fields is None and line.endswith(b"\n") and file.read(1):
                raise UserError(f"Line {number} of {path} is not a JSON object; restore the file from a copy.")
            if fields is None:
                return
            yield fields


def read_events(folder: Path) -> Iterator[Event]:
    """Yield the events of a run in order; unknown events and fields are skipped.

    Raises UserError as `read_lines`, and for an event whose fields are missing or of another type.
    """
    for number, fields in enumerate(read_lines(folder), start=1):
        try:
            event = parse_event(fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"Line {number} of {folder / 'run.jsonl'} is damaged ({place}: {first['msg']}); restore the file from "
                "a copy."
            ) from error
        if event is not None:
            yield event


class RunFolder:
    """The folder of one run, locked by one process until closed; usable as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "run.jsonl"
        busy = f"The run folder {path} is in use by another process; wait for it or choose another folder."
        self._lock = acquire_lock(path / ".lock", busy=busy)
        self._repair()

    @classmethod
    def create(cls, path: Path) -> Self:
        """Lock a folder that holds no run yet; UserError if it holds one."""
        folder = cls(path)
        try:
            require_no_run(path)
        except UserError:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Lock the folder of a run that is to be resumed; an incomplete last line is removed."""
        require_folder(path, "give the folder of a run")
        require_no_search(path)
        folder = cls(path)
        if folder._is_empty():
            folder.close()
            raise UserError(f"The folder {path} holds no run to resume; start the run first.")
        return folder

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def events(self) -> Iterator[Event]:
        """All events so far, in order."""
        return read_events(self.path)

    def append(self, event: BaseEvent) -> None:
        """Add one event, its long fields as Parquet files; it is on the disk when this returns."""
        fields, files = vectors.split_long(event.fields())
        for name, content in files.items():  # before the line that names them
            path = self.path / vectors.FOLDER / name
            if not path.exists():
                write_atomic(path, content)
        append_line(self.log, json_text(fields).encode() + b"\n")

    def rewind(self, trial: str, round_number: int) -> None:
        """Drop what a trial recorded after a round, so that resuming from its checkpoint records nothing twice.

        The scores of an interruption go too.
        """
        with open_file(self.log) as file:
            lines = list(zip(_lines(file, self.log), _bare_lines(self.path), strict=True))
        own = [place for place, (_, fields) in enumerate(lines) if fields.get("trial") == trial]
        begun = max((place for place in own if _begins(lines[place][1])), default=len(lines))
        trains = any(lines[place][1].get("event") == "round" for place in own if place > begun)

        def is_kept(place: int, fields: Mapping[str, JsonValue]) -> bool:
            number, is_score = fields.get("round"), fields.get("event") in SCORES
            is_final = is_score and place > begun and not trains  # no round since the trial was begun or continued
            return fields.get("trial") != trial or (isinstance(number, int) and number <= round_number and not is_final)

        kept = [pair for place, pair in enumerate(lines) if is_kept(place, pair[1])]
        write_atomic(self.log, b"".join(line for line, _ in kept))
        named = {name for _, fields in kept for name in vectors.vector_files(fields)}
        for path in (self.path / vectors.FOLDER).glob("*.parquet"):
            if path.name not in named:
                path.unlink()

    def save_checkpoint(self, trial: str, checkpoint: Checkpoint, *, before: int = 1) -> None:
        """Write a trial's checkpoint and keep the newest `before` of those before it."""
        path = self.path / "checkpoints" / f"{quote(trial, safe='')}@{checkpoint.round_number:08d}.safetensors"
        write_checkpoint(path, checkpoint)
        older = [other for other in self._checkpoints(trial) if other < path]
        for stale in set(self._checkpoints(trial)) - {path, *older[:before]}:
            stale.unlink()

    def load_checkpoint(self, trial: str, *, round_number: int | None = None) -> Checkpoint | None:
        """The newest undamaged checkpoint of a trial, or that of a round, or None; damage is logged as a warning."""
        for path in self._checkpoints(trial):
            number = path.stem.rpartition("@")[2]
            found = int(number) if ROUND.fullmatch(number) else -1  # of an odd name, which cannot be read either
            if round_number not in (None, found):
                continue
            try:
                return read_checkpoint(path)
            except UserError as error:
                _log.warning("Skipping a damaged checkpoint: %s", error)
        return None

    def _checkpoints(self, trial: str) -> list[Path]:
        return sorted((self.path / "checkpoints").glob(f"{quote(trial, safe='')}@*.safetensors"), reverse=True)

    def _is_empty(self) -> bool:
        return not self.log.exists() or not self.log.stat().st_size

    def _repair(self) -> None:
        for part in self.path.glob("**/.*.part"):  # of a process that was killed while writing
            part.unlink()
        if self._is_empty():
            return
        with self.log.open("rb+") as file:
            last, start = b"", 0
            for line in _lines(file, self.log):
                start, last = start + len(last), line
            if _parse(last) is None:
                file.truncate(start)


def _begins(fields: Mapping[str, JsonValue]) -> bool:
    """Whether a line says that a trial begins, continues, or is scored after an interruption."""
    return fields.get("event") == "trial" and fields.get("status") == "running"


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends; UserError for one of more than `LARGEST_LINE` bytes."""
    while line := file.readline(LARGEST_LINE + 1):
        if len(line) > LARGEST_LINE:
            raise UserError(f"{path} has a line of more than {LARGEST_LINE >> 20} MiB; restore the file from a copy.")
        yield line


def _parse(line: bytes) -> Mapping[str, JsonValue] | None:
    try:
        fields = load_json(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and line.endswith(b"\n") else None
