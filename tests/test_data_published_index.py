from __future__ import annotations

import os

import pytest
import torch

from fedprompt.data.published import index
from fedprompt.data.published.catalog import list_images
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError
from trees import TREES, picture


@pytest.fixture(autouse=True)
def every_listing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MIN_FILES", 0)
    monkeypatch.setenv("FEDPROMPT_CACHE", str(tmp_path / "cache"))


def indexes(tmp_path):
    return sorted((tmp_path / "cache/indexes").glob("*"))


@pytest.mark.parametrize("name", ["officehome", "voc2007", "coco_zero_shot", "dtd"])
def test_an_index_says_what_its_reader_said(name, tmp_path, monkeypatch):
    TREES[name](tmp_path)
    _, found, fingerprint = list_images(name, tmp_path, {})
    fresh = index.indexed  # what the reader itself says
    monkeypatch.setattr("fedprompt.data.published.catalog.indexed", lambda root, wanted, read: (read(), ""))
    read = list_images(name, tmp_path, {})[1]
    monkeypatch.setattr("fedprompt.data.published.catalog.indexed", fresh)
    for column in ("names", "splits", "domains", "test_candidates", "base", "notes", "missing_note", "files_exist"):
        assert getattr(found, column) == getattr(read, column), column
    assert list(found.files) == list(read.files) and torch.equal(found.targets, read.targets)
    assert found.files[-1] == read.files[-1] and found.files[:2] == list(read.files[:2])
    before = indexes(tmp_path)[0].stat().st_mtime_ns
    assert list_images(name, tmp_path, {})[2] == fingerprint != ""
    assert indexes(tmp_path)[0].stat().st_mtime_ns == before  # only opened


def test_what_changes_on_disk_or_in_the_options_is_seen(tmp_path):
    TREES["officehome"](tmp_path)
    path, found, fingerprint = list_images("officehome", tmp_path, {})
    picture(path / "Art/TV/new.jpg")
    _, later, other = list_images("officehome", tmp_path, {})
    assert len(later.files) == len(found.files) + 1 and other != fingerprint
    picture(path / "Art/Zebra/new.jpg")
    assert "Zebra" in list_images("officehome", tmp_path, {})[1].names
    list_images("officehome", tmp_path, {"fractions": [0.8, 0.1]})
    assert len(indexes(tmp_path)) == 2


def test_a_damaged_index_is_made_again(tmp_path):
    TREES["dtd"](tmp_path)
    _, _, fingerprint = list_images("dtd", tmp_path, {})
    indexes(tmp_path)[0].write_bytes(b"PAR1 no more")
    assert list_images("dtd", tmp_path, {})[2] == fingerprint


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    TREES["dtd"](tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDPROMPT_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(UserError, match="FEDPROMPT_CACHE"):
        list_images("dtd", tmp_path, {})


def test_small_listings_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MIN_FILES", 10)
    listing = Listing(("a",), ("x",), torch.zeros(1, dtype=torch.int64), ("train",), ("",))
    assert index.indexed(tmp_path, "", lambda: listing) == (listing, "")
    assert not indexes(tmp_path)
