"""AdamW with the parameter groups of the SoMA recipe."""

from torch import nn
from torch.optim import AdamW, Optimizer

# timm's LayerNorm2d is an nn.LayerNorm; batch norms share a base class that torch keeps private.
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d)


def build_adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    backbone: str = "backbone.net",
    backbone_lr_multiplier: float = 0.5,
    backbone_weight_decay_multiplier: float = 0.2,
    norm_weight_decay: float = 0.0,
) -> Optimizer:
    """AdamW over the trainable parameters, in groups named backbone, backbone_norm, head and head_norm.

    Args:
        backbone: dotted name of the module whose learning rate and weight decay are multiplied; not the pyramid.
        norm_weight_decay: of the weights and biases of normalization layers, wherever they are.

    Raises:
        ValueError: nothing in the model is trainable.

    Source: the detection configs of the authors' repository, ysj9909/SoMA.
    """
    groups = {
        name: {"name": name, "params": [], "lr": rate, "weight_decay": decay}
        for name, rate, decay in (
            ("backbone", lr * backbone_lr_multiplier, weight_decay * backbone_weight_decay_multiplier),
            ("backbone_norm", lr * backbone_lr_multiplier, norm_weight_decay),
            ("head", lr, weight_decay),
            ("head_norm", lr, norm_weight_decay),
        )
    }
    seen = set()  # a shared parameter must not be in two groups
    for module_name, module in model.named_modules():
        part = "backbone" if f"{module_name}.".startswith(f"{backbone}.") else "head"
        group = groups[part + "_norm" if isinstance(module, NORMS) else part]
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                group["params"].append(parameter)
    used = [group for group in groups.values() if group["params"]]
    if not used:
        raise ValueError("Nothing to train: every parameter of the model is frozen.")
    return AdamW(used, lr=lr, betas=tuple(betas), weight_decay=weight_decay)
