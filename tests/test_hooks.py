"""Weight-decay annealing, layer freezing and clipping, on a model of two layers in Detectron2's own trainer."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter
from timm.layers import LayerNorm2d
from torch import nn

from soma_det.engine.hooks import (
    BoundedHistories,
    GradientClipping,
    LayerFreezing,
    RecentMetrics,
    WeightDecayAnnealing,
    bound_histories,
)
from soma_det.solver.build import build_adamw


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return {"loss": self.second(self.norm(self.first(x))).square().mean()}


class Recorder(SimpleTrainer):
    """Notes after each step what the test asks for."""

    def after_step(self):
        super().after_step()
        self.notes.append(self.note())


def train(model, hooks, iterations=4, note=lambda: None, optimizer=None):
    data = [torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i in range(50)]
    trainer = Recorder(model, data, optimizer or torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
    trainer.notes, trainer.note = [], note
    trainer.register_hooks(hooks)
    trainer.train(0, iterations)
    return trainer


def annealed(initial, final, iteration, max_iter):
    """The formula of arXiv 2412.04077, section 3.3."""
    return final + (initial - final) * (1 + math.cos(math.pi * iteration / max_iter)) / 2


def test_annealing_is_a_half_cosine_from_the_initial_value_to_the_final_one():
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.05)
    decay = lambda: optimizer.param_groups[0]["weight_decay"]  # noqa: E731
    notes = train(model, [WeightDecayAnnealing(1e-5)], iterations=40, note=decay, optimizer=optimizer).notes
    assert notes[0] == 0.05
    assert notes[20] == pytest.approx((0.05 + 1e-5) / 2)
    assert notes == pytest.approx([annealed(0.05, 1e-5, t, 40) for t in range(40)], rel=1e-13)
    assert optimizer.param_groups[0]["initial_weight_decay"] == 0.05


def test_every_group_anneals_from_its_own_value_and_zero_stays_zero():
    model = Toy()
    groups = [
        {"params": model.first.parameters(), "weight_decay": 0.4, "name": "first"},
        {"params": model.second.parameters(), "weight_decay": 0.0, "name": "second"},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    trainer = train(
        model,
        [WeightDecayAnnealing(final=0.1)],
        optimizer=optimizer,
        note=lambda: [group["weight_decay"] for group in optimizer.param_groups],
    )
    expected = [0.1 + 0.3 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert [first for first, _ in trainer.notes] == pytest.approx(expected)
    assert [second for _, second in trainer.notes] == [0.0] * 4
    assert trainer.storage.latest()["weight_decay/first"][0] == pytest.approx(expected[-1])


def test_annealing_resumed_from_the_optimizers_state_continues_the_curve():
    model = Toy()
    whole = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.4)
    train(model, [WeightDecayAnnealing(0.1)], optimizer=whole)
    resumed = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.4)
    resumed.load_state_dict(whole.state_dict())  # with the annealed value of iteration 3 in it
    assert resumed.param_groups[0]["weight_decay"] != 0.4
    trainer = Recorder(model, [torch.randn(8, 4)] * 9, resumed)
    trainer.notes, trainer.note = [], lambda: resumed.param_groups[0]["weight_decay"]
    trainer.register_hooks([WeightDecayAnnealing(0.1)])
    trainer.train(2, 4)
    expected = [annealed(0.4, 0.1, t, 4) for t in (2, 3)]
    assert trainer.notes == pytest.approx(expected)


def test_layers_frozen_until_an_iteration_do_not_move_before_and_move_after():
    model = Toy()
    start = model.first.weight.detach().clone()
    trainer = train(
        model,
        [LayerFreezing(["first", "dropout"], until=2)],
        note=lambda: (torch.equal(model.first.weight, start), model.first.training, model.dropout.training),
    )
    assert [note[0] for note in trainer.notes] == [True, True, False, False]
    assert [note[1:] for note in trainer.notes] == [(False, False)] * 2 + [(True, True)] * 2
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_thawed_layers_start_without_momentum_of_the_frozen_time():
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, [LayerFreezing(["first"], until=3)], optimizer=optimizer)
    assert optimizer.state[model.first.weight]["step"] == 1
    assert optimizer.state[model.second.weight]["step"] == 4


def test_layers_frozen_for_good_stay_in_evaluation_mode_and_are_verified_at_the_end():
    model = Toy()
    model.first.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    trainer = train(model, [LayerFreezing(["first"])], optimizer=optimizer, note=lambda: model.first.training)
    assert trainer.notes == [False] * 4

    class Meddler(LayerFreezing):
        def after_step(self):
            with torch.no_grad():
                model.first.weight[0, 0] += 1

    with pytest.raises(RuntimeError, match=r"Frozen modules have changed during training: \['first'\]"):
        train(model, [Meddler(["first"])], optimizer=optimizer)


def test_a_model_built_without_freezing_is_frozen_for_good_all_the_same():
    model = Toy()
    start = model.first.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    train(model, [LayerFreezing(["first"])], optimizer=optimizer)
    assert torch.equal(model.first.weight, start) and model.first.weight not in optimizer.state
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_name_that_no_module_has_is_refused():
    with pytest.raises(ValueError, match="'frist' matches no module"):
        train(Toy(), [LayerFreezing(["frist"])])


def test_clipping_scales_all_gradients_together_and_ignores_dropped_ones():
    model = Toy()
    norms = []

    def note():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    trainer = train(model, [LayerFreezing(["first"], until=9), GradientClipping(0.01)], note=note)
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)
    assert trainer.storage.latest()["gradient_norm"][0] > 0.01
    assert model.first.weight.grad is None


def test_optimizer_groups_follow_the_recipe():
    model = nn.ModuleDict(
        {"backbone": nn.ModuleDict({"vit": Toy(), "pyramid": nn.Linear(2, 2)}), "head": nn.LayerNorm(2)}
    )
    model["backbone"]["vit"].first.requires_grad_(False)
    optimizer = build_adamw(model, lr=2e-4, weight_decay=0.05, vit=model["backbone"]["vit"])
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["backbone", "backbone_norm", "head", "head_norm"]  # checkpoints hold them by index
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "backbone": (1e-4, pytest.approx(0.01)),
        "backbone_norm": (1e-4, 0),
        "head": (2e-4, 0.05),
        "head_norm": (2e-4, 0),
    }
    assert [len(groups[name]["params"]) for name in ("backbone", "backbone_norm", "head", "head_norm")] == [2, 2, 2, 2]


def test_without_a_vit_everything_is_head_and_the_norms_come_last_wherever_they_are_in_the_model():
    model = nn.Sequential(nn.LayerNorm(2), LayerNorm2d(2), nn.Linear(2, 2))
    groups = build_adamw(model, lr=2e-4, weight_decay=0.05).param_groups
    assert [(group["name"], len(group["params"])) for group in groups] == [("head", 2), ("head_norm", 4)]


def test_an_optimizer_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        build_adamw(nn.Linear(2, 2).requires_grad_(False), lr=1, weight_decay=0)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: WeightDecayAnnealing(-1), "FINAL is -1"),
        (lambda: LayerFreezing([], until=-3), "UNTIL is -3"),
        (lambda: GradientClipping(0), "CLIP_VALUE is 0"),
    ],
)
def test_wrong_values_name_the_key(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_metrics_outlive_two_resumes_and_what_was_written_before_is_not_written_again():
    saved, storage = {}, EventStorage()
    for start, end in ((0, 25), (25, 30), (30, 30)):
        hook, storage = RecentMetrics(), EventStorage(start)
        hook.trainer = SimpleNamespace(storage=storage, start_iter=start, max_iter=60)
        hook.load_state_dict(saved)
        hook.before_train()
        for storage.iter in range(start, end):
            storage.put_scalar("loss", storage.iter)
            if storage.iter in (19, 22):
                storage.put_scalar(f"score {storage.iter}", 7.0, smoothing_hint=False)
        saved = hook.state_dict()
    assert storage.latest_with_smoothing_hint() == {"loss": (19.5, 29), "score 22": (7.0, 22)}  # 10 to 29
    assert set(saved) == {"loss", "score 19", "score 22"}


def log_metrics(storage, folder):
    """Put metrics in each of 2,500 iterations, or in some, and write them as a training does: file and log."""
    folder.mkdir()
    records, log = [], logging.getLogger("detectron2.utils.events")
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    random = torch.Generator().manual_seed(1)
    with storage:
        writers = [CommonMetricPrinter(5000), JSONWriter(str(folder / "metrics.json"))]
        for storage.iter in range(2500):
            loss, seconds, rare = torch.rand(3, generator=random).tolist()
            storage.put_scalars(total_loss=loss, time=seconds, data_time=seconds / 10)
            if rare < 0.1:
                storage.put_scalar("rare", rare)
            if storage.iter % 20 == 19:
                for writer in writers:
                    writer.write()
    log.removeHandler(handler)
    return records, (folder / "metrics.json").read_text()


def test_metrics_of_which_the_latest_alone_are_kept_are_logged_as_if_all_were(tmp_path):
    bounded = EventStorage()
    bound_histories(bounded, BoundedHistories.LENGTH)
    records, lines = log_metrics(bounded, tmp_path / "bounded")
    assert (records, lines) == log_metrics(whole := EventStorage(), tmp_path / "whole")
    assert len(records) == 125 and "eta_seconds" in lines
    assert len(whole.history("time").values()) == 2500 and len(bounded.history("time").values()) == 1000
