"""SOLVER.DETERMINISTIC: the same seed gives the same weights to the bit."""

import os

import pytest
import torch
from training import tiny_cfg, write_data

import soma_det
from soma_det.engine.determinism import WORKSPACE, set_determinism

UNTESTED = dict(DATASETS__TEST=[], DATASETS__SOURCE_TEST="")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    benchmark = torch.backends.cudnn.benchmark
    yield
    set_determinism(False)
    torch.backends.cudnn.benchmark = benchmark


def train(cfg):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    torch.manual_seed(cfg.SEED)
    trainer = soma_det.Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_the_same_seed_gives_bit_equal_weights_and_another_seed_does_not(tmp_path):
    data, runs = write_data(tmp_path / "data"), []
    for number, seed in enumerate((5, 5, 6)):
        changes = dict(SOLVER__DETERMINISTIC=True, SOLVER__MAX_ITER=3, SEED=seed, **UNTESTED)
        runs.append(train(tiny_cfg(data, tmp_path / str(number), **changes)))
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())
    assert not all(torch.equal(tensor, runs[2][name]) for name, tensor in runs[0].items())


def test_the_key_turns_on_what_torch_has_and_without_it_nothing_is_on():
    torch.backends.cudnn.benchmark = True
    set_determinism(True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_a_setting_of_cublas_that_is_not_deterministic_is_an_error(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(ValueError, match="SOLVER.DETERMINISTIC needs"):
        set_determinism(True)


def test_by_default_it_is_off(tmp_path):
    assert tiny_cfg(write_data(tmp_path / "data"), tmp_path / "output").SOLVER.DETERMINISTIC is False
