"""AdamW with the parameter groups of the SoMA recipe."""

from collections.abc import Container
from operator import itemgetter

from detectron2.solver.build import get_default_optimizer_params
from torch import nn
from torch.optim import AdamW, Optimizer


def build_adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    norm_weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    vit: nn.Module | None = None,
    vit_multipliers: tuple[float, float] = (0.5, 0.2),
) -> Optimizer:
    """AdamW over the trainable parameters, in groups named backbone, backbone_norm, head and head_norm.

    Args:
        norm_weight_decay: of torch's normalization layers and their subclasses, such as timm's LayerNorm2d, wherever
            they are. Detectron2's own LayerNorm is none of them.
        vit: the part of the model that has its own learning rate and weight decay, without the pyramid.
        vit_multipliers: of these two.

    Raises:
        ValueError: nothing in the model is trainable.

    Source: the detection configs of the authors' repository, ysj9909/SoMA.
    """
    in_vit = set(map(id, vit.parameters())) if vit is not None else set()
    groups = _groups("head", model, lr, weight_decay, norm_weight_decay, leave_out=in_vit)
    if vit is not None:
        rates = lr * vit_multipliers[0], weight_decay * vit_multipliers[1]
        groups = _groups("backbone", vit, *rates, norm_weight_decay) + groups
    if not groups:
        raise ValueError("Nothing to train: every parameter of the model is frozen.")
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay)


def _groups(
    name: str, module: nn.Module, lr: float, weight_decay: float, norm_decay: float, leave_out: Container[int] = ()
) -> list[dict]:
    """Detectron2's groups, named and in an order that does not depend on the model: checkpoints hold them by index."""
    groups = []
    for group in get_default_optimizer_params(module, lr, weight_decay, norm_decay):
        parameters = [parameter for parameter in group["params"] if id(parameter) not in leave_out]
        suffix = "" if group["weight_decay"] == weight_decay else "_norm"
        if parameters:
            groups.append({**group, "name": name + suffix, "params": parameters})
    return sorted(groups, key=itemgetter("name"))
