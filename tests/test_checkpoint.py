"""Checkpoints: written whole, refused where they do not fit, and those of version 0.1 under today's names."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from timm.layers import LayerNorm2d
from torch import nn
from training import tiny_cfg, write_data

import soma_det
from soma_det.checkpoint.convert import convert_old_names
from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer, DamagedCheckpointError, load_tensors
from soma_det.engine import Trainer, load_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory):
    """The checkpoint of a run of one iteration."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = Trainer(tiny_cfg(data, folder, SOLVER__MAX_ITER=1, DATASETS__TEST=[], DATASETS__SOURCE_TEST=""))
    trainer.resume_or_load(resume=False)
    trainer.train()
    return str(folder / "model_final.pth")


def test_an_interrupted_write_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final")
    good = (tmp_path / "model_final.pth").read_bytes()

    def full_disk(data, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="model_final.pth could not be written.*Make room there .*--resume"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == good
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def test_a_checkpoint_tells_what_it_holds_and_loads_without_unpickling_code(saved):
    description = torch.load(saved, weights_only=True)["soma_det"]
    assert description["version"] == soma_det.__version__
    assert description["adapter"]["NAME"] == "soma" and description["adapter"]["RANK"] == 2
    assert description["classes"] == ["bus", "bike", "car", "motor", "person", "rider", "truck"]


def test_dense_weights_in_an_adapted_model_are_an_error_with_the_remedy(data, tmp_path):
    dense = Trainer.build_model(tiny_cfg(data, tmp_path, MODEL__ADAPTER__NAME="full", MODEL__ADAPTER__RANK=16))
    torch.save({"model": dense.state_dict()}, tmp_path / "dense.pth")
    with pytest.raises(ValueError, match="(?s)dense.*adapted.*Give them as MODEL.VIT.WEIGHTS"):
        load_model(tiny_cfg(data, tmp_path, MODEL__WEIGHTS=str(tmp_path / "dense.pth")))


def test_an_adapted_checkpoint_in_another_model_is_an_error_that_tells_how_it_was_trained(saved, data, tmp_path):
    for changes in (dict(MODEL__ADAPTER__NAME="full", MODEL__ADAPTER__RANK=16), dict(MODEL__ADAPTER__RANK=3)):
        with pytest.raises(ValueError, match="another model.*MODEL.ADAPTER.NAME soma for the classes bus, bike"):
            load_model(tiny_cfg(data, tmp_path, MODEL__WEIGHTS=saved, **changes))


def test_a_missing_weight_of_the_pyramid_is_an_error(saved, data, tmp_path):
    checkpoint = torch.load(saved, weights_only=True)
    name = next(name for name in checkpoint["model"] if name.startswith("backbone.simfp_2."))
    del checkpoint["model"][name], checkpoint["soma_det"]
    torch.save(checkpoint, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=f"1 weights are missing.*{name}.*Use the config it was trained with"):
        load_model(tiny_cfg(data, tmp_path, MODEL__WEIGHTS=str(tmp_path / "partial.pth")))


class Map(Backbone):
    """The last map of a ViT with 16 channels."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(2, 2)

    def forward(self, x):
        return {"last": x}

    def output_shape(self):
        return {"last": ShapeSpec(channels=16, stride=16)}


def old_lateral(channels):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 1, bias=False), LayerNorm2d(8), nn.Conv2d(8, 8, 3, bias=False), LayerNorm2d(8)
    )


def old_simple_pyramid():
    """As in version 0.1."""
    enlarge = nn.ConvTranspose2d(16, 8, 2, 2), LayerNorm2d(8), nn.GELU(), nn.ConvTranspose2d(8, 4, 2, 2)
    p3 = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, 2), old_lateral(8))
    p5 = nn.Sequential(nn.MaxPool2d(2), old_lateral(16))
    return nn.ModuleDict({"p2": nn.Sequential(*enlarge, old_lateral(4)), "p3": p3, "p4": old_lateral(16), "p5": p5})


def old_state(pyramid):
    backbone = nn.ModuleDict({"vit": Map(), "pyramid": pyramid})
    return nn.ModuleDict({"backbone": backbone, "roi_heads": nn.Linear(1, 1)}).state_dict()


def test_an_old_simple_pyramid_loads_into_detectron2s():
    old = old_state(old_simple_pyramid())
    backbone = SimpleFeaturePyramid(Map(), "last", 8, [4.0, 2.0, 1.0, 0.5])
    new = nn.ModuleDict({"backbone": backbone, "roi_heads": nn.Linear(1, 1)}).state_dict()
    converted = convert_old_names(old)
    assert {name: tensor.shape for name, tensor in converted.items()} == {name: t.shape for name, t in new.items()}
    for before, after in (
        ("backbone.vit.model.weight", "backbone.net.model.weight"),
        ("backbone.pyramid.p2.3.bias", "backbone.simfp_2.3.bias"),
        ("backbone.pyramid.p2.4.1.bias", "backbone.simfp_2.4.norm.bias"),
        ("backbone.pyramid.p3.1.2.weight", "backbone.simfp_3.2.weight"),
        ("backbone.pyramid.p4.3.weight", "backbone.simfp_4.1.norm.weight"),
        ("backbone.pyramid.p5.1.0.weight", "backbone.simfp_5.1.weight"),
        ("roi_heads.weight", "roi_heads.weight"),
    ):
        assert converted[after] is old[before]


def test_an_old_pyramid_of_several_blocks_keeps_its_layers():
    old = old_state(nn.ModuleDict({level: old_lateral(16) for level in ("p2", "p3", "p4", "p5")}))
    expected = {name.replace("vit.", "net.").replace("pyramid.", "") for name in old}
    assert set(convert_old_names(old)) == expected and "backbone.p2.3.bias" in expected


def test_todays_names_are_left_alone(caplog):
    state = {"backbone.net.model.weight": torch.zeros(1), "backbone.p2.0.weight": torch.zeros(1)}
    assert convert_old_names(state) is state and not caplog.records


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pyth", "weights.pth", "weights.pt", "weights"])
def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_runs(tmp_path, name):
    trace = tmp_path / "code_ran"
    (tmp_path / name).write_bytes(pickle.dumps({"model": Code(trace), "__author__": "somebody"}))
    with pytest.raises(ValueError, match="could execute code|can execute code"):
        AtomicCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / name))
    assert not trace.exists()


def test_code_in_a_checkpoint_of_torchs_own_format_does_not_run(tmp_path, monkeypatch):
    trace = tmp_path / "code_ran"
    torch.save({"model": {"weight": Code(trace)}}, tmp_path / "weights.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    with pytest.raises(ValueError, match="could execute code"):
        AtomicCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "weights.pth"))
    assert not trace.exists()


def test_a_checkpoint_that_is_cut_short_is_an_error_that_names_it(saved, tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(Path(saved).read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read as a checkpoint"):
        AtomicCheckpointer(nn.Linear(2, 2)).load(str(cut))


@pytest.mark.parametrize("content", [b"", b"c\x80\n", b"PK\x03\x04", b"\x80\x02}q\x00.", b"<html>"])
def test_whatever_is_wrong_with_a_file_it_is_said_to_be_damaged(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="model.pth cannot be read as a checkpoint"):
        load_tensors(path)
