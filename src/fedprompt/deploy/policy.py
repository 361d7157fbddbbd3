"""A site's policy against a job: the site wins, and says which rule it was."""

from __future__ import annotations

from fedprompt import methods
from fedprompt.config import Recipe
from fedprompt.deploy.settings import Policy
from fedprompt.errors import UserError
from fedprompt.runtimes.wire import Words


class RefusedError(UserError):
    """A job that the site does not do; its text holds nothing but the rule and what the job itself says."""

    def __init__(self, sentence: str, *, rule: str) -> None:
        super().__init__(f"{sentence} (rule {rule})")


def check_job(policy: Policy, recipe: Recipe, words: Words) -> None:
    """Hold what a job asks for against the policy, before any of it is imported or opened."""
    allowed = policy.methods or methods.names()
    for table in (recipe.method, *recipe.compare):
        if table.name not in allowed:
            raise RefusedError("the job trains a method that this site does not allow.", rule="methods")
        rounds = table.train.get("rounds", recipe.train.rounds)
        if not isinstance(rounds, int) or rounds > policy.maximum_rounds:
            raise RefusedError(f"the job has more than {policy.maximum_rounds} rounds.", rule="maximum_rounds")
    for address in (recipe.data.source, recipe.partition.rule):
        if ":" in address:  # package.module:function would import whatever the server names
            raise RefusedError("the job names code outside fedprompt for its data.", rule="own code")
    if policy.secure_aggregation and words.get("secure_aggregation") is not True:
        raise RefusedError("the job does not use secure aggregation.", rule="secure_aggregation")
    epsilon = words.get("epsilon")
    if policy.epsilon is not None and not (type(epsilon) in (int, float) and 0 < epsilon <= policy.epsilon):
        raise RefusedError(f"the job promises no epsilon of at most {policy.epsilon}.", rule="epsilon")


def check_site(policy: Policy, fingerprint: str, images: int) -> None:
    """Hold what the site itself has found against the policy."""
    if policy.backbones and not fingerprint.startswith(policy.backbones):
        raise RefusedError("the job's backbone is not one that this site allows.", rule="backbones")
    if images < policy.minimum_images:
        raise RefusedError("the site has fewer training pictures than it takes part with.", rule="minimum_images")
