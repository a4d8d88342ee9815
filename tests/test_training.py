"""Training from images to tables: what moves, what stays, and that resuming equals never having stopped."""

import copy
import gc
import json
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from detectron2.engine import DefaultTrainer, HookBase
from fvcore.common.param_scheduler import CosineParamScheduler
from matplotlib.figure import Figure
from training import tiny_cfg, vit_of, write_data

from soma_det.adapters import find_adapter_layers, merge
from soma_det.data.build import build_train_loader
from soma_det.engine import Trainer, cpu, load_model
from soma_det.engine.hooks import LayerFreezing, SaveOnInterrupt, WeightDecayAnnealing
from soma_det.engine.output_dir import check_output_dir
from soma_det.engine.predictor import build_predictor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def train(cfg, resume=False, extra_hooks=()):
    torch.manual_seed(cfg.SEED)  # as Detectron2's default_setup does
    trainer = Trainer(cfg)
    trainer.register_hooks(list(extra_hooks))
    trainer.resume_or_load(resume=resume)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return trainer, start


def state_of(folder, name="model_final.pth"):
    return torch.load(Path(folder) / name, weights_only=False)


def logged(folder):
    """(iteration, metric) -> value as text, without times."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
    values = {(line["iteration"], name): repr(value) for line in lines for name, value in line.items()}
    return {key: value for key, value in values.items() if "time" not in key[1] and key[1] != "eta_seconds"}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of six iterations that was never interrupted."""
    cfg = tiny_cfg(data, tmp_path_factory.mktemp("finished"))
    return cfg, *train(cfg)


def test_after_training_only_the_expected_parameters_moved_and_all_others_are_bit_equal(finished):
    _, trainer, start = finished
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    in_vit = {name for name in moved if name.startswith(f"{vit_of(trainer.model)[0]}.")}
    assert in_vit and all(name.rsplit(".")[-1] in ("a", "b", "bias") for name in in_vit)
    assert not any(f".blocks.{index}." in name for name in in_vit for index in (0, 1))
    assert any(name.startswith("backbone.") for name in moved - in_vit) and any("roi_heads" in name for name in moved)


def test_resuming_equals_never_having_stopped(finished, data, tmp_path):
    cfg, _, _ = finished

    class Stop(HookBase):
        def after_step(self):
            if self.trainer.iter == 3:  # one iteration after the checkpoint, so that it has to be repeated
                raise KeyboardInterrupt

    interrupted = tiny_cfg(data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, extra_hooks=[Stop()])
    trainer, _ = train(interrupted, resume=True)
    assert trainer.start_iter == 3
    whole, resumed = state_of(cfg.OUTPUT_DIR), state_of(tmp_path)
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    optimizers = [state["trainer"]["_trainer"]["optimizer"] for state in (whole, resumed)]
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    for key, moments in optimizers[0]["state"].items():
        assert torch.equal(moments["exp_avg_sq"], optimizers[1]["state"][key]["exp_avg_sq"])
    expected, after = logged(cfg.OUTPUT_DIR), logged(tmp_path)
    assert "total_loss" in {name for _, name in expected} and not expected.items() - after.items()


def test_a_finished_training_that_is_resumed_logs_its_scores_at_the_same_iteration(finished, data, tmp_path):
    before = logged(shutil.copytree(finished[0].OUTPUT_DIR, tmp_path, dirs_exist_ok=True))
    train(tiny_cfg(data, tmp_path), resume=True)
    assert logged(tmp_path) == before and (6, "tiny_night_sunny_test/voc/AP50") in before
    assert len((tmp_path / "metrics.json").read_text().splitlines()) > len({iteration for iteration, _ in before})


def test_worker_processes_change_nothing(finished, data, tmp_path):
    cfg, _, _ = finished
    train(tiny_cfg(data, tmp_path, DATALOADER__NUM_WORKERS=2, DATASETS__TEST=[], DATASETS__SOURCE_TEST=""))
    for name, tensor in state_of(cfg.OUTPUT_DIR)["model"].items():
        assert torch.equal(tensor, state_of(tmp_path)["model"][name]), name


def test_weight_decay_and_gradient_norm_follow_the_recipe_and_are_logged(finished):
    cfg, trainer, _ = finished
    decays = {group["name"]: group["weight_decay"] for group in trainer.optimizer.param_groups}
    assert decays["backbone"] == pytest.approx(CosineParamScheduler(0.05 * 0.2, 1e-5)(5 / 6))
    assert decays["head"] == pytest.approx(CosineParamScheduler(0.05, 1e-5)(5 / 6))
    assert decays["head_norm"] == 0
    lines = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert any("weight_decay/backbone" in line and "gradient_norm" in line for line in lines)
    assert list(Path(cfg.OUTPUT_DIR).glob("events.out.tfevents.*"))


def test_the_source_images_train_and_all_weathers_are_scored(finished):
    cfg, _, _ = finished
    results = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    assert list(results["results"]) == ["tiny_daytime_clear_test", "tiny_night_sunny_test"]
    assert results["results"]["tiny_night_sunny_test"]["boxes"]["car"] == 3
    assert (Path(cfg.OUTPUT_DIR) / "results.md").is_file() and (Path(cfg.OUTPUT_DIR) / "results.png").is_file()


def test_an_evaluation_leaves_none_of_its_charts_in_memory(finished):
    cfg, trainer, _ = finished
    gc.disable()  # it would come by sometime
    try:
        Trainer.test(cfg, trainer.model)
        assert not any(isinstance(thing, Figure) for thing in gc.get_objects())
    finally:
        gc.enable()


def test_a_single_test_set_keeps_its_name(finished, data):
    cfg, trainer, _ = finished
    one = tiny_cfg(
        data, Path(cfg.OUTPUT_DIR) / "one", DATASETS__TEST=["tiny_night_sunny_test"], DATASETS__SOURCE_TEST=""
    )
    assert list(Trainer.test(one, trainer.model)) == ["tiny_night_sunny_test"]


def test_a_checkpoint_evaluates_as_the_model_that_wrote_it_without_pretrained_weights(finished, data):
    cfg, trainer, _ = finished
    loaded = load_model(
        tiny_cfg(data, cfg.OUTPUT_DIR, MODEL__WEIGHTS=f"{cfg.OUTPUT_DIR}/model_final.pth", MODEL__VIT__WEIGHTS="timm")
    )
    x = torch.randn(1, 3, 64, 64)
    trainer.model.eval()
    for name, feature in trainer.model.backbone(x).items():
        assert torch.equal(loaded.backbone(x)[name], feature)


def test_a_predictor_runs_the_merged_model(finished, data):
    cfg = finished[0]
    cfg = tiny_cfg(data, cfg.OUTPUT_DIR, MODEL__WEIGHTS=f"{cfg.OUTPUT_DIR}/model_final.pth")
    predictor, adapted = build_predictor(cfg), load_model(cfg)
    assert find_adapter_layers(adapted) and not find_adapter_layers(predictor.model)
    x = torch.randn(1, 3, 64, 64)
    for name, feature in predictor.model.backbone(x).items():
        torch.testing.assert_close(feature, adapted.backbone(x)[name], rtol=1e-4, atol=1e-5)


def test_a_merged_detector_is_saved_and_loaded_as_a_frozen_one(finished, data, tmp_path):
    cfg, _, _ = finished
    model = load_model(tiny_cfg(data, cfg.OUTPUT_DIR, MODEL__WEIGHTS=f"{cfg.OUTPUT_DIR}/model_final.pth"))
    x = torch.randn(1, 3, 64, 64)
    adapted = model.backbone(x)
    merge(model)
    torch.save({"model": model.state_dict()}, tmp_path / "merged.pth")
    settings = {"MODEL__ADAPTER__NAME": "frozen", "MODEL__ADAPTER__RANK": 16}
    plain = load_model(tiny_cfg(data, tmp_path, MODEL__WEIGHTS=str(tmp_path / "merged.pth"), **settings))
    for name, feature in plain.backbone(x).items():
        torch.testing.assert_close(feature, adapted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", SaveOnInterrupt.SIGNALS)
def test_an_interrupt_finishes_the_iteration_saves_and_resumes_exactly(finished, data, tmp_path, number):
    class Interrupt(HookBase):
        def before_step(self):
            if self.trainer.iter == 1:
                os.kill(os.getpid(), number)

    cfg = tiny_cfg(data, tmp_path)
    with pytest.raises(SystemExit) as stop:
        train(cfg, extra_hooks=[Interrupt()])
    assert stop.value.code == 128 + number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    trainer, _ = train(cfg, resume=True)
    assert trainer.start_iter == 2
    for name, tensor in state_of(finished[0].OUTPUT_DIR)["model"].items():
        assert torch.equal(tensor, state_of(tmp_path)["model"][name]), name


def test_an_interrupt_of_the_last_evaluation_stops_it_at_once(data, tmp_path, monkeypatch):
    evaluated = []

    def interrupted(cls, cfg, model):
        evaluated.append("begun")
        signal.raise_signal(signal.SIGINT)
        evaluated.append("ended")

    monkeypatch.setattr(Trainer, "test", classmethod(interrupted))
    handlers = [signal.getsignal(number) for number in SaveOnInterrupt.SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        train(tiny_cfg(data, tmp_path, SOLVER__MAX_ITER=2))
    assert evaluated == ["begun"]
    assert [signal.getsignal(number) for number in SaveOnInterrupt.SIGNALS] == handlers
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_folder_with_another_runs_checkpoints_is_refused_and_left_alone(finished, data):
    cfg, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in Path(cfg.OUTPUT_DIR).iterdir()}
    with pytest.raises(ValueError, match="holds the checkpoints of another run: continue it with --resume"):
        check_output_dir(cfg, resume=False)
    assert {path: path.stat().st_mtime_ns for path in Path(cfg.OUTPUT_DIR).iterdir()} == before


def test_resuming_with_another_model_is_refused(finished, data):
    cfg, _, _ = finished
    (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump())
    check_output_dir(cfg, resume=True)
    other = tiny_cfg(data, cfg.OUTPUT_DIR, MODEL__ADAPTER__RANK=3)
    with pytest.raises(ValueError, match=r"--resume: MODEL.ADAPTER.RANK \(2 before, 3 now\)"):
        check_output_dir(other, resume=True)


def test_missing_weights_are_errors_that_name_the_remedy(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="correct MODEL.WEIGHTS"):
        load_model(tiny_cfg(data, tmp_path, MODEL__WEIGHTS=str(tmp_path / "nothing.pth")))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        load_model(tiny_cfg(data, tmp_path))


@pytest.mark.parametrize("faster", [False, True])
def test_on_a_cpu_attention_is_fused_in_evaluation_and_in_training_where_that_is_faster(
    data, tmp_path, monkeypatch, faster
):
    monkeypatch.setattr(cpu, "fused_attention_is_faster", lambda dtype: faster)
    seen = []

    class Watch(HookBase):
        def before_train(self):
            attention = vit_of(self.trainer.model)[1].model.blocks[2].attn
            attention.register_forward_hook(lambda module, *args: seen.append((module.training, module.fused_attn)))

    trainer, _ = train(tiny_cfg(data, tmp_path, SOLVER__MAX_ITER=2), extra_hooks=[Watch()])
    assert set(seen) == {(True, faster), (False, True)}
    assert vit_of(trainer.model)[1].model.blocks[2].attn.fused_attn


def test_plain_and_fused_attention_have_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0, img_size=64).double()
    x, gradients = torch.randn(1, 3, 64, 64, dtype=torch.float64), []
    monkeypatch.setattr(cpu, "fused_attention_is_faster", lambda dtype: False)
    for context in (nullcontext(), cpu.training_attention(vit)):
        vit.zero_grad()
        with context:
            vit(x).square().sum().backward()
        gradients.append(vit.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_in_bfloat16_on_a_cpu_with_amx_attention_trains_unfused(monkeypatch):
    monkeypatch.setattr(cpu, "has_amx", lambda: True)
    cpu.fused_attention_is_faster.cache_clear()
    assert not cpu.fused_attention_is_faster(torch.bfloat16)


@pytest.mark.parametrize("steps, drops", [([4], []), ([2, 4, 9], [2]), ([2, 3], [2, 3])])
def test_a_shorter_training_leaves_out_the_steps_it_does_not_reach(data, tmp_path, steps, drops):
    cfg = tiny_cfg(data, tmp_path, SOLVER__MAX_ITER=4, SOLVER__STEPS=steps, SOLVER__WARMUP_ITERS=0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, rates = Trainer.build_lr_scheduler(cfg, optimizer), []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1 ** sum(iteration >= drop for drop in drops) for iteration in range(4)])


def test_the_hooks_work_in_detectron2s_own_trainer(data, tmp_path):
    class Standard(DefaultTrainer):
        build_train_loader = staticmethod(build_train_loader)

    untested = dict(DATASETS__TEST=[], DATASETS__SOURCE_TEST="")
    cfg = tiny_cfg(data, tmp_path, SOLVER__CLIP_GRADIENTS__ENABLED=False, SOLVER__MAX_ITER=3, **untested)
    trainer = Standard(cfg)
    trainer.register_hooks([LayerFreezing([r"proposal_generator\.rpn_head"]), WeightDecayAnnealing(0.01)])
    start = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, start[name])}
    assert any(name.startswith("roi_heads.") for name in moved)
    assert not any(name.startswith("proposal_generator.") for name in moved)
    decays = {group["weight_decay"] for group in trainer.optimizer.param_groups if group["initial_weight_decay"]}
    assert decays == {CosineParamScheduler(0.05, 0.01)(2 / 3)}
