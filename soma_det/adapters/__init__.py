# Each of these modules registers its methods.
from soma_det.adapters import adaptformer, lora, moa, peft_methods, plain, rein, soma, vpt  # noqa: F401
from soma_det.adapters.registry import (
    ADAPTERS,
    Adapter,
    describe_adapters,
    get_adapter,
    inject_adapter,
    is_mergeable,
    merge_adapter,
)

__all__ = [
    "ADAPTERS",
    "Adapter",
    "describe_adapters",
    "get_adapter",
    "inject_adapter",
    "is_mergeable",
    "merge_adapter",
]
