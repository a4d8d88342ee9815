"""What makes training on a CPU faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unfused_attention(model: nn.Module) -> Iterator[None]:
    """Inside the block, timm's attention is computed as two products and a softmax.

    On CPUs the backward pass of torch's fused attention is slower than that of plain products. Its forward pass alone
    is two to three times faster, so evaluation keeps it.
    """
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    try:
        for module in fused:
            module.fused_attn = False
        yield
    finally:
        for module in fused:
            module.fused_attn = True
