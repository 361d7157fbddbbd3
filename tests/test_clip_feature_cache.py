"""The cache gives back what was computed, whatever it forgot, within its budget; its files survive tears."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fedprompt.clip.disk_cache import RowFile
from fedprompt.clip.feature_cache import FeatureCache

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 12), max_size=12)


class Source:
    """Rows that are a function of their key; `computed` lists the keys that were asked for."""

    def __init__(self, width: int = 3) -> None:
        self.width = width
        self.computed: list[int] = []

    def rows(self, keys: torch.Tensor) -> torch.Tensor:
        return torch.stack([keys.float() + column for column in range(self.width)], dim=1)

    def compute(self, keys: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        def compute(positions: torch.Tensor) -> torch.Tensor:
            self.computed += keys[positions].tolist()
            return self.rows(keys[positions])

        return compute

    def fetch(
        self, cache: FeatureCache, keys: list[int] | torch.Tensor, *, source: str = "s", keep: bool = True
    ) -> torch.Tensor:
        wanted = torch.as_tensor(keys, dtype=torch.int64)
        found = cache.fetch("kind", source, wanted, self.compute(wanted), keep=keep)
        assert torch.equal(found, self.rows(wanted) if len(wanted) else torch.empty(0, self.width))
        return found


class WideSource(Source):
    """As above, for requests that may be empty."""

    def rows(self, keys: torch.Tensor) -> torch.Tensor:
        return keys.float()[:, None] + torch.arange(float(self.width))


@given(st.lists(KEYS, max_size=6), st.sampled_from([0, 40, 200, 1 << 20]), st.integers(0, 100))
def test_rows_are_right_whatever_is_asked_forgotten_or_does_not_fit(
    requests: list[list[int]], budget: int, seed: int
) -> None:
    cache, source = FeatureCache(memory_bytes=budget), WideSource()
    generator = torch.Generator().manual_seed(seed)
    for number, keys in enumerate(requests):
        source.fetch(cache, keys, source=str(number % 2))
        assert cache.used_bytes <= budget
        if number % 3 == 2:
            cache.forget(0.5, generator)


def test_each_unknown_key_is_computed_once_in_the_order_asked() -> None:
    cache, source = FeatureCache(), WideSource()
    source.fetch(cache, [5, 3, 5])
    source.fetch(cache, [3, 9, 5, 9, -1])
    assert source.computed == [5, 3, 9, -1]


def test_rows_on_the_way_are_not_kept_unless_put() -> None:
    cache, source = FeatureCache(), WideSource()
    source.fetch(cache, [1, 2], keep=False)
    cache.put("kind", "s", torch.tensor([2]), source.rows(torch.tensor([2])))
    source.fetch(cache, [1, 2])
    assert source.computed == [1, 2, 1]


def test_no_memory_remembers_nothing_and_clear_forgets_everything() -> None:
    off, on, source = FeatureCache(memory_bytes=0), FeatureCache(), WideSource()
    for cache in (off, on):
        source.fetch(cache, [1])
        cache.clear()
        source.fetch(cache, [1])
        assert on.used_bytes <= on.memory_bytes and off.used_bytes == 0
    assert source.computed == [1, 1, 1, 1]


def test_a_loop_over_more_rows_than_fit_still_finds_most_of_those_that_do() -> None:
    cache, source = FeatureCache(memory_bytes=100 * 400), WideSource(100)
    for _ in range(20):
        for keys in torch.arange(200).split(8):
            source.fetch(cache, keys)
    found = 1 - len(source.computed) / (20 * 200)
    assert 0.3 < found <= 0.5


def test_rows_on_disk_are_found_by_the_next_process(tmp_path: Path) -> None:
    first, source = FeatureCache(folder=tmp_path), WideSource()
    source.fetch(first, [1, 2, 3])
    source.fetch(first, [4], source="another")
    first.close()
    second = FeatureCache(memory_bytes=0, folder=tmp_path)
    source.fetch(second, [3, 7, 1])
    source.fetch(second, [4], source="another")
    source.fetch(second, [4])
    assert source.computed == [1, 2, 3, 4, 7, 4]


def test_a_second_writer_only_reads(tmp_path: Path) -> None:
    first, source = FeatureCache(folder=tmp_path), WideSource()
    source.fetch(first, [1, 2])
    second = FeatureCache(memory_bytes=0, folder=tmp_path)
    source.fetch(second, [2, 3])
    source.fetch(second, [3])
    source.fetch(first, [3])
    assert source.computed == [1, 2, 3, 3, 3]


def test_rows_that_the_writer_adds_are_found_by_readers_that_are_open_already(tmp_path: Path) -> None:
    writer, reader = FeatureCache(folder=tmp_path), FeatureCache(folder=tmp_path)
    source, own = WideSource(), WideSource()
    own.fetch(reader, [1])  # before there is any file
    source.fetch(writer, [1, 2])
    own.fetch(reader, [2])
    source.fetch(writer, [3])
    own.fetch(reader, [3, 2, 1])
    assert own.computed == [1], "2 and 3 were read from the files of the other"


READ = """
import sys, torch
from fedprompt.clip.feature_cache import FeatureCache
folder, last = sys.argv[1], int(sys.argv[2])
cache, computed = FeatureCache(folder=folder, memory_bytes=0), []
print("reading", flush=True)
def compute(positions):
    computed.extend(positions.tolist())
    return torch.stack([row(int(keys[position])) for position in positions])
def row(key):
    return torch.full((1000,), float(key))
for turn in range(100_000):
    keys = torch.randint(last + 1, (4,), generator=torch.Generator().manual_seed(turn))
    computed.clear()
    rows = cache.fetch("kind", "source", keys, compute)
    assert torch.equal(rows, torch.stack([row(int(key)) for key in keys]))
    keys = torch.tensor([last])
    computed.clear()
    cache.fetch("kind", "source", keys, compute)
    if not computed:
        sys.exit()
raise SystemExit("the last row never came")
"""


def test_processes_read_right_rows_while_another_writes(tmp_path: Path) -> None:
    writer, last = FeatureCache(folder=tmp_path), 400
    readers = [
        subprocess.Popen([sys.executable, "-c", READ, str(tmp_path), str(last)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for reader in readers:
        assert reader.stdout is not None and reader.stdout.readline() == b"reading\n"
    for key in range(last + 1):
        writer.fetch("kind", "source", torch.tensor([key]), lambda _, key=key: torch.full((1, 1000), float(key)))
    assert [reader.wait(timeout=120) for reader in readers] == [0, 0]


@pytest.mark.parametrize("ending", [".rows", ".keys"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_file_costs_only_the_rows_in_it(tmp_path: Path, ending: str, keep: float) -> None:
    cache, source = FeatureCache(folder=tmp_path), WideSource(50)
    source.fetch(cache, list(range(20)))
    cache.close()
    (torn,) = tmp_path.glob(f"*{ending}")
    content = torn.read_bytes()
    torn.write_bytes(content[: int(len(content) * keep)])
    source.computed.clear()
    for lost in (True, False):  # what was lost is written again, over the tear
        cache = FeatureCache(folder=tmp_path)
        source.fetch(cache, list(range(20)))
        cache.close()
        assert 0 < len(source.computed) <= 20
        if lost:
            computed = len(source.computed)
    assert len(source.computed) == computed


@pytest.mark.parametrize("ending", [".rows", ".keys"])
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
@example(position=192, value=0)  # the fifth key becomes the first's
def test_a_damaged_byte_never_gives_a_wrong_row(
    tmp_path_factory: pytest.TempPathFactory, ending: str, position: int, value: int
) -> None:
    folder, source = tmp_path_factory.mktemp("cache"), WideSource(10)
    cache = FeatureCache(folder=folder)
    source.fetch(cache, list(range(5)))
    cache.close()
    (damaged,) = folder.glob(f"*{ending}")
    content = bytearray(damaged.read_bytes())
    content[position % len(content)] = value
    damaged.write_bytes(content)
    cache = FeatureCache(memory_bytes=0, folder=folder)
    source.fetch(cache, list(range(5)))
    cache.close()


def test_a_full_disk_ends_the_writing_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache, source = FeatureCache(memory_bytes=0, folder=tmp_path), WideSource()
    source.fetch(cache, [1])
    monkeypatch.setattr(RowFile, "write", full)
    with caplog.at_level(logging.WARNING):
        source.fetch(cache, [2])
        source.fetch(cache, [3])
    source.fetch(cache, [1, 2])
    assert source.computed == [1, 2, 3, 2]
    assert len(caplog.records) == 1


def test_a_short_write_is_a_full_disk(tmp_path: Path) -> None:
    class Short:
        def seek(self, _: int) -> None: ...

        def write(self, content: bytes) -> int:
            return len(content) // 2

    file = RowFile(tmp_path / "rows", writable=True)
    file.write([1], torch.zeros(1, 3))
    assert file.files is not None
    file.close()
    file.files = (Short(), Short())  # type: ignore[assignment]
    with pytest.raises(OSError, match="the disk is full"):
        file.write([2], torch.zeros(1, 3))
    assert file.read([2]) == ([], None)


def test_the_disk_budget_is_kept_across_processes(tmp_path: Path) -> None:
    source = WideSource(256)
    for _ in range(2):
        cache = FeatureCache(folder=tmp_path, disk_bytes=5_000)
        for key in range(10):
            source.fetch(cache, [key])
        cache.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 5_000
    assert len(source.computed) == 10 + 6


def test_a_folder_that_cannot_be_made_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, source = FeatureCache(folder=tmp_path / "file" / "cache"), WideSource()
    source.fetch(cache, [1, 2])
    source.fetch(cache, [2])
    assert source.computed == [1, 2]
    assert "are not kept" in caplog.text


@pytest.mark.parametrize("budget", [0, 200, 1 << 20])
def test_rows_are_on_the_device_of_the_cache_however_they_were_found(budget: int) -> None:
    place = torch.device("meta")  # another device than the CPU, which every machine has; it holds no values
    source, cache = Source(), FeatureCache(memory_bytes=budget, device=place)
    for keys in ([1, 2], [2, 3, 4, 2], list(range(40)), [1, 2, 39]):
        wanted = torch.tensor(keys)
        found = cache.fetch("kind", "s", wanted, source.compute(wanted))
        assert found.device == place and found.shape == (len(keys), 3)
