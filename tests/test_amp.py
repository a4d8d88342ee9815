"""Mixed precision in training: who gets which dtype, and what stays in fp32."""

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from training import tiny_cfg, vit_of, write_data

from soma_det.engine import Trainer
from soma_det.engine.amp import CPUAMPTrainer, CUDAAMPTrainer, mixed_precision_trainer, training_dtype
from soma_det.utils import machine


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


class Loss(nn.Linear):
    def forward(self, batch):
        return {"loss": super().forward(batch).float().sum()}


def simple_trainer():
    return SimpleTrainer(model := Loss(4, 4), [torch.ones(1, 4)], torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    "amx, enabled, cpu, expected",
    [
        (True, False, "auto", torch.bfloat16),
        (True, False, "off", None),
        (False, False, "auto", None),
        (False, True, "auto", torch.bfloat16),
        (True, True, "off", torch.bfloat16),
    ],
)
def test_a_cpu_trains_in_bfloat16_if_told_to_or_if_it_multiplies_so(
    data, tmp_path, monkeypatch, amx, enabled, cpu, expected
):
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: amx)
    amp = dict(SOLVER__AMP__CPU=cpu, SOLVER__AMP__ENABLED=enabled, SOLVER__AMP__DTYPE="bfloat16")
    assert training_dtype(tiny_cfg(data, tmp_path, **amp)) == expected


def test_amx_does_not_decide_how_a_gpu_trains(data, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    settings = dict(MODEL__DEVICE="cuda", SOLVER__AMP__CPU="auto")
    assert training_dtype(tiny_cfg(data, tmp_path, SOLVER__AMP__ENABLED=False, **settings)) is None
    assert training_dtype(tiny_cfg(data, tmp_path, SOLVER__AMP__ENABLED=True, **settings)) == torch.float16


def test_another_word_than_auto_and_off_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="SOLVER.AMP.CPU is 'on': choose 'auto' or 'off'"):
        tiny_cfg(data, tmp_path, SOLVER__AMP__CPU="on")


def test_the_trainer_of_a_device_takes_over_model_data_and_optimizer():
    simple = simple_trainer()
    for device, kind in (("cpu", CPUAMPTrainer), ("cuda", CUDAAMPTrainer)):
        trainer = mixed_precision_trainer(simple, torch.bfloat16, device)
        assert type(trainer) is kind and trainer.precision == torch.bfloat16
        for part in ("model", "data_loader", "optimizer"):
            assert getattr(trainer, part) is getattr(simple, part)
    assert not trainer.grad_scaler.is_enabled()  # bfloat16 has the range of fp32


def test_on_a_cpu_the_forward_pass_is_in_bfloat16_and_backward_outside_of_autocast():
    trainer = mixed_precision_trainer(simple_trainer(), torch.bfloat16, "cpu")
    seen = []
    trainer.model.weight.register_hook(lambda grad: seen.append((grad.dtype, torch.is_autocast_enabled("cpu"))))
    trainer.model.register_forward_pre_hook(lambda *args: seen.append(torch.is_autocast_enabled("cpu")))
    before = trainer.model.weight.detach().clone()
    with EventStorage():
        trainer.run_step()
    assert seen == [True, (torch.float32, False)]
    torch.testing.assert_close(trainer.model.weight, before - 0.1)


@pytest.mark.parametrize("state, scale", [({}, 64), ({"grad_scaler": {}}, 64), (None, 8)])
def test_a_training_with_loss_scaling_goes_on_from_a_checkpoint_with_and_without_it(state, scale):
    simple = simple_trainer()
    scaler, saved = (torch.amp.GradScaler("cpu", init_scale=value) for value in (64.0, 8.0))
    trainer = CUDAAMPTrainer(simple.model, simple.data_loader, simple.optimizer, grad_scaler=scaler)
    state = {"grad_scaler": saved.state_dict()} if state is None else state
    trainer.load_state_dict({**simple.state_dict(), **state})
    assert scaler.get_scale() == scale


def test_training_in_bfloat16_on_a_cpu_keeps_weights_and_losses_in_float32(data, tmp_path):
    amp = dict(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="bfloat16")
    cfg = tiny_cfg(data, tmp_path, **amp, SOLVER__MAX_ITER=2, DATASETS__TEST=[], DATASETS__SOURCE_TEST="")
    seen, pooled = [], []

    class Watch(HookBase):
        def before_train(self):
            model = self.trainer.model
            fc1 = vit_of(model)[1].model.blocks[2].mlp.fc1
            fc1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
            model.roi_heads.box_pooler.register_forward_pre_hook(
                lambda module, inputs: pooled.extend(feature.dtype for feature in inputs[0])
            )

    trainer = Trainer(cfg)
    trainer.register_hooks([Watch()])
    trainer.train()
    assert torch.bfloat16 in seen
    assert set(pooled) == {torch.float32}  # boxes are rounded to the precision of the features they are pooled from
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
