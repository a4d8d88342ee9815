"""Attention that starts in the form that it has in trained Transformers."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def mimetic_init(blocks: nn.Module) -> None:
    """Let every token attend to similar and nearby tokens from the start.

    Random attention needs a large part of a short training to find its neighbors by sine and cosine position
    embeddings. For width d and Z of variance 1 / d: W_q W_k^T = 0.7 (Z + I) in every head, W_v W_proj = 0.4 (Z - I).

    Source: Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, 2023 (arXiv 2305.09828).

    Args:
        blocks: of timm, with attn.qkv in one layer. Random numbers come from torch's global generator.
    """
    for block in blocks:
        attention = block.attn
        width, head = attention.qkv.in_features, attention.head_dim
        for start in range(0, width, head):
            query, key = _factors(_noise(width) + 0.7 * torch.eye(width), head)
            attention.qkv.weight[start : start + head] = query
            attention.qkv.weight[width + start : width + start + head] = key
        value, projection = _factors(0.4 / 0.7 * _noise(width) - 0.4 * torch.eye(width), width)
        attention.qkv.weight[2 * width :] = value
        attention.proj.weight.copy_(projection.T)


def _noise(width: int) -> Tensor:
    return 0.7 * torch.randn(width, width) / width**0.5


def _factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B (rank, width), where A^T B is the best approximation of the product with this rank."""
    u, s, vh = torch.linalg.svd(product)
    return (u[:, :rank] * s[:rank].sqrt()).T, s[:rank].sqrt()[:, None] * vh[:rank]
