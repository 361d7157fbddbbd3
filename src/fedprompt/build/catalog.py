"""What the words of a recipe mean: each row is a function whose keywords are its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fedprompt.errors import UserError, did_you_mean

SOURCES: Mapping[str, str] = {
    "pictograms": "fedprompt.demo.world:pictograms",
    "scenes": "fedprompt.demo.world:scenes",
    "folder": "fedprompt.data.readers:image_folder",
    "federation": "fedprompt.data.sites:federation",
    "table": "fedprompt.data.tables:label_table",
    "class_table": "fedprompt.data.formats.manifest:class_table",
    "coco": "fedprompt.data.formats.coco:coco",
    "voc": "fedprompt.data.formats.voc:voc",
    "webdataset": "fedprompt.data.formats.tars:webdataset",
    "hub": "fedprompt.data.formats.hub:hub",
    "named": "fedprompt.data.named:named_set",
    "suite": "fedprompt.data.suite:suite",
}
RULES: Mapping[str, str] = {
    "class_chunks": "fedprompt.data.partition:class_chunks",
    "iid": "fedprompt.data.partition:iid",
    "dirichlet": "fedprompt.data.partition:dirichlet",
    "by_domain": "fedprompt.data.partition:by_domain",
    "by_site": "fedprompt.data.sites:by_site",
    "label_clusters": "fedprompt.data.multilabel:label_clusters",
}
AGGREGATES: Mapping[str, str] = {
    "mean": "fedprompt.federated.aggregate:mean",
    "median": "fedprompt.federated.aggregate:median",
    "trimmed_mean": "fedprompt.federated.aggregate:trimmed_mean",
    "geometric_median": "fedprompt.federated.geometry:geometric_median",
    "krum": "fedprompt.federated.geometry:krum",
    "multi_krum": "fedprompt.federated.geometry:multi_krum",
    "centred_clipping": "fedprompt.federated.geometry:centred_clipping",
    "norm_bounded_mean": "fedprompt.federated.geometry:norm_bounded_mean",
    "cosine_filter": "fedprompt.federated.geometry:cosine_filter",
    "fedawa": "fedprompt.federated.fedawa:fedawa",
}
OPTIMIZERS: Mapping[str, str] = {
    "fedavgm": "fedprompt.federated.steps:fedavgm",
    "fedadam": "fedprompt.federated.steps:fedadam",
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
