"""Teachers: whose weights look at the weak views of target images, and what becomes of what they see.

A teacher holds no copy of the detector. It is the detector that trains, evaluated with other values for what trains in
it: for SoMA on a ViT-L 27 million instead of 326.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from soma_det.adapters import pop_auxiliary_losses
from soma_det.uda.meta_arch import Adaptive

Weights = Callable[[], Mapping[str, Tensor]]


class Teacher:
    """Labels target images with a detector in evaluation mode, without gradients.

    Args:
        model: the detector that trains.
        weights: gives the values to look with, by parameter name; what it leaves out is as in the model.
        dtype: of the forward pass, as in training; None for fp32.
    """

    def __init__(self, model: Adaptive, weights: Weights = dict, dtype: torch.dtype | None = None):
        self.look, self.model = _Look(model), model
        self.weights, self.dtype = weights, dtype
        self.boxes: list[int] = []  # of each image of the last batch
        self.scores: list[float] = []
        self.classes: list[int] = []

    @torch.no_grad()
    def label(self, entries: list[dict]) -> None:
        """Put ``instances`` and, if labels are soft, ``soft`` into target images, in place."""
        device = next(self.model.parameters()).device
        weights = {f"model.{name}": value.to(device) for name, value in self.weights().items()}
        autocast = torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)
        with evaluating(self.model), autocast:
            labels = functional_call(self.look, weights, (entries,))
        pop_auxiliary_losses(self.model.backbone)  # of this pass; they are no losses of the student
        for entry, label in zip(entries, labels):
            entry.update({key: value for key, value in label.items() if key != "scores"})
        self.boxes = [len(label["scores"]) for label in labels]
        self.scores = [score for label in labels for score in label["scores"].tolist()]
        self.classes = [number for label in labels for number in label["instances"].gt_classes.tolist()]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module is as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Look(nn.Module):
    """What functional_call can call."""

    def __init__(self, model: Adaptive):
        super().__init__()
        self.model = model

    def forward(self, entries: list[dict]) -> list[dict]:
        return self.model.look(entries)
