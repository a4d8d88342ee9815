"""Self-distillation: from a part of an image, a ViT predicts the features that its running average has of all of it."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.masked import MaskedPrediction


class SelfDistillation(MaskedPrediction):
    """Masked prediction of a teacher's features; the teacher is the running average of the ViT itself.

    The target of a patch is the mean of the teacher's features there, over the later half of the blocks. Each channel
    is normalized to mean 0 and deviation 1 over the patches of the image: otherwise equal features for all patches
    would be a solution. The teacher changes less and less during the training.

    Sources: Baevski et al., Efficient Self-supervised Learning with Contextualized Target Representations (data2vec
    2.0), 2022 (arXiv 2212.07525), section 3; the momentum's schedule is that of Grill et al., Bootstrap Your Own
    Latent, 2020 (arXiv 2006.07733), section 3.2.

    Args:
        momentum: weight of the old teacher in its running average, at the start of the training.
        others: see MaskedPrediction.

    Raises:
        ValueError: the momentum is not between 0 and 1; see MaskedPrediction too.
    """

    def __init__(self, vit: nn.Module, *others, momentum: float = 0.99, **options):
        super().__init__(vit, vit.embed_dim, *others, **options)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"The teacher's momentum is {momentum}; choose one from 0 to 1.")
        self.momentum = momentum
        self.teacher = copy.deepcopy(vit).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def targets(self, images: Tensor, window: Tensor) -> Tensor:
        """See MaskedPrediction."""
        tokens = self.embed_patches(self.teacher, images, window)
        later, features = len(self.teacher.blocks) // 2, 0.0
        for index, block in enumerate(self.teacher.blocks):
            tokens = block(tokens)
            if index >= later:
                channels = tokens[:, self.teacher.num_prefix_tokens :].float().transpose(1, 2)  # (N, C, patches)
                features = features + F.instance_norm(channels)
        return features.transpose(1, 2) / (len(self.teacher.blocks) - later)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """See CropEncoder."""
        share = (1.0 - self.momentum) * 0.5 * (1.0 + math.cos(math.pi * progress))
        for old, new in zip(self.teacher.parameters(), self.vit.parameters()):
            old.lerp_(new, share)
