"""Hash chains: what is appended stays as it was written, and anything else is found."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedprompt.deploy.hash_chain import DamagedError, Entry, HashChain, read_chain
from fedprompt.errors import UserError


def append(path: Path, *texts: str) -> HashChain:
    chain = HashChain(path)
    for text in texts:
        with chain.locked() as new:
            list(new)
            chain.append({"text": text})
    return chain


def texts(path: Path) -> list[str]:
    return [entry.fields["text"] for entry in read_chain(path)]


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "chain.jsonl"
    append(path, "a", "ü}", '"hash":"')
    content = path.read_bytes()
    for place in range(len(content)):
        for flip in (1, 0x20, 0x80, content[place] ^ 0x0A, content[place] ^ 0x0D):
            if flip:
                path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
                with pytest.raises(DamagedError, match="was changed"):
                    list(read_chain(path))
                with pytest.raises(DamagedError):
                    append(path, "more")
    path.write_bytes(content)
    assert texts(path) == ["a", "ü}", '"hash":"']


def test_removed_repeated_swapped_and_foreign_lines_are_found(tmp_path: Path) -> None:
    path, other = tmp_path / "chain.jsonl", tmp_path / "other.jsonl"
    append(path, "a", "b", "c")
    append(other, "x", "b", "c")
    one, two, three = path.read_bytes().splitlines(keepends=True)
    foreign = other.read_bytes().splitlines(keepends=True)
    for lines in ([two, three], [one, three], [one, one, two], [one, three, two], [one, foreign[1], three], [b"{}\n"]):
        path.write_bytes(b"".join(lines))
        with pytest.raises(DamagedError):
            list(read_chain(path))


def test_a_line_cut_short_by_a_power_cut_is_dropped_and_a_whole_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "chain.jsonl"
    append(path, "a", "b")
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    for end in range(start, len(content) - 1):
        path.write_bytes(content[:end])
        assert texts(path) == ["a"]
    append(path, "c")
    assert texts(path) == ["a", "c"]
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedError):
        append(path, "c")


def test_lines_that_a_process_has_seen_cannot_go(tmp_path: Path) -> None:
    path = tmp_path / "chain.jsonl"
    chain = append(path, "a", "b")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(DamagedError, match="lost lines"), chain.locked() as new:
        list(new)
    path.unlink()
    with pytest.raises(DamagedError, match="is gone"), chain.locked() as new:
        list(new)


def test_two_processes_append_to_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "chain.jsonl"
    first, second = HashChain(path), HashChain(path)
    for number, chain in enumerate([first, second, second, first, second]):
        with chain.locked() as new:
            list(new)
            chain.append({"text": str(number)})
    assert texts(path) == list("01234") and first.last == list(read_chain(path))[3]


def test_on_a_full_disk_nothing_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "chain.jsonl", os.write
    chain = append(path, "a")

    def full(handle: int, content: memoryview) -> int:
        write(handle, content[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="free some space"), chain.locked() as new:
        list(new)
        patch.setattr(os, "write", full)
        chain.append({"text": "b"})
    append(path, "c")
    assert texts(path) == ["a", "c"] and chain.last == Entry(1, chain.last.fields, chain.last.hash, chain.last.end)
