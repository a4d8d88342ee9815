"""Masked prediction with a timm ViT: of an image's pixels or gradients, or of other targets by subclasses."""

from collections.abc import Sequence

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pretraining.encoder import CropEncoder, positions, take
from pretraining.mimetic import mimetic_init
from pretraining.objectives import TARGETS


class MaskedPrediction(CropEncoder):
    """Sees some patches of an image and predicts a target of all patches, which a subclass defines.

    The ViT computes on the seen patches only. A light decoder gets a learned token for each hidden patch. Unlike in He
    et al., the seen patches count in the loss too, since their targets are not their pixels.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv 2111.06377).

    Args:
        vit: a timm VisionTransformer with absolute position embeddings; trained in place.
        outputs: length of each patch's target.
        mask_ratio: share of the patches that are hidden.
        width, depth: of the decoder.

    Raises:
        ValueError: the share is not between 0 and 1; see CropEncoder too.
    """

    def __init__(self, vit: nn.Module, outputs: int, mask_ratio: float = 0.75, width: int = 128, depth: int = 2):
        super().__init__(vit)
        if not 0.0 < mask_ratio < 1.0:
            raise ValueError(f"The share of hidden patches is {mask_ratio}; choose one above 0 and below 1.")
        self.mask_ratio = mask_ratio
        self.embed = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.register_buffer("decoder_positions", positions(self.grid, width), persistent=False)
        self.decoder = nn.Sequential(*(Block(width, num_heads=4, qkv_bias=True) for _ in range(depth)))
        mimetic_init(self.decoder)
        self.predict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def targets(self, images: Tensor, window: Tensor) -> Tensor:
        """The targets: images (N, 3, H, W) in 0 to 255, window (N, patches) -> (N, patches, outputs)."""
        raise NotImplementedError

    def prepare(
        self, crop: np.ndarray, _others: Sequence[np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """noise (patches,): the patches with the smallest values are seen."""
        patches = crop.shape[0] // self.patch * (crop.shape[1] // self.patch)
        return {"noise": rng.random(patches, dtype=np.float32)}

    def forward(self, images: Tensor, places: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Mean squared error of all patches; images (N, 3, H, W) in 0 to 255, places (N, 2), noise (N * patches,)."""
        order = noise.view(len(images), -1).argsort(dim=1)
        seen = max(1, round(order.shape[1] * (1.0 - self.mask_ratio)))
        window = self.windows(images, places)
        tokens = self.encode(images, window, order[:, :seen])
        prediction = self._decode(tokens, window, order)
        targets = take(self.targets(images, window), order)
        return {"loss_masked": (prediction.float() - targets).square().mean()}

    def _decode(self, tokens: Tensor, window: Tensor, order: Tensor) -> Tensor:
        """(N, patches, outputs), with the patches in the order of ``order`` (N, patches), seen ones first."""
        embedded = self.embed(tokens)
        seen = embedded.shape[1]
        hidden = self.mask_token.to(embedded.dtype).expand(len(order), order.shape[1] - seen, -1)
        places = self.decoder_positions[0][window.gather(1, order)]
        decoded = self.decoder(torch.cat([embedded, hidden], dim=1) + places)
        return self.predict(decoded)


class MaskedAutoencoder(MaskedPrediction):
    """Predicts the look of the patches.

    Args:
        target: a key of TARGETS.
        others: see MaskedPrediction.

    Raises:
        ValueError: the target is unknown; see MaskedPrediction too.
    """

    def __init__(self, vit: nn.Module, target: str, *others, **options):
        if target not in TARGETS:
            raise ValueError(f"Unknown target {target!r}: choose one of {', '.join(TARGETS)}.")
        patch = vit.patch_embed.patch_size[0]
        outputs = TARGETS[target](torch.zeros(1, 3, patch, patch), patch).shape[-1]
        super().__init__(vit, outputs, *others, **options)
        self.target = TARGETS[target]

    def targets(self, images: Tensor, _window: Tensor) -> Tensor:
        """See MaskedPrediction."""
        return self.target(images / 255.0, self.patch)
