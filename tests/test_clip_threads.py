"""The number of threads that fits a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.clip.threads import fitting_threads, use_fitting_threads


@pytest.fixture(autouse=True)
def _three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def backbone(**changes: object) -> Any:
    return SimpleNamespace(**{"device": torch.device("cpu"), "batch": 1, "image_width": 160} | changes)


def test_a_small_backbone_has_one_thread_for_the_time_of_a_run(tiny_clip: Clip) -> None:
    with pytest.raises(RuntimeError, match="stopped"), fitting_threads(tiny_clip):
        assert torch.get_num_threads() == 1
        raise RuntimeError("stopped")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("changes", [{"image_width": 768}, {"batch": 32}, {"device": torch.device("meta")}])
def test_others_keep_theirs(changes: dict[str, object]) -> None:
    use_fitting_threads(backbone(**changes))
    assert torch.get_num_threads() == 3


def test_so_does_one_whose_threads_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    use_fitting_threads(backbone())
    assert torch.get_num_threads() == 3
