"""What a masked patch has to be predicted as."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8  # pixels, of HOG
BINS = 9  # orientations between 0 and 180 degrees


def patchify(pictures: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, patches, C * patch * patch), patches row by row."""
    return F.unfold(pictures, patch, stride=patch).transpose(1, 2)


def normalized_pixels(pictures: Tensor, patch: int) -> Tensor:
    """(N, 3, H, W) -> (N, patches, 3 * patch^2): pixels, each patch with mean 0 and deviation 1.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv 2111.06377), section 3.
    """
    patches = patchify(pictures, patch)
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def hog(pictures: Tensor, patch: int) -> Tensor:
    """(N, 3, H, W) -> (N, patches, (patch / 8)^2 * 9): histograms of oriented gradients, of length 1 for each patch.

    A pixel counts for the channel where its gradient is the strongest, with that strength, in the cell of 8 x 8 pixels
    around it; cells of a patch are normalized together.

    Sources: Dalal and Triggs, Histograms of Oriented Gradients, 2005; Wei et al., Masked Feature Prediction (MaskFeat),
    2021 (arXiv 2112.09133), section 3.

    Raises:
        ValueError: the patch is no multiple of the cell.
    """
    if patch % CELL:
        raise ValueError(f"HOG wants patches of a multiple of {CELL} pixels, not {patch}: predict pixels instead.")
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    dx, dy = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strength, channel = (dx.square() + dy.square()).max(dim=1, keepdim=True)
    dx, dy = dx.gather(1, channel), dy.gather(1, channel)
    angle = torch.atan2(dy, dx) / torch.pi * BINS  # -9 to 9; opposite directions are one orientation
    nearest = angle.floor().long().remainder(BINS)
    cells = [F.avg_pool2d(strength.sqrt() * (nearest == k), CELL) for k in range(BINS)]
    # (N, 9, H / 8, W / 8) -> (N, patches, 9 * cells of a patch)
    return F.normalize(patchify(torch.cat(cells, dim=1), patch // CELL), dim=-1, eps=1e-2)


TARGETS: dict[str, Callable[[Tensor, int], Tensor]] = {"pixels": normalized_pixels, "hog": hog}
