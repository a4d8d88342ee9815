"""Adversarial alignment: discriminators tell the domains apart, and the features learn that they cannot.

Sources: Ganin et al., Domain-Adversarial Training of Neural Networks, arXiv 1505.07818 (reversed gradient, schedule);
Chen et al., Domain Adaptive Faster R-CNN, arXiv 1803.03243 (image and instance level); Pasqualino et al., an
unsupervised domain adaptation scheme for single-stage artwork recognition, and its multi-target successor
STMDA-RetinaNet, 2022 (every level, one output for each domain).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

WIDTH = 256  # of the discriminators


class DomainAlignment(nn.Module):
    """A discriminator for each level of the pyramid, deciding at every place, and one for regions.

    Args:
        levels: name -> channels.
        region_size: features of a region, or 0 for no discriminator of regions.
        domains: how many there are, the source being domain 0.
        weight: of each discriminator's loss.

    Attributes:
        reversal: the factor of the reversed gradient that reaches the features; the discriminators learn at 1.
    """

    def __init__(self, levels: Mapping[str, int], region_size: int, domains: int, weight: float):
        super().__init__()
        self.levels = nn.ModuleDict({name: _of_map(channels, domains) for name, channels in levels.items()})
        self.regions = _of_vector(region_size, domains) if region_size else None
        self.domains, self.weight, self.reversal = domains, weight, 0.0

    def forward(
        self, features: Mapping[str, Tensor], domain: Tensor, regions: Tensor | None = None, of: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses; each domain counts the same, however many images it has in the batch.

        Args:
            features: name -> (N, C, H, W).
            domain: (N,) int64, of each image.
            regions: (P, D) features.
            of: (P,) int64, the domain of each region.
        """
        losses = {}
        for name, discriminator in self.levels.items():
            logits = discriminator(reverse_gradient(features[name].float(), self.reversal))  # (N, domains, H, W)
            places = logits.movedim(1, -1).flatten(0, 2)
            losses[f"loss_align_{name}"] = self._loss(name, places, domain.repeat_interleave(logits[0, 0].numel()))
        if self.regions is not None and regions is not None and of is not None:
            logits = self.regions(reverse_gradient(regions.float(), self.reversal))
            losses["loss_align_regions"] = self._loss("regions", logits, of)
        return losses

    def _loss(self, name: str, logits: Tensor, domain: Tensor) -> Tensor:
        counts = torch.bincount(domain, minlength=self.domains)
        right = (logits.argmax(1) == domain).float()
        accuracies = [right[domain == d].mean().item() for d in range(self.domains) if counts[d]]
        get_event_storage().put_scalar(f"alignment/accuracy_{name}", sum(accuracies) / len(accuracies))
        weights = counts.clamp(min=1).reciprocal()
        return self.weight * F.cross_entropy(logits, domain, weight=weights)


def reverse_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values; the gradient is multiplied by minus ``factor``."""
    return _Reversal.apply(x, factor)


def dann_reversal(progress: float, gamma: float = 10.0) -> float:
    """2 / (1 + exp(-gamma p)) - 1: from 0 towards 1 while the training's progress p goes from 0 to 1."""
    return math.tanh(gamma * progress / 2)  # the same, without overflow


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def _of_map(channels: int, domains: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, domains, 1))


def _of_vector(size: int, domains: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, domains))
