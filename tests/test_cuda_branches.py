"""What runs only with a GPU, run without one: CUDA's calls are noted or answered, numbers are computed on the CPU."""

import logging
import os
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import train_net
from detectron2.engine import HookBase, SimpleTrainer, defaults
from detectron2.utils import comm
from test_devices import detector_on_gpu, fake_tensors_need_a_driver
from torch import nn
from training import tiny_cfg, write_data

import soma_det
import soma_det.detector
from soma_det.adapters import adapt
from soma_det.engine import distributed, trainer
from soma_det.engine.amp import CUDAAMPTrainer, mixed_precision_trainer
from soma_det.engine.determinism import WORKSPACE, set_determinism
from soma_det.engine.hooks import GradientClipping
from soma_det.engine.inference import prepared_for_inference
from soma_det.utils import compat

UNTESTED = dict(DATASETS__TEST=[], DATASETS__SOURCE_TEST="")
SCALE = 64.0
needs_fake_tensors = pytest.mark.skipif(
    fake_tensors_need_a_driver(), reason="this torch needs a driver for fake tensors"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def gpu(monkeypatch):
    """Torch says that there are two GPUs; a call of set_device is noted."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *args: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):  # asks for the driver
        monkeypatch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
    return chosen


class Loss(nn.Linear):
    """Notes the dtype of CUDA's autocast; None where it is off."""

    def forward(self, batch):
        self.autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        return {"loss": super().forward(batch).float().sum()}


def scaled_trainer(inputs=(1.0, 1.0), kind=SimpleTrainer, **options):
    torch.manual_seed(0)
    model = Loss(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = kind(model, [torch.full((1, 4), value) for value in inputs], optimizer, **options)
    made.register_hooks([GradientClipping(0.5)])
    return made


def cuda_trainer(inputs=(1.0, 1.0)):
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return scaled_trainer(inputs, CUDAAMPTrainer, grad_scaler=scaler, precision=torch.float16)


def test_the_loss_is_scaled_in_float16_alone(gpu):
    for dtype, scaled in ((torch.float16, True), (torch.bfloat16, False)):
        made = mixed_precision_trainer(scaled_trainer(), dtype, "cuda")
        assert made.precision == dtype and made.grad_scaler.is_enabled() is scaled


def test_a_scaled_step_moves_the_weights_as_an_unscaled_one_and_clips_unscaled_gradients(gpu):
    plain, scaled, gradients = scaled_trainer(), cuda_trainer(), []
    scaled.model.bias.register_hook(gradients.append)
    plain.train(0, 2)
    scaled.train(0, 2)
    assert scaled.model.autocast == torch.float16 and plain.model.autocast is None
    assert [gradient.item() for gradient in gradients] == [SCALE, SCALE]
    torch.testing.assert_close(scaled.model.weight, plain.model.weight, rtol=0, atol=0)
    norms = [t.storage.history("gradient_norm").values() for t in (plain, scaled)]
    assert norms[0] == norms[1] and norms[0][0][0] == pytest.approx(5**0.5)


def test_gradients_that_overflow_leave_out_the_step_halve_the_scale_and_have_no_norm(gpu):
    made = cuda_trainer(inputs=(1.0, torch.finfo(torch.float32).max / 8))  # times 64 is more than float32 holds
    made.train(0, 2)
    once = cuda_trainer()
    once.train(0, 1)
    assert torch.equal(made.model.weight, once.model.weight) and made.grad_scaler.get_scale() == SCALE / 2
    assert [iteration for _, iteration in made.storage.history("gradient_norm").values()] == [0]


def scaling_trainer(cfg, resume, *hooks):
    """This project's trainer with loss scaling, but on the CPU."""
    torch.manual_seed(cfg.SEED)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    made = soma_det.Trainer(cfg)
    inner, scaler = made._trainer, torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=4)
    made._trainer = CUDAAMPTrainer(inner.model, inner.data_loader, inner.optimizer, grad_scaler=scaler)
    made.register_hooks(hooks)
    made.resume_or_load(resume=resume)
    return made


class Stop(HookBase):
    def after_step(self):
        if self.trainer.iter == 3:
            raise KeyboardInterrupt


def test_a_training_with_loss_scaling_that_is_resumed_ends_as_one_that_was_not_interrupted(data, tmp_path, gpu, caplog):
    caplog.set_level(logging.INFO)
    whole, parts = (tiny_cfg(data, tmp_path / name, **UNTESTED) for name in ("whole", "parts"))
    scaling_trainer(whole, False).train()
    with pytest.raises(KeyboardInterrupt):
        scaling_trainer(parts, False, Stop()).train()
    scaling_trainer(parts, True).train()
    first, second = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, second["model"][name]) for name, tensor in first["model"].items())
    scalers = [state["trainer"]["_trainer"]["grad_scaler"] for state in (first, second)]
    assert scalers[0] == scalers[1] and scalers[0]["scale"] == 2 * SCALE  # it has grown after four steps
    assert "max_mem: 3072M" in caplog.text


@pytest.mark.parametrize("device, expected", [("cuda", []), ("cpu", ["chosen"])])
def test_how_attention_is_computed_is_chosen_on_a_cpu_alone(monkeypatch, device, expected):
    chosen = []

    @contextmanager
    def note(model, dtype):
        chosen.append("chosen")
        yield

    monkeypatch.setattr(trainer, "training_attention", note)
    monkeypatch.setattr(trainer.DefaultTrainer, "run_step", lambda self: None)
    config = SimpleNamespace(MODEL=SimpleNamespace(DEVICE=device))
    soma_det.Trainer.run_step(SimpleTrainerOf(config))
    assert chosen == expected


class SimpleTrainerOf(soma_det.Trainer):
    """What a step of the trainer looks at."""

    def __init__(self, cfg):
        self._trainer = SimpleNamespace(model=None)
        self.cfg, self.dtype = cfg, None


@pytest.mark.parametrize("device, expected", [("cuda", [1]), ("cpu", None)])
def test_processes_share_a_model_on_the_gpu_of_their_own_rank(monkeypatch, device, expected):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_local_rank", lambda: 1)
    monkeypatch.setattr(defaults, "DistributedDataParallel", lambda model, **options: options)
    with compat.ddp_on(device):
        assert defaults.create_ddp_model(nn.Linear(1, 1))["device_ids"] == expected


@pytest.mark.parametrize("device, backend, chosen", [("cuda", "nccl", [3]), ("cpu", "gloo", [])])
def test_a_process_of_a_launcher_takes_the_gpu_of_its_rank_before_it_joins_the_others(
    monkeypatch, gpu, device, backend, chosen
):
    calls = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda name, **options: calls.append((name, list(gpu))))
    monkeypatch.setattr(distributed.comm, "create_local_process_group", calls.append)
    distributed.init_launched_process_group(device)
    assert calls == [(backend, chosen), 4]


@pytest.mark.parametrize("device, chosen", [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_a_gpu_that_is_named_by_its_number_becomes_the_current_one(data, tmp_path, gpu, device, chosen):
    cfg = tiny_cfg(data, tmp_path, MODEL__DEVICE=device)
    train_net.check_processes(cfg, 0)
    train_net.prepare_process(cfg, 1)
    assert gpu == chosen


def test_deterministic_training_sets_what_cublas_needs_where_nothing_is_set(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    try:
        set_determinism(True)
        assert os.environ[WORKSPACE] == ":4096:8"
    finally:
        set_determinism(False)
        monkeypatch.setenv(WORKSPACE, "")  # which monkeypatch takes back


@pytest.mark.parametrize("there, expected", [(True, "cuda"), (False, "cpu")])
def test_a_detector_takes_a_gpu_where_there_is_one(data, tmp_path, monkeypatch, there, expected):
    cfg = tiny_cfg(data, tmp_path, **UNTESTED)
    model = soma_det.Trainer.build_model(cfg)
    trainer.AtomicCheckpointer(model, str(tmp_path), description=trainer.describe_model(cfg)).save("model_final")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    seen = []
    monkeypatch.setattr(soma_det.detector, "build_predictor", lambda cfg: seen.append(cfg.MODEL.DEVICE))
    soma_det.Detector(tmp_path)
    soma_det.Detector(tmp_path, device="cuda:1")
    assert seen == [expected, "cuda:1"]


@needs_fake_tensors
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_evaluation_in_lower_precision_runs_the_blocks_in_it_and_hands_on_fp32(gpu, dtype):
    model, mode = detector_on_gpu("MODEL.ADAPTER.NAME", "lora")
    seen = []
    block = next(part for part in model.modules() if type(part).__name__ == "Mlp")
    block.fc1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with mode, torch.no_grad(), prepared_for_inference(model, dtype) as prepared:
        features = prepared.backbone(torch.empty(1, 3, 64, 64, device="cuda"))
    assert {feature.dtype for feature in features.values()} == {torch.float32}
    assert {feature.device.type for feature in features.values()} == {"cuda"}
    assert not torch.is_autocast_enabled("cuda")


class OnGPU(nn.Linear):
    """Says that it is on a GPU until it is moved, and notes the moves."""

    def __init__(self):
        super().__init__(8, 8)
        self.moves = []
        self.where = torch.device("cuda", 1)

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=self.where)
        yield from super().parameters(recurse)

    def cpu(self):
        self.to(torch.device("cpu"))

    def to(self, device):
        self.where = device
        self.moves.append(str(device))

    def requires_grad_(self, requires_grad=True):
        self.weight.requires_grad_(requires_grad)


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_on_a_gpu_is_adapted_on_the_cpu_and_goes_back_also_where_that_fails(fails):
    model, during = OnGPU(), []

    def inject(model, *args):
        during.append(str(model.where))
        if fails:
            raise ValueError("does not fit")
        return ["weight"]

    config = SimpleNamespace(inject=inject, takes_targets=True)
    with pytest.raises(ValueError, match="does not fit") if fails else nullcontext():
        adapt(model, config)
    assert during == ["cpu"] and model.moves == ["cpu", "cuda:1"]
