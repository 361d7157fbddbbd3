"""What a job's choice of images, scores, losses and survivors can tell a server, and what stays the site's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fedprompt.config.recipe import Recipe, parse_recipe, recipe_keys
from fedprompt.config.recipe_tables import NamedBlock
from fedprompt.config.registry import PARTITION_RULES, SOURCES, is_at_sites
from fedprompt.config.settings import suggestion
from fedprompt.config.values import table_in
from fedprompt.deploy.job_keys import OWNERS, check_keys, keys_of, local_recipe, overruled, owner
from fedprompt.deploy.jobs import Jobs
from fedprompt.deploy.settings import SITE, OwnImagesTable, Policy, SiteFile, save
from fedprompt.deploy.site import Site
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.errors import UserError
from fedprompt.experiments.plan import block_options, resolve
from fedprompt.runtimes.payload import DONE, EVALUATE, HELLO, REFUSED, TRAIN, VALIDATE, Payload, RawTensor
from fedprompt.seeding import numpy_stream
from fedprompt.testing import tiny_images
from test_deploy_trust import LyingServer, noisy, reason, start

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")
__all__ = ["start"]

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "12"))


def keys_of_schema() -> list[str]:
    """Every key that a recipe for images at sites can have, with the options of the blocks that are at sites."""
    options = [
        f"{table}.{name}"
        for table, registry in (("data", SOURCES), ("partition", PARTITION_RULES))
        for block, builder in registry.builders.items()
        if is_at_sites(builder)
        for name in block_options(table, block) or ()
    ]
    return [*recipe_keys(), "compare", *options]


def test_every_key_of_a_recipe_has_an_owner() -> None:
    missing = [key for key in keys_of_schema() if owner(key) is None]
    assert not missing, f"add to deploy/job_keys.py: {missing}"
    known = {*keys_of_schema(), *(key for key in OWNERS if key.endswith(".*"))}
    assert OWNERS.keys() <= known, "no owner of a key that there is not"
