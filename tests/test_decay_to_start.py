"""Weights that are pulled to where they started: by how much, which ones, and the same after a resume."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from test_averaging import Stop, train
from torch import nn
from training import tiny_cfg, write_data

from soma_det.engine.decay_to_start import DecayToStart


class Slope(nn.Module):
    """Two weights whose gradients are always 1."""

    def __init__(self):
        super().__init__()
        self.vit, self.head = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))

    def forward(self, x):
        return {"loss": self.vit.sum() + self.head.sum()}


def descend(strength, iterations):
    model = Slope()
    groups = [{"name": "backbone", "params": [model.vit], "lr": 0.1}, {"name": "head", "params": [model.head]}]
    trainer = SimpleTrainer(model, [None] * 10, torch.optim.SGD(groups, lr=0.5))
    trainer.register_hooks([DecayToStart(strength)])
    trainer.train(0, iterations)
    return model.vit.item(), model.head.item()


def test_each_step_pulls_by_the_rate_times_the_strength_before_the_gradients_step():
    # With rate 0.1 and strength 4: 2 -> 1.9 -> 1.9 + 0.4 * 0.1 - 0.1 = 1.84 -> 1.84 + 0.4 * 0.16 - 0.1 = 1.804
    assert descend(4.0, 3)[0] == pytest.approx(1.804)


def test_heads_are_not_pulled():
    assert descend(4.0, 3)[1] == pytest.approx(3 - 3 * 0.5)


def test_without_strength_nothing_is_pulled():
    assert descend(0.0, 3)[0] == pytest.approx(2 - 3 * 0.1)


def test_a_resumed_training_is_pulled_to_the_same_weights(tmp_path):
    data = write_data(tmp_path / "data")

    def settings(output):
        return tiny_cfg(data, output, DATASETS__TEST=[], DATASETS__SOURCE_TEST="", SOLVER__BACKBONE_DECAY_TO_START=50.0)

    whole = train(settings(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path / "resumed"), Stop())
    resumed = train(settings(tmp_path / "resumed"), resume=True)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_weights_that_are_pulled_to_the_start_have_no_decay_to_zero(tmp_path):
    from soma_det import Trainer

    changes = dict(DATASETS__TEST=[], DATASETS__SOURCE_TEST="", SOLVER__BACKBONE_DECAY_TO_START=1.0)
    cfg = tiny_cfg(write_data(tmp_path / "data"), tmp_path, **changes)
    optimizer = Trainer.build_optimizer(cfg, Trainer.build_model(cfg))
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays["backbone"] == 0 and decays["head"] == 0.05


def test_a_negative_strength_is_an_error():
    with pytest.raises(ValueError, match="BACKBONE_DECAY_TO_START"):
        DecayToStart(-1)
