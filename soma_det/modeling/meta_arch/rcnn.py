"""Detectron2's meta architectures with the losses that some adapters add."""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import Tensor

from soma_det.adapters.moa import pop_auxiliary_losses


class AuxiliaryLosses:
    """Mixin before a meta architecture: in training, the backbone's own losses join the detector's, and its log."""

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As the meta architecture's."""
        outputs = super().forward(batched_inputs)
        return {**outputs, **pop_auxiliary_losses(self.backbone)} if self.training else outputs


@META_ARCH_REGISTRY.register()
class AdaptedRCNN(AuxiliaryLosses, GeneralizedRCNN):
    """GeneralizedRCNN with the backbone's auxiliary losses; without any it is GeneralizedRCNN."""
