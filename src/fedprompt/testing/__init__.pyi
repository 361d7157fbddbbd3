from .aggregation import (
    AggregationRuleTests,
    ServerOptimizerTests,
    check_aggregation_rule,
    check_server_optimizer,
)
from .attack import AttackTests, check_attack
from .method import MethodTests, check_method
from .partition import PartitionRuleTests, check_partition_rule
from .source import SourceTests, check_source
from .tiny import (
    ForgetfulCache,
    TinyImages,
    tiny_clip,
    tiny_dataset,
    tiny_images,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)
from .tiny_families import FAMILIES, tiny_backbone

__all__ = [
    "FAMILIES",
    "AggregationRuleTests",
    "AttackTests",
    "ForgetfulCache",
    "MethodTests",
    "PartitionRuleTests",
    "ServerOptimizerTests",
    "SourceTests",
    "TinyImages",
    "check_aggregation_rule",
    "check_attack",
    "check_method",
    "check_partition_rule",
    "check_server_optimizer",
    "check_source",
    "tiny_backbone",
    "tiny_clip",
    "tiny_dataset",
    "tiny_images",
    "tiny_model",
    "tiny_processor",
    "tiny_tokenizer",
]
