"""Self-distillation: a ViT predicts, from a part of an image, what its own running average makes of all of it."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.masked import MaskedPrediction


class SelfDistillation(MaskedPrediction):
    """Masked prediction of a teacher's features; the teacher is the running average of the ViT itself.

    What is predicted of a patch is the mean of the features that the later half of the teacher's blocks have there, each
    channel with mean 0 and deviation 1 over the patches of the image, without which the same features for all patches
    would be a solution. As training goes on, the teacher changes ever less.

    Sources: Baevski et al., Efficient Self-supervised Learning with Contextualized Target Representations (data2vec 2.0),
    2022 (arXiv 2212.07525), section 3; the momentum's schedule is that of Grill et al., Bootstrap Your Own Latent, 2020
    (arXiv 2006.07733), section 3.2.

    Args:
        momentum: share of the teacher that one iteration leaves, at the start of the training.
        others: see MaskedPrediction.

    Raises:
        ValueError: see MaskedPrediction; or the momentum is not between 0 and 1.
    """

    def __init__(self, vit: nn.Module, *others, momentum: float = 0.99, **options):
        super().__init__(vit, vit.embed_dim, *others, **options)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"The teacher's momentum is {momentum}: it has to lie between 0 and 1.")
        self.momentum = momentum
        self.teacher = copy.deepcopy(vit).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The teacher stays as it is in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def wanted(self, images: Tensor, window: Tensor) -> Tensor:
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
