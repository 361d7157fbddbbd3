"""One client per site, with the images that lie there, as in a deployed (cross-silo) federation."""

from __future__ import annotations

from fedprompt.config.registry import at_sites
from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.errors import UserError

SERVER = "server"  # the domain of images that the server tests with


@at_sites
def by_site(dataset: Dataset, *, sites: tuple[str, ...] = ()) -> Partition:
    """Give each site, in the order of names, all training images of base classes in the domain with its name.

    Every client has all base classes as candidates, and is tested on the test images in its domain. `sites` are those
    that take part, whether or not their images are readable here; by default all seen domains of the data set except
    the server's.
    """
    seen = [domain for domain in dataset.seen_domains if domain != SERVER]
    if not sites and seen == [""]:
        raise UserError(f"The data set {dataset.name!r} has no domains that could be sites; use the source 'sites'.")
    classes = dataset.base if dataset.space.kind == "single" else None
    shards = []
    for name in sorted(sites or seen):
        rows = dataset.rows(split="train", classes=classes, domains=(name,) if name in seen else ())
        shards.append(Shard(name, tuple(rows.tolist()), dataset.base, name))
    return Partition("by_site", 0, tuple(shards))
