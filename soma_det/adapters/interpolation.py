"""Weights between a pretrained model's and a fine-tuned one's.

Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), CVPR 2022, arXiv 2109.01903.
"""

from collections.abc import Mapping

from torch import Tensor


def interpolate_weights(
    pretrained: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """``pretrained + alpha (trained - pretrained)`` for each tensor of two state dicts of one plain architecture.

    Args:
        trained: of the merged model, see :func:`~soma_det.adapters.merge`.
        alpha: 0 for the pretrained weights, 1 for the trained ones, both to the bit.

    Raises:
        ValueError: alpha is outside 0 to 1, or the state dicts differ in names or shapes.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give a number from 0 (pretrained) to 1 (trained).")
    names = [*pretrained, *(name for name in trained if name not in pretrained)]
    unequal = [name for name in names if _shape(pretrained.get(name)) != _shape(trained.get(name))]
    if unequal:
        raise ValueError(
            f"The pretrained and the trained model differ in {len(unequal)} weights, such as {unequal[:3]}: merge the "
            "adapter first, and take the pretrained model that the training started from."
        )
    return {name: _between(tensor, trained[name], alpha) for name, tensor in pretrained.items()}


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _between(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    start = start.to(end.device, end.dtype)
    if not end.is_floating_point():
        return end.clone()
    return start.lerp(end, alpha)  # exact at both ends
