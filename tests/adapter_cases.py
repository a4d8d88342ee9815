"""Every adapter on timm's tiny test_vit (6 blocks, width 64, MLP 192), at a small size: what the tests go through."""

import importlib.util

import timm
import torch
from torch import nn

from soma_det import adapters
from soma_det.adapters import ADAPTERS, AdapterConfig, pop_auxiliary_losses

FROZEN = 2  # leading blocks
HAS_PEFT = importlib.util.find_spec("peft") is not None
PEFT = {"peft_lora", "dora", "pissa", "olora", "mica"}
OPTIONS: dict[str, dict] = {
    "frozen": {},
    "full": {},
    "biases": {},
    "soma": {"rank": 4},
    "lora": {"rank": 4},
    "peft_lora": {"rank": 4},
    "dora": {"rank": 4},
    "pissa": {"rank": 4},
    "olora": {"rank": 4},
    "mica": {"rank": 4},
    "osf": {},
    "moa": {},
    "moa_lora": {"experts": "lora"},
    "rein": {"tokens": 10, "rank": 4},
    "vpt": {"tokens": 5},
    "adaptformer": {"width": 8},
}


def cases() -> list[str]:
    """The cases that can run here."""
    return [case for case in OPTIONS if HAS_PEFT or case not in PEFT]


def method(case: str) -> str:
    """The adapter's name."""
    return "moa" if case == "moa_lora" else case


def plain_vit(name: str = "test_vit", pixels: int = 64, **size) -> nn.Module:
    """A ViT with random weights, the same after the same seed."""
    return timm.create_model(name, num_classes=0, img_size=pixels, patch_size=16, dynamic_img_size=True, **size).eval()


def config_of(case: str) -> AdapterConfig:
    """The settings of the case."""
    return ADAPTERS[method(case)](**OPTIONS[case])


def adapt(vit: nn.Module, case: str) -> list[str]:
    """Adapt the ViT beyond its frozen blocks; returns the names of what trains."""
    config = config_of(case)
    return adapters.adapt(vit, config, config.usual_blocks(FROZEN, len(vit.blocks) - 1))


def train_steps(vit: nn.Module, steps: int = 2) -> None:
    """Some steps of AdamW towards a random target, by a linear head on the ViT."""
    head = nn.Linear(vit.embed_dim, 3)
    trained = [p for p in vit.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=0.01)
    x, target = torch.randn(2, 3, 64, 64), torch.randn(2, 16, 3)
    vit.train()
    for _ in range(steps):
        (feature,) = vit.forward_intermediates(
            x, indices=[len(vit.blocks) - 1], output_fmt="NLC", intermediates_only=True
        )
        optimizer.zero_grad()
        ((head(feature) - target).square().sum() + sum(pop_auxiliary_losses(vit).values())).backward()
        optimizer.step()
    vit.eval()
