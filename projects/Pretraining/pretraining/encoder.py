"""A timm ViT on crops of images, with the position embeddings of the whole image."""

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from pretraining.mimetic import mimetic_init

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet; noted in the exported file


class CropEncoder(nn.Module):
    """The base of all objectives: a ViT that is trained in place.

    Position embeddings are fixed sines and cosines of the patch's row and column in the ViT's whole grid. A smaller
    crop uses the window of the grid where it lies in its image. Attention starts as `mimetic_init` says.

    Args:
        vit: a timm VisionTransformer with absolute position embeddings.

    Raises:
        ValueError: the ViT is of another architecture.
    """

    def __init__(self, vit: nn.Module):
        super().__init__()
        if getattr(vit, "pos_embed", None) is None or getattr(vit.blocks[0].attn, "qkv", None) is None:
            raise ValueError(
                f"{type(vit).__name__} has no absolute position embeddings or no attention with qkv in one layer: "
                "choose one of timm.list_models('vit_*_patch16_224')."
            )
        self.vit = vit
        self.patch, self.grid = vit.patch_embed.patch_size[0], tuple(vit.patch_embed.grid_size)
        self._fix_position_embeddings()
        mimetic_init(vit.blocks)

    def _fix_position_embeddings(self) -> None:
        whole = positions(self.grid, self.vit.embed_dim)
        prefix = self.vit.pos_embed.shape[1] - whole.shape[1]
        with torch.no_grad():
            self.vit.pos_embed.copy_(torch.cat([whole.new_zeros(1, prefix, whole.shape[2]), whole], dim=1))
        self.vit.pos_embed.requires_grad_(False)

    def windows(self, images: Tensor, places: Tensor) -> Tensor:
        """Indices (N, patches) into the grid, of crops (N, 3, H, W) at ``places`` (N, 2) in their images, see Batch."""
        return grid_windows(self.grid, tuple(size // self.patch for size in images.shape[2:]), places)

    def encode(self, images: Tensor, window: Tensor, seen: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) in 0 to 255 -> tokens (N, patches, C), or (N, seen, C) of the patches ``seen``."""
        vit = self.vit
        encoded = vit.norm(vit.blocks(self.embed_patches(vit, images, window, seen)))
        return encoded[:, vit.num_prefix_tokens :]

    def embed_patches(self, vit: nn.Module, images: Tensor, window: Tensor, seen: Tensor | None = None) -> Tensor:
        """The input of the blocks of ``vit``, self.vit or a copy: (N, prefix + patches, C). Arguments as in encode."""
        patches = vit.patch_embed(normalize(images))
        patches = patches.flatten(1, 2) if patches.ndim == 4 else patches  # (N, H, W, C) with dynamic_img_size
        tokens = patches + vit.pos_embed[0, -self.grid[0] * self.grid[1] :][window]
        tokens = tokens if seen is None else take(tokens, seen)
        extra = [
            t.expand(len(tokens), -1, -1) for t in (vit.cls_token, getattr(vit, "reg_token", None)) if t is not None
        ]
        return vit.norm_pre(torch.cat([*extra, tokens], dim=1))

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step. ``progress``: the finished share of the training, 0 to 1."""


def normalize(images: Tensor) -> Tensor:
    """(N, 3, H, W) RGB in 0 to 255, normalized as in the detector."""
    mean, std = (images.new_tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / std


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """(1, rows * columns, width)."""
    return build_sincos2d_pos_embed(list(grid), dim=width)[None].float()


def grid_windows(grid: tuple[int, int], size: tuple[int, int], places: Tensor) -> Tensor:
    """Indices (N, patches) into the grid of windows of ``size`` at ``places`` (N, 2) in it."""
    rows, columns = (
        (place * (whole - part + 1)).long().clamp(0, whole - part)[:, None] + torch.arange(part, device=places.device)
        for place, whole, part in zip(places.T, grid, size)
    )
    return (rows[:, :, None] * grid[1] + columns[:, None, :]).flatten(1)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (N, T, C) at ``indices`` (N, K) -> (N, K, C)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
