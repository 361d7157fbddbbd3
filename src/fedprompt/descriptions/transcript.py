"""Transcript of requests and answers, one JSON line each: a re-run sends nothing twice, and an audit is possible."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock

from fedprompt.descriptions.endpoint import Answer, Request
from fedprompt.file_system import read_bytes
from fedprompt.records.atomic_files import acquire_lock, append_line
from fedprompt.text_files import json_text, load_json_object


class Transcript:
    """A transcript file, locked by one process while open; a context manager, and safe to use from threads.

    A line truncated by a crash is skipped and its request sent again. Failed attempts are kept for audits alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._guard = threading.Lock()
        self._lock: filelock.FileLock | None = None

    def __enter__(self) -> Self:
        busy = f"{self.path} is in use by another process; wait for it or write elsewhere."
        self._lock = acquire_lock(self.path.with_name(f".{self.path.name}.lock"), busy=busy)
        self._load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, key: str) -> Answer | None:
        """The kept answer to a request; None if it was never answered."""
        return self._answers.get(key)

    def answered(self, key: str, endpoint: str, request: Request, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        self._append({"key": key, "endpoint": endpoint, "request": asdict(request), "answer": asdict(answer)})
        self._answers[key] = answer

    def failed(self, key: str, endpoint: str, reason: str) -> None:
        """Record an attempt without an answer."""
        self._append({"key": key, "endpoint": endpoint, "failed": reason})

    def _append(self, line: dict[str, object]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._guard:
            append_line(self.path, (json_text({"time": stamp, **line}, ascii_only=False) + "\n").encode())

    def _load(self) -> None:
        if not os.path.lexists(self.path):
            return
        content = read_bytes(self.path, "give another file for the transcript")
        for line in content.splitlines():
            try:
                found = load_json_object(line)
                if "answer" in found:
                    self._answers[str(found["key"])] = Answer(**found["answer"])
            except (ValueError, KeyError, TypeError):
                continue
        if content and not content.endswith(b"\n"):  # a new line must not be appended to a truncated one
            with self.path.open("ab") as file:
                file.write(b"\n")
