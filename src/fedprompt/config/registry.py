"""What the words of a recipe mean: each row is a function whose keywords are its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fedprompt.errors import UserError, did_you_mean

SOURCES: Mapping[str, str] = {
    "pictograms": "fedprompt.demo.world:pictograms",
    "scenes": "fedprompt.demo.world:scenes",
    "image_folder": "fedprompt.data.sources.image_folder:image_folder",
    "sites": "fedprompt.data.sources.sites:sites",
    "label_table": "fedprompt.data.sources.label_table:label_table",
    "class_table": "fedprompt.data.sources.class_table:class_table",
    "coco": "fedprompt.data.sources.coco:coco",
    "voc": "fedprompt.data.sources.voc:voc",
    "webdataset": "fedprompt.data.sources.webdataset:webdataset",
    "huggingface": "fedprompt.data.sources.huggingface:huggingface",
    "published": "fedprompt.data.sources.published:published",
    "suite": "fedprompt.data.sources.suite:suite",
}
RULES: Mapping[str, str] = {
    "class_chunks": "fedprompt.data.partition.class_chunks:class_chunks",
    "iid": "fedprompt.data.partition.iid:iid",
    "dirichlet": "fedprompt.data.partition.dirichlet:dirichlet",
    "by_domain": "fedprompt.data.partition.by_domain:by_domain",
    "by_site": "fedprompt.data.partition.by_site:by_site",
    "label_clusters": "fedprompt.data.partition.label_clusters:label_clusters",
}
AGGREGATES: Mapping[str, str] = {
    "mean": "fedprompt.federated.aggregation.base:mean",
    "median": "fedprompt.federated.aggregation.base:median",
    "trimmed_mean": "fedprompt.federated.aggregation.base:trimmed_mean",
    "geometric_median": "fedprompt.federated.aggregation.robust:geometric_median",
    "krum": "fedprompt.federated.aggregation.robust:krum",
    "multi_krum": "fedprompt.federated.aggregation.robust:multi_krum",
    "centred_clipping": "fedprompt.federated.aggregation.robust:centred_clipping",
    "norm_bounded_mean": "fedprompt.federated.aggregation.robust:norm_bounded_mean",
    "cosine_filter": "fedprompt.federated.aggregation.robust:cosine_filter",
    "fedawa": "fedprompt.federated.aggregation.fedawa:fedawa",
}
OPTIMIZERS: Mapping[str, str] = {
    "fedavgm": "fedprompt.federated.server_optimizers:fedavgm",
    "fedadam": "fedprompt.federated.server_optimizers:fedadam",
}
PRIVACY: Mapping[str, str] = {
    "client": "fedprompt.federated.privacy.clients:ClientPrivacy",
    "sample": "fedprompt.federated.privacy.samples:SamplePrivacy",
}
ATTACKS: Mapping[str, str] = {
    "sign_flip": "fedprompt.federated.attacks:sign_flip",
    "scaled": "fedprompt.federated.attacks:scaled",
    "gaussian": "fedprompt.federated.attacks:gaussian",
    "free_rider": "fedprompt.federated.attacks:free_rider",
    "label_flip": "fedprompt.federated.attacks:label_flip",
    "alie": "fedprompt.federated.attacks:alie",
    "inner_product": "fedprompt.federated.attacks:inner_product",
    "broken": "fedprompt.federated.attacks:broken",
}


SUPPLIED = ("generator", "on_step")  # keywords that the assembly fills in itself, hence no options


def find(table: Mapping[str, str], word: str, *, place: str) -> Callable[..., Any]:
    """Import the function a word stands for; `package.module:function` reaches code of one's own."""
    address = table.get(word, word)
    module, colon, function = address.partition(":")
    if not colon:
        known = ", ".join(table)
        raise UserError(
            f"{place} knows no {word!r}{did_you_mean(word, table)} (known: {known}; your own: package.module:function)."
        )
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{place}: {word!r} cannot be imported ({error}); check the module and the function's name."
        ) from error
    return found  # type: ignore[no-any-return]
