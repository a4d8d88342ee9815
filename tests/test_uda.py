"""Domain adaptation: learning from target images without labels, apart from everything else."""

import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from training import tiny_cfg, write_data

from soma_det.adapters import pop_auxiliary_losses
from soma_det.engine import Trainer
from soma_det.engine.averaging import WeightAveraging
from soma_det.uda.alignment import DomainAlignment, dann_reversal, reverse_gradient
from soma_det.uda.config import check_uda
from soma_det.uda.data import TargetMapper, build_uda_train_loader, register_targets, target_records
from soma_det.uda.distillation import RegionOutputs, anchor_losses, anchor_outputs, region_losses
from soma_det.uda.hooks import PseudoLabelWatch
from soma_det.uda.teacher import Teacher
from soma_det.uda.trainer import UdaTrainer

ROOT = Path(__file__).parents[1]
TARGET = "tiny_night_sunny_train"
EMA = {"UDA__TEACHER": "ema", "SOLVER__WEIGHT_AVERAGE__METHOD": "ema", "SOLVER__WEIGHT_AVERAGE__DECAY": 0.5}
SELF = {"UDA__TEACHER": "self"}
HARD = {"UDA__LABELS__KIND": "hard"}
ALIGN = {"UDA__ALIGN__LEVELS": ["p2", "p3"], "UDA__ALIGN__INSTANCE": True}
RETINANET = {
    "MODEL__META_ARCHITECTURE": "AdaptedRetinaNet",
    "MODEL__RETINANET__NUM_CLASSES": 7,
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
}
KINDS = {
    "ema": EMA,
    "self": SELF,
    "ema-hard": {**EMA, **HARD},
    "frozen": {"UDA__TEACHER": "frozen", **HARD},
    "align": ALIGN,
    "ema-align": {**EMA, **ALIGN},
    "retinanet": {**EMA, **HARD, **RETINANET, "UDA__ALIGN__LEVELS": ["p3", "p4"]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("uda_data"))


@pytest.fixture(scope="module")
def burn_in(data, tmp_path_factory):
    """A function: the checkpoint of a detector that has begun to train on the source."""

    @functools.cache
    def train(retinanet: bool) -> str:
        folder = tmp_path_factory.mktemp("burn_in")
        cfg = tiny_cfg(
            data,
            folder,
            SOLVER__MAX_ITER=2,
            DATASETS__TEST=[],
            DATASETS__SOURCE_TEST="",
            **(RETINANET if retinanet else {}),
        )
        trainer = Trainer(cfg)
        trainer.train()
        return str(folder / "model_final.pth")

    return train


def uda_cfg(data, folder, weights="", **changes):
    changes = {
        "UDA__TARGET": [TARGET],
        "UDA__LABELS__THRESHOLD": 0.0,
        "DATASETS__TEST": [],
        "DATASETS__SOURCE_TEST": "",
        **changes,
    }
    return tiny_cfg(data, folder, MODEL__WEIGHTS=weights, **changes)


@pytest.fixture
def configure(data, burn_in, tmp_path):
    def make(folder="run", **changes):
        retinanet = changes.get("MODEL__META_ARCHITECTURE") == "AdaptedRetinaNet"
        return uda_cfg(data, tmp_path / folder, burn_in(retinanet), **changes)

    return make


def built(cfg, resume=False):
    torch.manual_seed(0)  # of the discriminators; tools do it by SEED
    trainer = UdaTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def trained(cfg, resume=False):
    trainer = built(cfg, resume)
    trainer.train()
    return trainer


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_trains_moves_and_every_loss_is_finite(configure, kind):
    trainer = built(configure(**KINDS[kind]))
    before = weights_of(trainer)
    trains = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    trainer.train()
    moved = {name for name, tensor in weights_of(trainer).items() if not torch.equal(tensor, before[name])}
    assert moved <= trains
    assert any(name.startswith("backbone.") for name in moved)
    values = {name: history.latest() for name, history in trainer.storage.histories().items()}
    assert all(map(math.isfinite, values.values()))
    if "UDA__TEACHER" in KINDS[kind]:
        assert any(name.startswith("target_") for name in values)
    if "UDA__ALIGN__LEVELS" in KINDS[kind]:
        assert "loss_align_p3" in values and 0 <= values["alignment/accuracy_p3"] <= 1


@pytest.mark.parametrize("kind", ["frozen", "ema-align"])
def test_a_resumed_adaptation_ends_with_the_same_bits(configure, kind):
    whole = trained(configure("whole", **KINDS[kind]))
    cfg = configure("parts", **KINDS[kind])
    stop_after(built(cfg), 3)
    rest = trained(cfg, resume=True)
    assert rest.start_iter == 3
    assert_equal(weights_of(whole), weights_of(rest))


class Stop(Exception):
    pass


def stop_after(trainer, iterations):
    """Train as if the process had died after so many iterations."""
    run_step = trainer.run_step

    def step():
        if trainer.iter == iterations:
            raise Stop
        run_step()

    trainer.run_step = step
    with pytest.raises(Stop):
        trainer.train()


@pytest.mark.parametrize("kind", ["frozen", "ema-align"])
def test_poisoned_target_labels_change_nothing(configure, monkeypatch, kind):
    clean = trained(configure("clean", **KINDS[kind]))
    get = DatasetCatalog.get

    def poisoned(name):
        records = get(name)
        if name == TARGET:
            records = [
                {**r, "annotations": [{**a, "category_id": 0, "bbox": [0, 0, 5, 5]} for a in r["annotations"]]}
                for r in records
            ]
        return records

    monkeypatch.setattr(DatasetCatalog, "get", poisoned)
    assert_equal(weights_of(clean), weights_of(trained(configure("poisoned", **KINDS[kind]))))


@pytest.mark.parametrize("kind", ["ema", "ema-hard", "retinanet"])
def test_a_teacher_without_any_box_gives_finite_losses(configure, kind):
    trainer = trained(configure(**KINDS[kind], **{"UDA__LABELS__THRESHOLD": 1.0}))
    history = trainer.storage.histories()
    assert history["pseudo_labels/boxes"].latest() == 0
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(trainer).values())


def test_images_without_objects_are_not_left_out(data, tmp_path, monkeypatch):
    cfg = uda_cfg(data, tmp_path)
    get = DatasetCatalog.get
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [{**r, "annotations": []} for r in get(name)])
    assert len(target_records(TARGET, 1)) == 6
    assert set(target_records(TARGET, 1)[0]) <= {"file_name", "image_id", "height", "width", "domain"}
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS in (True, False)


def test_both_views_of_a_target_image_have_its_pixels_in_the_same_places(data, tmp_path):
    cfg = uda_cfg(
        data,
        tmp_path,
        UDA__STRONG__GRAY=0.0,
        UDA__STRONG__BLUR=0.0,
        UDA__STRONG__MASK=0.5,
        UDA__STRONG__MASK_BLOCK=8,
        INPUT__AUGMENTATION__PHOTOMETRIC=False,
    )
    record = TargetMapper(cfg)(target_records(TARGET, 1)[0])
    same = (record["image"] == record["weak_image"]).all(0)
    assert 0.2 < same.float().mean() < 1
    assert (record["image"][:, ~same] == 114).all()
    assert "instances" not in record and "annotations" not in record


def test_a_folder_of_images_is_a_target(data, tmp_path):
    folder = data / "night_sunny" / "VOC2007" / "JPEGImages"
    cfg = uda_cfg(data, tmp_path, UDA__TARGET=[str(folder)])
    register_targets(cfg)
    assert len(target_records(str(folder), 1)) == len(list(folder.iterdir()))


def test_the_stream_of_target_images_goes_on_where_it_stopped(data, tmp_path, burn_in):
    cfg = uda_cfg(data, tmp_path, burn_in(False), **SELF)
    whole, rest = build_uda_train_loader(cfg), build_uda_train_loader(cfg)
    batches = [batch for _, batch in zip(range(3), whole)]
    rest.start_iteration = 2
    again = next(iter(rest))
    for old, new in zip(batches[2], again):
        assert old["file_name"] == new["file_name"] and torch.equal(old["image"], new["image"])
    assert ["weak_image" in entry for entry in again] == [False, False, True, True]


def test_the_average_of_the_weights_is_the_teachers_closed_form(configure):
    trainer = built(configure(**EMA))
    name, seen = "roi_heads.box_predictor.cls_score.weight", []
    run_step = trainer.run_step

    def step():
        run_step()
        seen.append(trainer.model.get_parameter(name).detach().clone())

    trainer.run_step = step
    expected = None
    averaging = next(hook for hook in trainer._hooks if isinstance(hook, WeightAveraging))
    stop_at, seen_averages = 4, []
    after = averaging.after_step

    def after_step():
        after()
        seen_averages.append(averaging.averages[name].clone())

    averaging.after_step = after_step
    stop_after(trainer, stop_at)
    for count, weight in enumerate(seen):
        decay = min(0.5, count / (count + 1))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        torch.testing.assert_close(seen_averages[count], expected)
    assert dict(trainer.teacher.weights()).keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_a_teacher_looks_with_its_own_weights_and_leaves_the_model_as_it_is(configure):
    trainer = built(configure(**SELF))
    model = trainer.model.train()
    batch = next(iter(trainer.data_loader.target))
    before, modes = weights_of(trainer), {n: m.training for n, m in model.named_modules()}
    bias = "roi_heads.box_predictor.cls_score.bias"
    raised = model.get_parameter(bias).detach().clone()
    raised[2] += 50  # this class everywhere
    Teacher(model, lambda: {bias: raised}).label(batch)
    assert all(entry["soft"].outputs.logits.argmax(1).eq(2).all() for entry in batch)
    assert all(entry["soft"].outputs.logits.requires_grad is False for entry in batch)
    assert_equal(before, weights_of(trainer))
    assert modes == {n: m.training for n, m in model.named_modules()}


def test_losses_of_an_adapter_in_the_teachers_pass_are_discarded(data, tmp_path):
    trainer = UdaTrainer(
        uda_cfg(data, tmp_path, "unread.pth", **SELF, MODEL__ADAPTER__NAME="moa", MODEL__ADAPTER__RANK=16)
    )
    model = trainer.model.train()
    batch = next(iter(trainer.data_loader.target))
    model.backbone(torch.zeros(1, 3, 64, 64))  # leaves its loss behind
    Teacher(model).label(batch)
    assert pop_auxiliary_losses(model.backbone) == {}


def test_a_teacher_that_says_what_is_annotated_gives_detectron2s_own_losses(configure):
    """So the anchors of teacher, student and choice are in one order."""
    trainer = UdaTrainer(configure(**SELF))
    model = trainer.model.train()
    batch = next(iter(trainer.data_loader.source))
    images = model.preprocess_image(batch)
    features, boxes = model.backbone(images.tensor), [entry["instances"] for entry in batch]
    rpn = model.proposal_generator
    outputs = anchor_outputs(rpn, features)
    torch.manual_seed(0)
    labels, matched = rpn.label_and_sample_anchors(outputs.anchors, boxes)
    with EventStorage():
        own = rpn.losses(outputs.anchors, outputs.logits, labels, outputs.deltas, matched)
    chosen = torch.stack(labels)
    anchors = Boxes.cat(outputs.anchors).tensor
    deltas = torch.stack([rpn.box2box_transform.get_deltas(anchors, boxes) for boxes in matched])
    assert (chosen == 1).any()
    said = anchor_losses(outputs, torch.where(chosen == 1, 50.0, -50.0), deltas.nan_to_num(0, 0, 0), chosen, 1.0)
    normalizer = rpn.batch_size_per_image * len(batch)
    torch.testing.assert_close(said["loss_objectness"] * int((chosen >= 0).sum()) / normalizer, own["loss_rpn_cls"])
    torch.testing.assert_close(
        said["loss_anchor_deltas"] * 4 * int((chosen == 1).sum()) / normalizer, own["loss_rpn_loc"]
    )


@pytest.mark.parametrize("agnostic", [True, False])
def test_region_losses_of_a_sure_teacher_are_cross_entropy_and_the_distance_of_its_class(agnostic):
    torch.manual_seed(0)
    classes = torch.tensor([0, 2, 3, 3])  # of three, 3 being background
    student = RegionOutputs(torch.randn(4, 4), torch.randn(4, 4 if agnostic else 12))
    teacher = RegionOutputs(F.one_hot(classes, 4) * 60.0, torch.randn(4, 4 if agnostic else 12))
    losses = region_losses(student, teacher, 1.0)
    torch.testing.assert_close(losses["loss_classes"], F.cross_entropy(student.logits, classes))
    columns = [slice(0, 4)] * 2 if agnostic else [slice(0, 4), slice(8, 12)]
    distance = sum((student.deltas[i, c] - teacher.deltas[i, c]).abs().sum() for i, c in enumerate(columns))
    torch.testing.assert_close(losses["loss_region_deltas"], distance / 4)


def test_the_features_gradient_is_reversed_and_the_discriminators_is_not():
    torch.manual_seed(0)
    alignment, features = DomainAlignment({"p3": 4}, 0, 2, weight=1.0), torch.randn(2, 4, 3, 3, requires_grad=True)
    domain = torch.tensor([0, 1])
    gradients = {}
    for factor in (-1.0, 0.5):  # -1 is an ordinary gradient
        alignment.reversal = factor
        with EventStorage():
            loss = alignment({"p3": features}, domain)["loss_align_p3"]
        weight = alignment.levels["p3"][0].weight
        gradients[factor] = torch.autograd.grad(loss, [features, weight])
    torch.testing.assert_close(gradients[0.5][0], -0.5 * gradients[-1.0][0])
    torch.testing.assert_close(gradients[0.5][1], gradients[-1.0][1])


def test_reversal_starts_at_zero_and_rises_towards_one():
    assert dann_reversal(0) == 0
    assert dann_reversal(1) == pytest.approx(2 / (1 + 2.718281828**-10) - 1)
    x = torch.ones(2, requires_grad=True)
    reverse_gradient(x, 0.0).sum().backward()
    assert (x.grad == 0).all()


def test_every_domain_counts_the_same_however_many_images_it_has():
    torch.manual_seed(0)
    alignment = DomainAlignment({"p3": 4}, 0, 3, weight=1.0)
    features = torch.randn(3, 4, 2, 2)
    with EventStorage():
        equal = alignment({"p3": features}, torch.tensor([0, 1, 2]))["loss_align_p3"]
        more = alignment({"p3": features[[0, 0, 0, 1, 2]]}, torch.tensor([0, 0, 0, 1, 2]))["loss_align_p3"]
    torch.testing.assert_close(equal, more)


def test_a_run_without_target_is_bit_equal_to_the_engines(data, tmp_path):
    """UDA's source-only training differs from the engine's by its augmentation alone."""
    off = {"UDA__STRONG__GRAY": 0.0, "UDA__STRONG__BLUR": 0.0, "DATASETS__TEST": [], "DATASETS__SOURCE_TEST": ""}
    weights = []
    for trainer_class in (Trainer, UdaTrainer):
        torch.manual_seed(0)
        trainer = trainer_class(tiny_cfg(data, tmp_path / trainer_class.__name__, **off))
        trainer.train()
        weights.append(weights_of(trainer))
    assert_equal(*weights)


def test_nothing_but_its_own_tools_imports_the_adaptation():
    """The config has its keys, and train_net.py asks whether they are set."""
    files = [path for path in (ROOT / "soma_det").rglob("*.py") if "uda" not in path.parts]
    importers = {path.name for path in files if "soma_det.uda" in path.read_text(encoding="utf-8")}
    assert importers == {"defaults.py"}


def test_dying_labels_are_noticed_once(caplog):
    class Storage:
        def put_scalar(self, *args, **kwargs):
            pass

    class Fake:
        storage = Storage()

    teacher = Teacher(torch.nn.Linear(1, 1))
    watch = PseudoLabelWatch(teacher)
    watch.trainer = Fake()
    with caplog.at_level("WARNING"):
        for boxes in [4] * 60 + [0] * 200:
            teacher.boxes, teacher.scores = [boxes], []
            watch.after_step()
    assert caplog.text.count("collapsing") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**EMA, "UDA__TARGET": []}, "UDA.TARGET is empty"),
        ({"UDA__TEACHER": "ema"}, "SOLVER.WEIGHT_AVERAGE.METHOD"),
        ({"UDA__TEACHER": "frozen"}, 'UDA.LABELS.KIND to "hard"'),
        ({**SELF, "MODEL__WEIGHTS": ""}, "MODEL.WEIGHTS"),
        ({**SELF, "UDA__LABELS__KIND": "firm"}, "choose 'soft' or 'hard'"),
        ({**SELF, **RETINANET}, "Faster R-CNN alone"),
        ({**SELF, "UDA__STRONG__GRAY": 2.0}, "share from 0 to 1"),
        ({"UDA__ALIGN__LEVELS": ["p3"], "MODEL__MASK_ON": True}, "masks"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(data, tmp_path, changes, message):
    changes = {"MODEL__WEIGHTS": "somewhere.pth", **changes}
    with pytest.raises(ValueError, match=message):
        check_uda(tiny_cfg(data, tmp_path, **{"UDA__TARGET": [TARGET], **changes}))


def test_an_unknown_level_is_named(configure):
    with pytest.raises(ValueError, match="the pyramid has"):
        UdaTrainer(configure(**{"UDA__ALIGN__LEVELS": ["p9"]}))
