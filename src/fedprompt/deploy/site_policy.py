"""Check a job against a site's policy, and refuse it with the name of the rule."""

from __future__ import annotations

from collections.abc import Iterator

from fedprompt import methods
from fedprompt.config.recipe import Recipe, checked
from fedprompt.config.recipe_tables import DescriptionsTable, ServerTable, TrainTable
from fedprompt.deploy.settings import Policy
from fedprompt.errors import UserError
from fedprompt.experiments.class_descriptions import NONE


class RefusedError(UserError):
    """A job that the site refuses; the message holds nothing but the rule and what the job itself contains."""

    def __init__(self, sentence: str, *, rule: str) -> None:
        super().__init__(f"{sentence.removesuffix('.')} (rule {rule}).")


def check_job(policy: Policy, recipe: Recipe) -> None:
    """Check a job's recipe against the policy, before anything in it is imported or opened."""
    allowed = policy.methods or methods.names()
    for table in (recipe.method, *recipe.compare):
        if table.name not in allowed:
            raise RefusedError("the job trains a method that this site does not allow.", rule="methods")
        train = checked(TrainTable, recipe.train.model_dump() | table.train, origin="job")
        if train.rounds > policy.maximum_rounds:
            raise RefusedError(f"the job has more than {policy.maximum_rounds} rounds.", rule="maximum_rounds")
        _check_privacy(policy, train.server)
        _check_descriptions(
            checked(DescriptionsTable, recipe.descriptions.model_dump() | table.descriptions, origin="job")
        )
        if any(":" in address for address in _addresses(recipe, train.server)):
            # package.module:function would import code that the server chooses
            raise RefusedError("the job names code outside fedprompt.", rule="own code")


def _check_privacy(policy: Policy, server: ServerTable) -> None:
    if policy.secure_aggregation and server.secure is None:
        raise RefusedError("the job does not use secure aggregation.", rule="secure_aggregation")
    if policy.epsilon is None:
        return
    promised = server.privacy.options.get("epsilon") if server.privacy is not None else None
    if isinstance(promised, bool) or not isinstance(promised, int | float) or not 0 < promised <= policy.epsilon:
        raise RefusedError(f"the job has no privacy budget of at most {policy.epsilon}.", rule="epsilon")


def _check_descriptions(descriptions: DescriptionsTable) -> None:
    if any(
        isinstance(named, str) and named not in ("", NONE)
        for named in (descriptions.attributes, descriptions.conditions)
    ):
        raise RefusedError("the job names a descriptions file; descriptions belong in the job.", rule="descriptions")


def _addresses(recipe: Recipe, server: ServerTable) -> Iterator[str]:
    """Every name in a job that could refer to code."""
    yield recipe.data.source
    yield recipe.partition.rule
    for piece in (server.aggregate, server.optimizer, server.privacy, server.attack):
        if piece is not None:
            yield piece.name


def check_site(policy: Policy, fingerprint: str, images: int) -> None:
    """Check the backbone and the number of images at the site against the policy."""
    if policy.backbones and not fingerprint.startswith(policy.backbones):
        raise RefusedError("the job's backbone is not one that this site allows.", rule="backbones")
    if images < policy.minimum_images:
        raise RefusedError("the site has fewer training images than its minimum.", rule="minimum_images")
