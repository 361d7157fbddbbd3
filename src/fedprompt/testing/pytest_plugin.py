"""The pytest plugin: fixtures of `fedprompt.testing`, for the tests of one's own package.

pytest loads it in every project of the environment, so it imports nothing heavy before a fixture is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fedprompt.clip.feature_cache import FeatureCache
    from fedprompt.clip.model import Clip
    from fedprompt.data.dataset import Dataset
    from fedprompt.testing import TinyImages


@pytest.fixture(scope="session")
def tiny_clip() -> Clip:
    """A random CLIP: 32 px, 16 patches, widths 48 (image), 32 (text) and 24 (joint), 40 tokens, 3 + 3 blocks."""
    from fedprompt import testing

    return testing.tiny_clip()


@pytest.fixture
def tiny_images() -> TinyImages:
    """Twelve random images in memory; `Images(tiny_images, rows)` is a batch of them."""
    from fedprompt import testing

    return testing.tiny_images()


@pytest.fixture
def tiny_dataset() -> Dataset:
    """Single-label data in memory: 180 random images of 10 classes in three domains."""
    from fedprompt import testing

    return testing.tiny_dataset()


@pytest.fixture
def tiny_multilabel_dataset() -> Dataset:
    """Multi-label data in memory: the same images with several labels each."""
    from fedprompt import testing

    return testing.tiny_dataset("multi")


@pytest.fixture
def forgetful_cache() -> FeatureCache:
    """A feature cache that loses a random half of its rows before every look-up: no result may change by a bit."""
    from fedprompt import testing

    return testing.ForgetfulCache()
