"""Every config in configs/ loads and builds; wrong keys, types and combinations are explained."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import soma_det.modeling  # noqa: F401  (fills the registries)
from soma_det.config import check_device, setup_cfg

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "comparison")  # those list runs
ON_CPU = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT / "configs")) for path in CONFIGS])
def test_every_config_loads_builds_and_detects(path):
    cfg = setup_cfg(str(path), ON_CPU)
    if path.name.startswith("Base"):
        assert cfg.VERSION == 2
        return
    # As if a checkpoint followed: the same modules without pretrained weights and their decomposition.
    cfg = setup_cfg(str(path), [*ON_CPU, "MODEL.WEIGHTS", "model_final.pth", "MODEL.VIT.IMG_SIZE", "[64, 64]"])
    model = build_model(cfg).eval()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < trainable < sum(p.numel() for p in model.parameters()) or "full" in path.name or "resnet" in path.name
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 64, "width": 64}])
    assert output["instances"].has("pred_boxes")


def test_test_sets_and_source_agree_in_every_config():
    for path in CONFIGS:
        cfg = setup_cfg(str(path), ON_CPU)
        assert not cfg.DATASETS.TEST or cfg.DATASETS.SOURCE_TEST in cfg.DATASETS.TEST, path
        assert not set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST), path


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.ADAPTER.RNAK", "4"], "(?s)command line.*RNAK.*Did you mean MODEL.ADAPTER.RANK"),
        (["SOLVER.MAX_ITER", "many"], "(?s)command line.*Type mismatch.*SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER"], "Overrides come in pairs"),
        (["SOLVER.AMP.DTYPE", "float8"], "SOLVER.AMP.DTYPE is 'float8'"),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], "float16 needs CUDA"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"], "CLIP_TYPE is 'value': set it to 'full_model'"),
        (["DATASETS.SOURCE_TEST", "x_test"], "'x_test', which is not in DATASETS.TEST"),
    ],
)
def test_wrong_settings_on_the_command_line_are_explained(opts, message):
    with pytest.raises(ValueError, match=message):
        setup_cfg(str(ROOT / "configs" / "demo.yaml"), opts)


@pytest.mark.parametrize("text", ["MODEL:\n  VITT:\n    NAME: x\n", "SOLVER:\n  MAX_ITER: [1]\n", "MODEL: [unclosed\n"])
def test_a_wrong_config_file_is_named(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text("VERSION: 2\n" + text)
    with pytest.raises(ValueError, match="Wrong setting in .*mine.yaml"):
        setup_cfg(str(path))


def test_a_shorter_training_leaves_out_the_steps_it_does_not_reach():
    cfg = setup_cfg(str(ROOT / "configs" / "Base-SoMA.yaml"), ["SOLVER.MAX_ITER", "30000", *ON_CPU])
    assert cfg.SOLVER.STEPS == (24000,)


def test_a_gpu_that_is_not_there_is_an_error_with_the_words_to_add(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device(setup_cfg(str(ROOT / "configs" / "demo.yaml")))
    with pytest.raises(ValueError, match="no CUDA device: add MODEL.DEVICE cpu SOLVER.AMP.ENABLED False"):
        check_device(setup_cfg(str(ROOT / "configs" / "diverse_weather" / "faster_rcnn_dinov2_b.yaml")))
