"""Counting what trains: models without storage for their weights."""

import pytest
import torch
from detectron2.modeling import build_model

from adapter_comparison.structure import build_structure
from soma_det.config import setup_cfg
from soma_det.modeling.freezing import freeze

TINY = ["MODEL.VIT.NAME", "test_vit", "MODEL.VIT.IMG_SIZE", [64, 96], "MODEL.VIT.FROZEN_BLOCKS", 2]
TINY += ["MODEL.ADAPTER.RANK", 4, "MODEL.DEVICE", "cpu", "MODEL.PYRAMID.OUT_CHANNELS", 16, "MODEL.VIT.WEIGHTS", ""]


def tiny_cfg(*opts):
    return setup_cfg("configs/Base-SoMA.yaml", [*TINY, *opts])


def test_the_recipe_for_vit_large_trains_4_718_592_adapter_weights_and_147_456_biases():
    on_cpu = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", False]
    vit = build_structure(setup_cfg("configs/diverse_weather/faster_rcnn_dinov2_l.yaml", on_cpu)).backbone.net
    trainable = {name: p.numel() for name, p in vit.named_parameters() if p.requires_grad}
    biases = sum(count for name, count in trainable.items() if name.endswith("bias"))
    assert biases == 147_456
    assert sum(trainable.values()) - biases == 4_718_592
    assert {int(name.split(".")[2]) for name in trainable} == set(range(8, 24))


@pytest.mark.parametrize("opts", [[], ["MODEL.ADAPTER.NAME", "rein"], ["MODEL.ADAPTER.SOMA.ORDER", "decompose_first"]])
def test_a_structure_has_the_models_parameters_without_storage_and_reads_no_weights(opts):
    opts = [*opts, "SOLVER.FREEZING.MODULES", ["backbone.simfp_2"]]
    structure = build_structure(tiny_cfg(*opts, "MODEL.VIT.WEIGHTS", "missing.pth"))
    assert all(parameter.is_meta for parameter in structure.parameters())
    model = build_model(tiny_cfg(*opts))
    freeze([model.backbone.simfp_2])
    assert [(n, p.shape, p.requires_grad) for n, p in structure.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in model.named_parameters()
    ]


def test_building_a_structure_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    build_structure(tiny_cfg())
    assert torch.equal(torch.random.get_rng_state(), before)
