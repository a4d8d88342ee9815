"""A masked autoencoder around a timm ViT."""

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from soma_det.pretraining.mimetic import mimetic_init
from soma_det.pretraining.objectives import TARGETS


class MaskedAutoencoder(nn.Module):
    """Sees a share of the patches of a picture and predicts what all of them look like.

    The ViT computes on the seen patches only; a light decoder then gets a learned token for every other one. The seen
    patches count too, unlike in He et al.: what is predicted of them is something else than their pixels. Position
    embeddings are fixed sines and cosines of the patch's row and column, for the ViT's whole grid; a crop smaller than it
    takes the window of the grid that corresponds to its place in the picture. Attention starts as `mimetic_init` says.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv 2111.06377).

    Args:
        vit: a timm VisionTransformer with absolute position embeddings; trained in place.
        target: a key of TARGETS.
        mask_ratio: share of the patches that are hidden.
        width, depth: of the decoder.

    Raises:
        ValueError: the ViT is of another kind, the target is unknown or the share is no share.
    """

    def __init__(self, vit: nn.Module, target: str, mask_ratio: float = 0.75, width: int = 128, depth: int = 2):
        super().__init__()
        if getattr(vit, "pos_embed", None) is None or getattr(vit.blocks[0].attn, "qkv", None) is None:
            raise ValueError(
                f"{type(vit).__name__} has no absolute position embeddings or no attention with qkv in one layer: choose "
                "one of timm.list_models('vit_*_patch16_224')."
            )
        if target not in TARGETS:
            raise ValueError(f"Unknown target {target!r}: choose one of {', '.join(TARGETS)}.")
        if not 0.0 < mask_ratio < 1.0:
            raise ValueError(f"The share of hidden patches is {mask_ratio}: it has to lie between 0 and 1.")
        self.vit, self.mask_ratio = vit, mask_ratio
        self.patch, self.grid = vit.patch_embed.patch_size[0], tuple(vit.patch_embed.grid_size)
        self.target = TARGETS[target]
        self.prefix = vit.num_prefix_tokens
        self._fix_position_embeddings()
        self.embed = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.register_buffer("decoder_positions", _positions(self.grid, width), persistent=False)
        self.decoder = nn.Sequential(*(Block(width, num_heads=4, qkv_bias=True) for _ in range(depth)))
        mimetic_init(vit.blocks)
        mimetic_init(self.decoder)
        outputs = self.target(torch.zeros(1, 3, self.patch, self.patch), self.patch).shape[-1]
        self.predict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def _fix_position_embeddings(self) -> None:
        positions = _positions(self.grid, self.vit.embed_dim)
        prefix = self.vit.pos_embed.shape[1] - positions.shape[1]
        with torch.no_grad():
            self.vit.pos_embed.copy_(torch.cat([positions.new_zeros(1, prefix, positions.shape[2]), positions], dim=1))
        self.vit.pos_embed.requires_grad_(False)

    def forward(self, pictures: Tensor, targets: Tensor, places: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of all patches.

        Args:
            pictures: (N, 3, H, W), normalized as the ViT wants them.
            targets: (N, 3, H, W) in 0 to 1, whose patches are to be predicted.
            places: (N, 2) of the crops in their pictures, see Batch.
            noise: (N, patches); the patches of the smallest values are seen.
        """
        size = pictures.shape[2] // self.patch, pictures.shape[3] // self.patch
        order = noise.argsort(dim=1)
        seen = max(1, round(order.shape[1] * (1.0 - self.mask_ratio)))
        window = _windows(self.grid, size, places)  # (N, patches), indices into the grid
        tokens = self._encode(pictures, window, order[:, :seen])
        prediction = self._decode(tokens, window, order)
        wanted = _take(self.target(targets, self.patch), order)
        return (prediction.float() - wanted).square().mean()

    def _encode(self, pictures: Tensor, window: Tensor, seen: Tensor) -> Tensor:
        """-> (N, prefix + seen, C) from the patches ``seen`` (N, seen) alone."""
        vit = self.vit
        patches = vit.patch_embed(pictures)
        patches = patches.flatten(1, 2) if patches.ndim == 4 else patches  # (N, H, W, C) with dynamic_img_size
        tokens = _take(patches + vit.pos_embed[0, -self.grid[0] * self.grid[1] :][window], seen)
        extra = [
            t.expand(len(tokens), -1, -1) for t in (vit.cls_token, getattr(vit, "reg_token", None)) if t is not None
        ]
        return vit.norm(vit.blocks(vit.norm_pre(torch.cat([*extra, tokens], dim=1))))

    def _decode(self, tokens: Tensor, window: Tensor, order: Tensor) -> Tensor:
        """-> (N, patches, outputs), patches in the order of ``order`` (N, patches), the seen ones first."""
        embedded = self.embed(tokens[:, self.prefix :])
        seen = embedded.shape[1]
        hidden = self.mask_token.to(embedded.dtype).expand(len(order), order.shape[1] - seen, -1)
        positions = self.decoder_positions[0][window.gather(1, order)]
        decoded = self.decoder(torch.cat([embedded, hidden], dim=1) + positions)
        return self.predict(decoded)


def _positions(grid: tuple[int, int], width: int) -> Tensor:
    """(1, rows * columns, width)."""
    return build_sincos2d_pos_embed(list(grid), dim=width)[None].float()


def _windows(grid: tuple[int, int], size: tuple[int, int], places: Tensor) -> Tensor:
    """Indices (N, patches) into the grid of windows of ``size`` at ``places`` (N, 2) in it."""
    rows, columns = (
        (place * (whole - part + 1)).long().clamp(0, whole - part)[:, None] + torch.arange(part, device=places.device)
        for place, whole, part in zip(places.T, grid, size)
    )
    return (rows[:, :, None] * grid[1] + columns[:, None, :]).flatten(1)


def _take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (N, T, C) at ``indices`` (N, K) -> (N, K, C)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
