"""Who decides each key of a recipe at a site: the job, the site's own file, or nobody, as only the server uses the key.

A key that is not in the table is refused. Options of a block that the job names (`method.*`) are the job's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from fedprompt.config.recipe import Recipe
from fedprompt.config.recipe_tables import EvaluateTable, NamedBlock
from fedprompt.config.registry import SOURCES, is_at_sites
from fedprompt.deploy.settings import SITE, SiteFile
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.experiments.keep import HELD_OUT
from fedprompt.text_files import json_text

Owner = Literal["job", "site", "server"]
ANY = ".*"

# What is trained and how. None of these opens a file, and none decides which images are for training or for testing.
_JOB = """
name about seed defaults backbone.path
data.source data.classes data.template data.attributes partition.rule partition.sites
annotation.missing annotation.form
descriptions.attributes descriptions.conditions descriptions.foreign descriptions.missing descriptions.shuffled
method.name method.label method.train method.descriptions method.*
train.rounds train.local_epochs train.batch_size train.lr train.optimizer train.momentum train.weight_decay
train.schedule train.proximal train.fraction train.weighting train.keep train.patience
train.server.aggregate.name train.server.aggregate.* train.server.optimizer.name train.server.optimizer.*
train.server.privacy.name train.server.privacy.* train.server.most_examples train.server.norm_limit
train.server.secure.share train.server.secure.clip train.server.secure.most_examples
evaluate.every evaluate.batch_size evaluate.local evaluate.test evaluate.shifted evaluate.oracle evaluate.threshold
"""
# Machine, files, and the parts of the images: `local_recipe` writes the site's values.
_SITE = """
backbone.batch backbone.workers backbone.memory_gb backbone.memory_on backbone.disk backbone.device backbone.precision
backbone.activations_gb check
data.folders data.links data.window data.unreadable data.test_fraction data.validation_fraction data.seed
evaluate.held_out
"""
# Without any effect at a site, or refused there: further methods, attacks, and any but "federated" sharing.
_SERVER = """
compare vary minutes track data.test evaluate.samples tuning.seed tuning.grid
runtime.name runtime.actors runtime.cpus runtime.gpus runtime.gpu_memory_gb
train.sharing train.server.attack.name train.server.attack.* train.server.attack.adversaries
"""

OWNERS: Mapping[str, Owner] = {
    **dict.fromkeys(_JOB.split(), "job"),
    **dict.fromkeys(_SITE.split(), "site"),
    **dict.fromkeys(_SERVER.split(), "server"),
}


def owner(key: str) -> Owner | None:
    """Who decides a dotted key of a recipe; None for one that is not in the table."""
    return OWNERS.get(key) or OWNERS.get(key.rpartition(".")[0] + ANY)


def keys_of(recipe: Recipe) -> Iterator[str]:
    """All dotted keys of a recipe, options of blocks included."""
    return _keys(recipe, "")


def _keys(table: BaseModel, before: str) -> Iterator[str]:
    names = [*type(table).model_fields, *(table.options if isinstance(table, NamedBlock) else ())]
    for name in names:
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, f"{before}{name}.")
        elif value is not None:
            yield before + name


def check_keys(recipe: Recipe, *, own_images: bool) -> None:
    """Raise RefusedError for a key of a job that is not in the table.

    Options of [data] and [partition] count only where the site has images of its own; elsewhere the images are the
    job's, and no option may be a path.
    """
    for key in keys_of(recipe):
        free = not own_images and key.startswith(("data.", "partition."))
        if owner(key) is None and not free:
            raise RefusedError(f"the job has a key {key!r}, for which this site has no rule.", rule="keys")


def local_recipe(recipe: Recipe, settings: SiteFile) -> Recipe:
    """A job's recipe with this site's own folder, machine and parts of the images.

    Raises RefusedError for a window of grey values other than the site's, on which all sites must agree.
    """
    images, table = settings.images, recipe.backbone
    backbone = table.model_copy(
        update={
            "path": settings.backbone or table.path,
            "batch": settings.batch,
            "workers": images.decoders,
            "memory_gb": settings.memory_gb,
            "disk": None,
            "device": settings.device,
            "precision": settings.precision,
            "activations_gb": settings.activations_gb,
        }
    )
    options: dict[str, Any] = recipe.data.options
    options.pop("test", None)  # images that only the server has
    evaluate, unreadable = recipe.evaluate, recipe.data.unreadable
    if settings.data:
        unreadable = images.unreadable
        _check_window(options.get("window"), settings)
        options |= {
            "folders": {settings.name: settings.data},
            "links": images.links,
            "test_fraction": images.test_fraction,
            "validation_fraction": images.validation_fraction if _holds_out(recipe) else 0.0,
            "seed": images.seed,
        }
        evaluate = EvaluateTable(**{**evaluate.model_dump(), "held_out": 0.0})
    data = type(recipe.data)(source=recipe.data.source, unreadable=unreadable, **options)
    return recipe.model_copy(
        update={"backbone": backbone, "data": data, "evaluate": evaluate, "check": False, "minutes": 0.0}
    )


def _holds_out(recipe: Recipe) -> bool:
    """Whether a job holds out images; how many, and which, the site decides."""
    return recipe.evaluate.held_out > 0 or recipe.train.keep != "last"


def _check_window(asked: object, settings: SiteFile) -> None:
    if json_text(asked) != json_text(settings.images.window):
        raise RefusedError(
            "the job's window of grey values is not this site's, which decides what images can be read; agree on one, "
            f"and write it as window below [images] into {SITE}.",
            rule="window",
        )


def overruled(recipe: Recipe) -> list[str]:
    """Keys with a value of the recipe's own that has no effect on images at sites, which have theirs."""
    if not is_at_sites(SOURCES.find(recipe.data.source, place="[data] source")):
        return []
    options = recipe.data.options
    usual = {"test_fraction": 0.25, "validation_fraction": 0.0, "links": False, "seed": recipe.seed}
    found = [f"data.{name}" for name, value in usual.items() if options.get(name, value) != value]
    if recipe.data.unreadable != type(recipe.data).model_fields["unreadable"].default:
        found.append("data.unreadable")
    return [*found, *(["evaluate.held_out"] if recipe.evaluate.held_out not in (0.0, HELD_OUT) else [])]
