"""Whether copies on the Hub still have the columns that the table of data sets says (run with HF_HUB_OFFLINE=0)."""

from __future__ import annotations

import os

import pytest

from fedprompt.data.published.catalog import catalog
from fedprompt.data.sources.huggingface import find_image_column, find_label_column

datasets = pytest.importorskip("datasets")
offline = os.environ.get("HF_HUB_OFFLINE") != "0"
pytestmark = [pytest.mark.live, pytest.mark.skipif(offline, reason="asks the Hub; set HF_HUB_OFFLINE=0")]
COPIES = {name: row.hub for name, row in catalog().items() if row.hub}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_has_pictures_labels_and_the_splits_we_take(name):
    rules = COPIES[name]
    stream = datasets.load_dataset(rules.id, streaming=True)
    part = next(iter(stream.values()))
    features = part.features or part._resolve_features().features
    assert find_image_column(features) in features and find_label_column(features, rules) in features
    assert set(rules.splits) <= set(stream)
