"""Check a job against a site's policy, and refuse it with the name of the rule."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fedprompt import methods
from fedprompt.config.recipe import Recipe, checked
from fedprompt.config.recipe_tables import DescriptionsTable, ServerTable, TrainTable
from fedprompt.demo import DEMO
from fedprompt.deploy.settings import Policy
from fedprompt.errors import UserError
from fedprompt.experiments.class_descriptions import NONE
from fedprompt.federated.privacy.accounting import GaussianPrivacy

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class RefusedError(UserError):
    """A job that the site refuses; the message holds nothing but the rule and what the job itself contains."""

    def __init__(self, sentence: str, *, rule: str) -> None:
        super().__init__(f"{sentence.removesuffix('.')} (rule {rule}).")
        self.rule = rule


def check_job(policy: Policy, recipe: Recipe) -> None:
    """Check a job's recipe against the policy, before anything in it is imported or opened."""
    table, allowed = recipe.method, policy.methods or methods.names()
    if recipe.compare:
        raise RefusedError("the job has several methods; a site is sent one at a time.", rule="methods")
    if table.name not in allowed:
        raise RefusedError("the job trains a method that this site does not allow.", rule="methods")
    train = checked(TrainTable, recipe.train.model_dump() | table.train, origin="job")
    if train.rounds > policy.maximum_rounds:
        raise RefusedError(f"the job has more than {policy.maximum_rounds} rounds.", rule="maximum_rounds")
    if train.local_epochs > policy.maximum_epochs:
        raise RefusedError(f"the job has more than {policy.maximum_epochs} local epochs.", rule="maximum_epochs")
    if train.server.attack is not None or train.sharing != "federated":
        raise RefusedError("the job has an attack or a sharing that only simulations have.", rule="simulation")
    if policy.secure_aggregation and train.server.secure is None:
        raise RefusedError("the job does not use secure aggregation.", rule="secure_aggregation")
    _check_descriptions(checked(DescriptionsTable, recipe.descriptions.model_dump() | table.descriptions, origin="job"))
    if any(":" in address for address in _addresses(recipe, train.server)):
        # package.module:function would import code that the server chooses
        raise RefusedError("the job names code outside fedprompt.", rule="own code")


def check_backbone(path: str, own: str) -> None:
    """Check that a job's backbone has the form of a Hub id, unless the site names its own, which is taken in its place.

    The answer must not depend on what files the site has, so nothing is looked up here.
    """
    if own or path == DEMO:
        return
    if not HUB_ID.fullmatch(path):
        raise RefusedError(
            "the job names a path as backbone; name a Hub id in the recipe, or the folder in the site's own site.toml.",
            rule="backbone",
        )


def _check_descriptions(descriptions: DescriptionsTable) -> None:
    if any(
        isinstance(named, str) and named not in ("", NONE)
        for named in (descriptions.attributes, descriptions.conditions, descriptions.foreign)
    ):
        raise RefusedError("the job names a descriptions file; descriptions belong in the job.", rule="descriptions")


def _addresses(recipe: Recipe, server: ServerTable) -> Iterator[str]:
    """Every name in a job that could refer to code."""
    yield recipe.data.source
    yield recipe.partition.rule
    for piece in (server.aggregate, server.optimizer, server.privacy, server.attack):
        if piece is not None:
            yield piece.name


def check_recipe(policy: Policy, found: str) -> None:
    """Check the hash of a job's recipe against those that the policy allows."""
    if policy.recipes and not found.startswith(policy.recipes):
        raise RefusedError(f"the job's recipe {found[:16]} is not one that this site allows.", rule="recipes")


def check_privacy(policy: Policy, privacy: GaussianPrivacy | None, images: int) -> None:
    """Check that what the job promises is within the policy, and that the site itself adds the noise."""
    if policy.epsilon is None and not policy.minimum_noise:
        return
    rule = "minimum_noise" if policy.epsilon is None else "epsilon"
    if privacy is None:
        raise RefusedError("the job has no differential privacy.", rule=rule)
    if privacy.at_client(images=images, batch_size=1, epochs=1) is None:
        raise RefusedError(
            "the job's noise is added by the server, which receives this site's plain update; only noise that the "
            "site adds itself counts, as with the privacy 'sample' or 'distributed'.",
            rule=rule,
        )
    if privacy.noise < policy.minimum_noise:
        raise RefusedError(f"the job's noise is below {policy.minimum_noise:g}.", rule="minimum_noise")
    if policy.epsilon is None:
        return
    if privacy.epsilon > policy.epsilon:
        raise RefusedError(f"the job has no privacy budget of at most {policy.epsilon:g}.", rule="epsilon")
    if privacy.delta > policy.delta_for(images):
        most = "that of the site's policy" if policy.delta else "1 / images of the site, and at most 1e-3"
        raise RefusedError(f"the job's delta is above {most}.", rule="delta")


def check_site(policy: Policy, fingerprint: str, images: int) -> None:
    """Check the backbone and the number of images at the site against the policy."""
    if policy.backbones and not fingerprint.startswith(policy.backbones):
        raise RefusedError("the job's backbone is not one that this site allows.", rule="backbones")
    if images < policy.minimum_images:
        raise RefusedError("the site has fewer training images than its minimum.", rule="minimum_images")
