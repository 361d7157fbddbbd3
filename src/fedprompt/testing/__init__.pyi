from fedprompt.testing.aggregation import (
    AggregationRuleTests,
    ServerOptimizerTests,
    check_aggregation_rule,
    check_server_optimizer,
)
from fedprompt.testing.attack import AttackTests, check_attack
from fedprompt.testing.method import MethodTests, check_method
from fedprompt.testing.partition import PartitionRuleTests, check_partition_rule
from fedprompt.testing.source import SourceTests, check_source
from fedprompt.testing.tiny import (
    ForgetfulCache,
    TinyImages,
    tiny_clip,
    tiny_dataset,
    tiny_images,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)

__all__ = [
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
    "tiny_clip",
    "tiny_dataset",
    "tiny_images",
    "tiny_model",
    "tiny_processor",
    "tiny_tokenizer",
]
