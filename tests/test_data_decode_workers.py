from __future__ import annotations

import pytest
import torch

from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images
from fedprompt.errors import UserError
from trees import picture


def test_decoding_in_processes_changes_no_bit_and_errors_arrive(tmp_path, tiny_parts):
    files = tuple(f"{number}.jpg" for number in range(40))
    for file in files:
        picture(tmp_path / file)
    images = Images(FileSource(tmp_path, files), tuple(range(40))).flipped(torch.arange(40) % 2 == 0)
    with_workers = Clip(*tiny_parts, cache=FeatureCache(memory_bytes=0), batch=3, workers=2)
    alone = Clip(*tiny_parts, cache=FeatureCache(memory_bytes=0), batch=3)
    assert torch.equal(with_workers.image_features(images), alone.image_features(images))
    once = with_workers._decoder._pool
    other = Images(FileSource(tmp_path, files[::-1]), (0, 1, 2, 3))  # the same processes serve any source
    assert torch.equal(with_workers.image_features(other), alone.image_features(other))
    assert with_workers._decoder._pool is once
    (tmp_path / "39.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"39\.jpg is none of"):
        with_workers.image_features(images)
