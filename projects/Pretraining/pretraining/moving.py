"""A ViT learns from single images where movable objects are, how far they extend and what they look like."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.encoder import CropEncoder
from pretraining.motion import FINE, PORTRAIT, object_targets
from pretraining.objectives import BINS, CELL, hog

PORTRAIT_WEIGHT = 0.5  # of the loss; the others have 1


class MovingObjects(CropEncoder):
    """Predicts the targets of object_targets, which come from images of the same place at other times.

    The companions of an image are the same view on a gray day with all, with some and with no road users. The image
    itself may show any weather, so the targets do not depend on it. The prediction is one linear layer on the ViT's
    tokens: what is learned is learned in the ViT.
    """

    def __init__(self, vit: nn.Module):
        super().__init__(vit)
        self.outputs = [(self.patch // FINE) ** 2, 4, (PORTRAIT // CELL) ** 2 * BINS]
        self.predict = nn.Linear(vit.embed_dim, sum(self.outputs))

    def prepare(
        self, _crop: np.ndarray, others: Sequence[np.ndarray], _rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """See object_targets."""
        return object_targets(others, self.patch)

    def forward(
        self, images: Tensor, places: Tensor, cover: Tensor, extent: Tensor, covered: Tensor, portrait: Tensor
    ) -> dict[str, Tensor]:
        """Losses by name; images (N, 3, H, W) in 0 to 255, places (N, 2), then object_targets of all patches."""
        tokens = self.encode(images, self.windows(images, places)).flatten(0, 1)
        with torch.autocast(tokens.device.type, enabled=False):
            cells, reach, look = self.predict(tokens.float()).split(self.outputs, dim=-1)
            target = hog(portrait[:, None] / 255.0, PORTRAIT)[:, 0]
            count = max(1, len(target))
            return {
                "loss_cover": F.binary_cross_entropy_with_logits(cells, cover),
                "loss_extent": (reach[covered] - extent[covered]).abs().sum() / (4 * count),
                "loss_portrait": PORTRAIT_WEIGHT * (look[covered] - target).square().sum() / (target.shape[-1] * count),
            }
