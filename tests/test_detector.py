"""Three lines of Python: what a detector takes, what it gives, and that it is the detector of the run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import train, write_base
from training import tiny_cfg, write_data

from soma_det import Detector
from soma_det.checkpoint.exported import export_detector
from soma_det.engine import load_model
from soma_det.engine.predictor import build_predictor
from soma_det.modeling.backbone.timm_vit import create_timm_vit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, with its config and pretrained weights."""
    folder, data = tmp_path_factory.mktemp("run"), write_data(tmp_path_factory.mktemp("data"))
    base = write_base(tmp_path_factory.mktemp("base") / "vit.safetensors", seed=1)
    weights = train(data, folder, base)
    cfg = tiny_cfg(data, folder, MODEL__VIT__WEIGHTS=base, MODEL__WEIGHTS=weights)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture(scope="module")
def detector(run):
    return Detector(run, device="cpu", confidence_threshold=0.0)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_a_result_is_that_of_the_runs_predictor(run, detector, pixels):
    from soma_det.config import setup_cfg

    cfg = setup_cfg(str(run / "config.yaml"))
    found = build_predictor(cfg)(pixels[:, :, ::-1])
    result = detector(pixels)
    assert len(result) == len(found) > 3
    np.testing.assert_allclose(np.sort(result.scores), np.sort(found.scores.numpy()), rtol=1e-5)
    assert (np.diff(result.scores) <= 0).all()
    assert set(result.class_names) <= set(detector.classes) and len(detector.classes) == 7


def test_a_file_an_array_and_a_pil_image_of_the_same_pixels_give_the_same(detector, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "street.png")
    results = [detector(of) for of in (pixels, Image.fromarray(pixels), tmp_path / "street.png")]
    for result in results[1:]:
        np.testing.assert_array_equal(result.boxes, results[0].boxes)
    assert results[2].path.endswith("street.png") and results[0].path == ""


def test_a_list_and_a_folder_give_lists_in_order(detector, pixels, tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [result.path.rsplit("/", 1)[-1] for result in detector(tmp_path)] == ["a.jpg", "b.png"]
    assert len(detector([pixels, pixels])) == 2


def test_the_threshold_leaves_out_what_is_less_confident(run, detector, pixels):
    everything = detector(pixels).scores
    threshold = float(np.median(everything))
    kept = Detector(run, device="cpu", confidence_threshold=threshold)(pixels).scores
    assert len(kept) == (everything >= threshold).sum() < len(everything)


def test_a_drawing_has_the_asked_width_and_is_not_the_plain_image(detector, pixels):
    drawing = detector(pixels).draw(width=320)
    assert drawing.shape[:2] == (240, 320) and drawing.dtype == np.uint8
    assert len(np.unique(drawing.reshape(-1, 3), axis=0)) > 10


def test_an_exported_detector_finds_the_same(run, detector, pixels, tmp_path):
    from soma_det.config import setup_cfg

    cfg = setup_cfg(str(run / "config.yaml"))
    vit = cfg.MODEL.VIT
    base = create_timm_vit(vit.NAME, vit.WEIGHTS, vit.PATCH_SIZE, vit.IMG_SIZE)
    export_detector(load_model(cfg), tmp_path / "detector.safetensors", base)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    exported = Detector(tmp_path, device="cpu", confidence_threshold=0.0)(pixels)
    np.testing.assert_allclose(exported.scores, detector(pixels).scores, rtol=1e-3, atol=1e-5)


def test_supervision_gets_the_same_boxes(detector, pixels):
    supervision = pytest.importorskip("supervision")
    result = detector(pixels)
    other = result.to_supervision()
    assert isinstance(other, supervision.Detections)
    np.testing.assert_array_equal(other.xyxy, result.boxes)
    assert list(other.data["class_name"]) == result.class_names


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), 7])
def test_what_is_no_image_is_an_error_that_says_what_is_one(detector, wrong):
    with pytest.raises((ValueError, TypeError), match=r"array \(H, W, 3\)|not iterable"):
        detector(wrong)


def test_missing_files_are_named(run, detector, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image .*nowhere\.jpg"):
        detector(tmp_path / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match="no image in"):
        detector(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Detector(tmp_path)
    torch.save({}, tmp_path / "model_final.pth")
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        Detector(tmp_path)
    with pytest.raises(ValueError, match="confidence_threshold is 2"):
        Detector(run, confidence_threshold=2)


def test_the_notebook_runs(run, pixels, tmp_path, monkeypatch):
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    monkeypatch.setenv("SOMA_DET_RUN", str(run))
    monkeypatch.setenv("SOMA_DET_IMAGES", str(tmp_path))
    notebook = json.loads((Path(__file__).parents[1] / "docs" / "detector.ipynb").read_text(encoding="utf-8"))
    space: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    assert len(space["results"]) == 3 and isinstance(space["counts"], dict)
