"""Averages of the weights over iterations: their values, where they end up, and that a resumed run has the same."""

import os

import pytest
import torch
from detectron2.engine import HookBase
from training import tiny_cfg, write_data

import soma_det
from soma_det.engine.averaging import WeightAveraging


class Record(HookBase):
    """The trained weights after each iteration."""

    def __init__(self):
        self.weights = []

    def after_step(self):
        trained = {n: p for n, p in self.trainer.model.named_parameters() if p.requires_grad}
        self.weights.append({name: p.detach().clone() for name, p in trained.items()})


class Stop(HookBase):
    def after_step(self):
        if self.trainer.iter == 4:
            raise KeyboardInterrupt


def train(cfg, *hooks, resume=False):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    torch.manual_seed(cfg.SEED)  # as Detectron2's default_setup does
    trainer = soma_det.Trainer(cfg)
    trainer.register_hooks(hooks)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)["model"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recorded(data, tmp_path_factory):
    """The weights after each of six iterations, without averaging."""
    record = Record()
    train(settings(data, tmp_path_factory.mktemp("plain")), record)
    return record.weights


def settings(data, output, **average):
    changes = {f"SOLVER__WEIGHT_AVERAGE__{key}": value for key, value in average.items()}
    return tiny_cfg(data, output, DATASETS__TEST=[], DATASETS__SOURCE_TEST="", **changes)


def test_equal_averages_are_the_mean_of_the_last_third(data, recorded, tmp_path):
    final = train(settings(data, tmp_path, METHOD="swa", START=2 / 3))
    for name, last in recorded[-1].items():
        mean = (recorded[4][name].double() + last.double()) / 2
        torch.testing.assert_close(final[name].double(), mean, rtol=1e-6, atol=1e-7)


def test_exponential_averages_are_those_worked_out_one_by_one(data, recorded, tmp_path):
    final = train(settings(data, tmp_path, METHOD="ema", DECAY=0.7))
    for name in recorded[0]:
        average = recorded[0][name].double()
        for past, weights in zip((1 / 2, 2 / 3, 0.7, 0.7, 0.7), recorded[1:], strict=True):
            average = past * average + (1 - past) * weights[name].double()
        torch.testing.assert_close(final[name].double(), average, rtol=1e-5, atol=1e-7)


def test_a_resumed_training_has_the_same_average(data, tmp_path):
    average = dict(METHOD="ema", DECAY=0.9)
    whole = train(settings(data, tmp_path / "whole", **average))
    interrupted = settings(data, tmp_path / "resumed", **average)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, Stop())
    resumed = train(interrupted, resume=True)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    "average, message",
    [
        (dict(METHOD="mean"), "METHOD is 'mean': choose 'none' or 'ema' or 'swa'"),
        (dict(METHOD="ema", DECAY=1.0), "DECAY is 1.0: give a number between 0 and 1"),
        (dict(METHOD="swa", START=1.0), "START is 1.0: give a share of the iterations"),
    ],
)
def test_settings_that_average_nothing_are_errors(average, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        soma_det.Trainer(settings(data, tmp_path, **average))


def test_without_a_checkpoints_average_a_hook_starts_with_none():
    assert WeightAveraging("swa").state_dict() == {"averages": {}, "count": 0}
