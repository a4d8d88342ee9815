"""A detector exported without its pretrained weights is the detector; what cannot be exported is explained."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from training import CONFIG, options, tiny_cfg, write_data

from soma_det.adapters import load_adapter
from soma_det.checkpoint.exported import export_detector
from soma_det.engine import Trainer, load_model

TOOL = Path(__file__).parents[1] / "tools" / "export_adapter.py"
spec = importlib.util.spec_from_file_location("export_adapter", TOOL)
export_adapter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export_adapter)
UNTESTED = dict(DATASETS__TEST=[], DATASETS__SOURCE_TEST="")


def write_base(path, seed):
    """A file of weights for the tiny ViT, as of a pretraining."""
    torch.manual_seed(seed)
    save_file(timm.create_model("test_vit", num_classes=0, img_size=64).state_dict(), str(path))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "vit.safetensors", seed=1)


def train(data, folder, base, **changes):
    """The path of a checkpoint whose adapter, pyramid and heads have moved far from where they started."""
    cfg = tiny_cfg(data, folder, MODEL__VIT__WEIGHTS=base, SOLVER__MAX_ITER=2, SOLVER__STEPS=[], **UNTESTED, **changes)
    trainer = Trainer(cfg)
    trainer.train()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    trainer.checkpointer.save("model_final")
    return str(folder / "model_final.pth")


@pytest.fixture(scope="module")
def saved(data, base, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("saved"), base)


def export(data, base, weights, *flags, **changes):
    """Run the tool; the path that it writes to."""
    words = [str(word) for word in options(data, Path(weights).parent, MODEL__VIT__WEIGHTS=base, **changes)]
    args = export_adapter.parse_args(["--config-file", CONFIG, "--weights", weights, *flags, *words])
    export_adapter.main(args)
    return args.output


@pytest.fixture(scope="module")
def exported(data, base, saved):
    return export(data, base, saved)


def load(data, folder, weights, base, **changes):
    settings = dict(MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0, **changes)
    return load_model(tiny_cfg(data, folder, MODEL__WEIGHTS=weights, MODEL__VIT__WEIGHTS=base, **settings))


@torch.no_grad()
def detections(data, folder, base, files, **changes):
    """What the detector of each file finds in the same image."""
    inputs = [{"image": torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8), "height": 48, "width": 64}]
    return [load(data, folder, weights, base, **changes)(inputs)[0]["instances"] for weights in files]


def test_an_exported_detector_has_the_detections_of_its_checkpoint(data, tmp_path, base, saved, exported):
    before, after = detections(data, tmp_path, base, (saved, exported))
    assert len(before) == len(after) > 5
    assert torch.equal(before.pred_classes, after.pred_classes)
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.pred_boxes.tensor, before.pred_boxes.tensor, rtol=1e-4, atol=1e-2)


def test_an_exported_detector_is_scored_as_its_checkpoint(data, tmp_path, base, saved, exported):
    results = []
    for weights in (saved, exported):
        cfg = tiny_cfg(data, tmp_path, MODEL__WEIGHTS=weights, MODEL__VIT__WEIGHTS=base)
        results.append(Trainer.test(cfg, load_model(cfg)))
    assert set(results[0]) == {"tiny_daytime_clear_test", "tiny_night_sunny_test"}
    for name, metrics in results[0].items():
        assert metrics["voc"] == pytest.approx(results[1][name]["voc"], abs=1e-3, nan_ok=True)


def test_the_file_is_beside_the_checkpoint_and_holds_no_pretrained_weight(base, saved, exported):
    assert Path(exported) == Path(saved).with_name("detector.safetensors")
    names, pretrained = load_file(exported), load_file(base)
    assert not any(name in names or f"detector.backbone.net.model.{name}" in names for name in pretrained)
    assert any(name.startswith("adapter.blocks.2.") for name in names)
    assert any(name.startswith("detector.backbone.simfp_2.") for name in names)
    assert any(name.startswith("detector.roi_heads.") for name in names)
    assert sum(path.suffix == ".safetensors" for path in Path(saved).parent.iterdir()) == 1


def test_other_pretrained_weights_are_refused(data, tmp_path, base, saved, exported):
    other = write_base(tmp_path / "other.safetensors", seed=2)
    with pytest.raises(
        ValueError, match="belongs to other pretrained weights.*load the weights that it was trained on"
    ):
        load(data, tmp_path, exported, other)
    with pytest.raises(ValueError, match="base is not the one that the model was adapted from"):
        export(data, other, saved, "--output", str(tmp_path / "wrong.safetensors"))
    assert not (tmp_path / "wrong.safetensors").exists()


def test_a_frozen_vit_exports_the_pyramid_and_the_heads_alone(data, tmp_path, base):
    frozen = {"MODEL__ADAPTER__NAME": "frozen", "MODEL__ADAPTER__RANK": 16}
    saved = train(data, tmp_path, base, **frozen)
    path = export(data, base, saved, **frozen)
    assert all(name.startswith("detector.") for name in load_file(path))
    before, after = detections(data, tmp_path, base, (saved, path), **frozen)
    assert torch.equal(before.scores, after.scores) and torch.equal(before.pred_boxes.tensor, after.pred_boxes.tensor)


def test_the_adapter_alone_goes_on_a_plain_vit(data, tmp_path, base, saved):
    path = export(data, base, saved, "--vit-only", "--output", str(tmp_path / "adapter.safetensors"))
    vit = export_adapter.load_base(tiny_cfg(data, tmp_path, MODEL__VIT__WEIGHTS=base))
    load_adapter(vit, path)
    trained, x = load(data, tmp_path, saved, base).backbone.net.model, torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(vit.eval()(x), trained(x), rtol=1e-4, atol=1e-5)


def test_a_detector_of_other_classes_is_refused(data, tmp_path, base, exported):
    changes = dict(MODEL__ROI_HEADS__NUM_CLASSES=3, DATASETS__WEATHER__CLASSES=["car", "bus", "bike"])
    changes |= dict(DATASETS__WEATHER__PREFIX="three", DATASETS__TRAIN=["three_daytime_clear_train"], **UNTESTED)
    with pytest.raises(ValueError, match="(?s)is of another detector: .*roi_heads.*Use the config it was trained with"):
        load(data, tmp_path, exported, base, **changes)


def test_a_checkpoint_of_another_model_is_refused(data, base, saved, tmp_path):
    with pytest.raises(ValueError, match="The checkpoint is of another model.*MODEL.ADAPTER.NAME soma"):
        export(data, base, saved, "--output", str(tmp_path / "x.safetensors"), MODEL__ADAPTER__RANK=3)


def test_another_suffix_is_refused(data, base, saved, tmp_path):
    with pytest.raises(ValueError, match="x.pth: give it the suffix .safetensors"):
        export(data, base, saved, "--output", str(tmp_path / "x.pth"))


def test_a_detector_without_a_vit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no ViT of timm"):
        export_detector(torch.nn.Linear(2, 2), tmp_path / "x.safetensors", torch.nn.Linear(2, 2))


def test_peft_needs_vit_only(capsys):
    with pytest.raises(SystemExit):
        export_adapter.parse_args(["--config-file", CONFIG, "--weights", "x.pth", "--peft", "folder"])
    assert "--peft needs --vit-only" in capsys.readouterr().err


def test_training_from_an_exported_file_is_refused_with_the_remedy(data, tmp_path, base, exported):
    trainer = Trainer(tiny_cfg(data, tmp_path, MODEL__WEIGHTS=exported, MODEL__VIT__WEIGHTS=base, **UNTESTED))
    with pytest.raises(ValueError, match="can be evaluated and not trained on: give a .pth file"):
        trainer.resume_or_load(resume=False)


def test_a_file_that_is_missing_or_of_another_kind_is_named(data, tmp_path, base):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        load(data, tmp_path, str(tmp_path / "nothing.safetensors"), base)
    with pytest.raises(ValueError, match="is not a file of the format 'soma_det.detector.1'"):
        load(data, tmp_path, base, base)
