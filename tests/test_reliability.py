"""Nothing lost, nothing silently wrong: non-finite losses, damaged checkpoints, pruning, locks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from training import tiny_cfg, write_data

import soma_det
from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer, DamagedCheckpointError
from soma_det.engine.divergence import NonFiniteLossError
from soma_det.engine.hooks import BoundedHistories
from soma_det.engine.output_dir import LockedFolderError, locked_output_dir

UNTESTED = dict(DATASETS__TEST=[], DATASETS__SOURCE_TEST="")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def trainer_of(cfg, *hooks, resume=False):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    torch.manual_seed(cfg.SEED)
    trainer = soma_det.Trainer(cfg)
    trainer.register_hooks(hooks)
    trainer.resume_or_load(resume=resume)
    return trainer


def weights(folder):
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)["model"]


class Poison(HookBase):
    """Makes one loss NaN at some iterations, and keeps the weights from before each of them."""

    def __init__(self, iterations):
        self.iterations, self.before = iterations, {}

    def before_train(self):
        self.trainer.model.roi_heads.register_forward_hook(self._spoil)

    def _spoil(self, module, args, output):
        if module.training and self.trainer.iter in self.iterations:
            self.before = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}
            output[1]["loss_cls"] = output[1]["loss_cls"] * float("nan")
        return output


def test_a_loss_that_is_not_finite_names_itself_the_iteration_and_the_images_and_reaches_no_weight(data, tmp_path):
    trainer = trainer_of(tiny_cfg(data, tmp_path, **UNTESTED), poison := Poison({4}))
    with pytest.raises(NonFiniteLossError, match=r"iteration 4: .*loss_cls nan.*loss_box_reg \d.*Images: .*\.jpg"):
        trainer.train()
    assert all(torch.equal(p, poison.before[name]) for name, p in trainer.model.named_parameters())
    assert (tmp_path / "model_0000002.pth").exists()  # the last good one


def test_up_to_so_many_steps_are_left_out_on_request_and_not_one_more(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path / "one", SOLVER__SKIP_NON_FINITE=1, **UNTESTED)
    trainer = trainer_of(cfg, Poison({1}))
    trainer.train()
    assert trainer.skipping.skipped == 1 and all(torch.isfinite(t).all() for t in weights(cfg.OUTPUT_DIR).values())
    with pytest.raises(NonFiniteLossError):
        trainer_of(tiny_cfg(data, tmp_path / "two", SOLVER__SKIP_NON_FINITE=1, **UNTESTED), Poison({1, 3})).train()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_newest_checkpoint_is_left_out_and_the_run_ends_the_same(data, tmp_path, damage, caplog):
    whole = tiny_cfg(data, tmp_path / "whole", SOLVER__CHECKPOINT_PERIOD=2, **UNTESTED)
    trainer_of(whole).train()
    broken = tiny_cfg(data, tmp_path / "broken", SOLVER__CHECKPOINT_PERIOD=2, **UNTESTED)
    trainer_of(broken).train()
    newest = tmp_path / "broken" / "model_final.pth"
    content = newest.read_bytes()
    newest.unlink()
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    (tmp_path / "broken" / "model_0000005.pth").unlink()  # the same iteration
    trainer = trainer_of(broken, resume=True)
    assert trainer.start_iter == 4 and "Left out a checkpoint" in caplog.text
    trainer.train()
    expected = weights(whole.OUTPUT_DIR)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(broken.OUTPUT_DIR).items())


def test_where_no_checkpoint_can_be_read_resuming_is_an_error(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    (tmp_path / "model_final.pth").write_bytes(b"PK")
    with pytest.raises(DamagedCheckpointError, match="None of the 1 checkpoints"):
        AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)


def test_only_the_newest_checkpoints_stay(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__CHECKPOINTS_KEPT=2, **UNTESTED)
    trainer_of(cfg).train()
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_0000004.pth", "model_0000005.pth", "model_final.pth"}


def test_a_checkpoint_left_by_a_kill_before_its_pruning_goes_with_the_resume(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__CHECKPOINTS_KEPT=2, **UNTESTED)
    trainer_of(cfg).train()
    (tmp_path / "model_0000003.pth").write_bytes((tmp_path / "model_0000004.pth").read_bytes())
    trainer_of(cfg, resume=True).train()
    assert {path.name for path in tmp_path.glob("model_0*")} == {"model_0000004.pth", "model_0000005.pth"}


def test_the_checkpoint_that_is_best_on_the_source_is_kept_also_after_a_resume(data, tmp_path, monkeypatch):
    source, scores = [10.0, 30.0, 20.0, 5.0], iter([10.0, 30.0, 20.0, 5.0])

    def evaluate(cls, cfg, model, evaluators=None):
        return {name: {"voc": {"AP50": next(scores) if "clear" in name else 99.0}} for name in cfg.DATASETS.TEST}

    monkeypatch.setattr(soma_det.Trainer, "test", classmethod(evaluate))

    class Stop(HookBase):
        def after_step(self):
            if self.trainer.iter == 3:
                raise KeyboardInterrupt

    cfg = tiny_cfg(data, tmp_path, TEST__EVAL_PERIOD=2, TEST__KEEP_BEST=True, SOLVER__CHECKPOINT_PERIOD=2)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(cfg, Stop()).train()
    trainer_of(cfg, resume=True).train()
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 3 and max(source) == 30.0


def test_an_evaluation_that_an_interruption_cut_short_is_repeated_after_a_resume(data, tmp_path, monkeypatch):
    calls = []

    def evaluate(cls, cfg, model, evaluators=None):
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {name: {"voc": {"AP50": 10.0}} for name in cfg.DATASETS.TEST}

    monkeypatch.setattr(soma_det.Trainer, "test", classmethod(evaluate))
    cfg = tiny_cfg(data, tmp_path, TEST__EVAL_PERIOD=2, SOLVER__CHECKPOINT_PERIOD=2)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(cfg).train()
    resumed = trainer_of(cfg, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    lines = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    assert {line["iteration"] for line in lines if "tiny_night_sunny_test/voc/AP50" in line} == {1, 3, 6}


def test_a_training_keeps_the_latest_values_of_each_metric_alone_also_after_a_resume(data, tmp_path, monkeypatch):
    def lengths(trainer):
        trainer.train()
        return {len(history.values()) for history in trainer.storage.histories().values()}

    cfg = tiny_cfg(data, tmp_path / "whole", **UNTESTED)
    assert max(lengths(trainer_of(cfg))) == 6
    monkeypatch.setattr(BoundedHistories, "LENGTH", 2)
    assert max(lengths(trainer_of(cfg, resume=True))) == 2
    assert max(lengths(trainer_of(tiny_cfg(data, tmp_path / "bounded", **UNTESTED)))) == 2


def test_keeping_the_best_needs_evaluations_in_between(data, tmp_path):
    with pytest.raises(ValueError, match=r"TEST\.EVAL_PERIOD"):
        tiny_cfg(data, tmp_path, TEST__KEEP_BEST=True)


def test_a_second_training_in_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    code = (
        "import sys; from soma_det.engine.output_dir import locked_output_dir\n"
        f"with locked_output_dir({str(tmp_path)!r}): print('locked', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"locked\n"
    with pytest.raises(LockedFolderError, match="Another training"), locked_output_dir(str(tmp_path)):
        pass
    first.kill()
    first.wait()
    with locked_output_dir(str(tmp_path)):
        pass
