"""Targets of masked prediction."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8  # pixels, of HOG
BINS = 9  # orientations between 0 and 180 degrees
FAINTEST = 0.01  # histograms shorter than this (images in 0 to 1) are not normalized up: they are noise


def patchify(images: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, patches, C * patch * patch), patches row by row."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def normalized_pixels(images: Tensor, patch: int) -> Tensor:
    """(N, 3, H, W) -> (N, patches, 3 * patch^2): pixels, each patch with mean 0 and deviation 1.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv 2111.06377), section 3.
    """
    patches = patchify(images, patch)
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def hog(images: Tensor, patch: int) -> Tensor:
    """(N, 3, H, W) -> (N, patches, (patch / 8)^2 * 9): histograms of oriented gradients, with mean square 1 per patch.

    A pixel of the gray image counts in its cell of 8 x 8 pixels, with the strength of its gradient. The cells of a
    patch are normalized together.

    Sources: Dalal and Triggs, Histograms of Oriented Gradients, 2005; Wei et al., Masked Feature Prediction (MaskFeat),
    2021 (arXiv 2112.09133), section 3.

    Raises:
        ValueError: the patch size is not a multiple of the cell size.
    """
    if patch % CELL:
        raise ValueError(
            f"HOG needs a patch size that is a multiple of {CELL} pixels, not {patch}: predict pixels instead."
        )
    padded = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx, dy = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    orientation = (torch.atan2(dy, dx) * (BINS / torch.pi)).floor().remainder(BINS)  # opposite directions are one
    strength = torch.hypot(dx, dy)
    cells = [F.avg_pool2d(strength * (orientation == k), CELL) for k in range(BINS)]
    # (N, 9, H / 8, W / 8) -> (N, patches, 9 * cells of a patch)
    histograms = patchify(torch.cat(cells, dim=1), patch // CELL)
    return F.normalize(histograms, dim=-1, eps=FAINTEST) * histograms.shape[-1] ** 0.5


TARGETS: dict[str, Callable[[Tensor, int], Tensor]] = {"pixels": normalized_pixels, "hog": hog}
