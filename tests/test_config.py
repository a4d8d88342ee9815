"""Every config in configs/ loads and builds; wrong keys, types and combinations are explained."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from safetensors.torch import save_file

from adapter_comparison.structure import build_structure
from soma_det.config import REMOVED, add_soma_config, check_device, setup_cfg
from soma_det.modeling.backbone.timm_vit import count_parameters
from soma_det.modeling.meta_arch.rcnn import Adapted

ROOT = Path(__file__).parents[1]
BASE = str(ROOT / "configs" / "Base-SoMA.yaml")
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
IDS = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
HALVES = ([127.5] * 3, [127.5] * 3)
ON_CPU = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_every_config_builds_a_model_in_part_trained(path):
    if "lw_detr" in path.name:
        pytest.importorskip("transformers")
    model = build_structure(setup_cfg(str(path), ON_CPU))
    trained, total = count_parameters(model, trainable=True), count_parameters(model)
    assert 0 < trained < total or path.name in ("full.yaml", "ibn_resnet.yaml")
    assert isinstance(model, Adapted)


@pytest.mark.parametrize("name", ["demo.yaml", "Base-CPU.yaml", "diverse_weather/cascade_rcnn_dinov2_s.yaml"])
def test_a_config_detects(name):
    # As if a checkpoint followed: the same modules without pretrained weights and their decomposition.
    no_weights = ["MODEL.WEIGHTS", "model_final.pth", "MODEL.VIT.IMG_SIZE", "[64, 64]"]
    model = build_model(setup_cfg(str(ROOT / "configs" / name), [*ON_CPU, *no_weights])).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 64, "width": 64}])
    assert output["instances"].has("pred_boxes")


def test_test_sets_and_source_agree_in_every_config():
    for path in CONFIGS:
        cfg = setup_cfg(str(path), ON_CPU)
        if path.name != "sim10k_to_cityscapes.yaml":  # Sim10k has no test split
            assert not cfg.DATASETS.TEST or cfg.DATASETS.SOURCE_TEST in cfg.DATASETS.TEST, path
        assert not set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST), path


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.ADAPTER.RNAK", "4"], "(?s)command line.*RNAK.*Did you mean MODEL.ADAPTER.RANK"),
        (["SOLVER.MAX_ITER", "many"], "(?s)command line.*Type mismatch.*SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER"], "Overrides come in pairs"),
        (["MODEL.PYRAMID.FINEST_LEVEL", "4"], "MODEL.PYRAMID.FINEST_LEVEL is 4: set 2, or 3"),
        (["MODEL.RPN.IN_FEATURES", "['p2', 'p3']"], "RPN.IN_FEATURES has p2, which .* leaves out"),
        (["SOLVER.AMP.DTYPE", "float8"], "SOLVER.AMP.DTYPE is 'float8'"),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], "float16 needs CUDA"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"], "CLIP_TYPE is 'value': set it to 'full_model'"),
        (["SOLVER.AMP.CPU", "on"], "SOLVER.AMP.CPU is 'on': choose 'auto' or 'off'"),
        (["INPUT.FORMAT", "L"], "INPUT.FORMAT is 'L': choose 'RGB' or 'BGR'"),
        (["TEST.BATCH_SIZE", "0"], "TEST.BATCH_SIZE is 0: .*at least 1"),
        (["MODEL.VIT.PATCH_SIZE", "32"], "PATCH_SIZE is 32"),
        (["MODEL.ADAPTER.NAME", "sorcery"], "(?s)Unknown adapter 'sorcery': set MODEL.ADAPTER.NAME to one of.*soma"),
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


def test_a_removed_key_is_an_error_that_says_what_became_of_it(monkeypatch, tmp_path):
    monkeypatch.setitem(REMOVED, "MODEL.VIT.COLOR", "the ViT sees all colors. Delete the key.")
    path = tmp_path / "mine.yaml"
    path.write_text("VERSION: 2\nMODEL:\n  VIT:\n    COLOR: red\n")
    message = "MODEL.VIT.COLOR was removed: the ViT sees all colors"
    with pytest.raises(ValueError, match=f"Wrong setting in .*mine.yaml: {message}"):
        setup_cfg(str(path))
    with pytest.raises(ValueError, match=f"command line: {message}"):
        setup_cfg(BASE, ["MODEL.VIT.COLOR", "red"])


def test_a_shorter_training_leaves_out_the_steps_it_does_not_reach():
    cfg = setup_cfg(BASE, ["SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(60, 200)", "SOLVER.WARMUP_ITERS", "0", *ON_CPU])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0] * 60 + [0.1] * 40)


@pytest.mark.parametrize(
    "name, weights, expected",
    [
        ("vit_small_patch14_dinov2.lvd142m", "timm", IMAGENET),
        ("vit_tiny_patch16_224", "timm", HALVES),
        ("vit_tiny_patch16_224", "", IMAGENET),
        (
            "vit_base_patch16_clip_224.openai",
            "timm",
            ([122.770938, 116.746013, 104.093736], [68.500533, 66.632158, 70.323163]),
        ),
    ],
)
def test_images_are_normalized_as_in_the_pretraining(name, weights, expected):
    for channels, step in (("RGB", 1), ("BGR", -1)):
        cfg = setup_cfg(BASE, ["MODEL.VIT.NAME", name, "MODEL.VIT.WEIGHTS", weights, "INPUT.FORMAT", channels])
        assert pytest.approx(expected[0][::step], abs=1e-5) == cfg.MODEL.PIXEL_MEAN
        assert pytest.approx(expected[1][::step], abs=1e-5) == cfg.MODEL.PIXEL_STD


def test_the_shipped_weights_say_how_images_were_normalized():
    cfg = setup_cfg(str(ROOT / "configs" / "demo.yaml"))
    assert cfg.MODEL.VIT.NAME == "vit_tiny_patch16_224"
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == IMAGENET


def file_options(path, **statistics):
    """KEY VALUE words for a file of weights that notes pixel statistics, or none."""
    noted = {f"pixel_{key}": str(value) for key, value in statistics.items()}
    save_file({"x": torch.zeros(1)}, str(path), metadata=noted)
    return ["MODEL.VIT.NAME", "vit_tiny_patch16_224", "MODEL.VIT.WEIGHTS", str(path)]


def test_what_a_file_of_weights_says_counts_more_than_timms_config(tmp_path):
    path = tmp_path / "vit.safetensors"
    cfg = setup_cfg(BASE, file_options(path, mean=[1, 2, 3], std=[4, 5, 6]))
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ([1, 2, 3], [4, 5, 6])
    cfg = setup_cfg(BASE, file_options(path))
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == HALVES
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="vit.safetensors is damaged"):
        setup_cfg(BASE, ["MODEL.VIT.WEIGHTS", str(path)])


def test_statistics_that_contradict_the_weights_are_an_error_that_names_both():
    opts = ["MODEL.VIT.NAME", "vit_tiny_patch16_224", "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"]
    with pytest.raises(ValueError, match=r"PIXEL_STD is \[58.395, .*pretrained with \[127.5, .*leave the key out"):
        setup_cfg(BASE, opts)
    assert IMAGENET[0] == setup_cfg(BASE, ["MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"]).MODEL.PIXEL_MEAN
    # Nothing is contradicted where the ViT starts at random, or comes with a checkpoint.
    for free in (["MODEL.VIT.WEIGHTS", ""], ["MODEL.WEIGHTS", "model_final.pth"]):
        assert IMAGENET[1] == setup_cfg(BASE, [*opts, *free]).MODEL.PIXEL_STD


def test_a_checkpoint_without_the_file_that_tells_its_statistics_needs_its_own_config():
    opts = ["MODEL.VIT.WEIGHTS", "missing.safetensors", "MODEL.WEIGHTS", "model_final.pth"]
    with pytest.raises(ValueError, match="'missing.safetensors', which does not exist.*config.yaml.*model_final.pth"):
        setup_cfg(BASE, opts)
    saved = ["MODEL.PIXEL_MEAN", "[1, 2, 3]", "MODEL.PIXEL_STD", "[4, 5, 6]"]
    assert setup_cfg(BASE, [*opts, *saved]).MODEL.PIXEL_MEAN == [1, 2, 3]


def test_a_resnet_needs_statistics_in_the_order_of_its_channels():
    resnet = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    with pytest.raises(ValueError, match="in the order BGR, and INPUT.FORMAT is RGB: set MODEL.PIXEL_MEAN"):
        setup_cfg(BASE, resnet)
    assert setup_cfg(BASE, [*resnet, "INPUT.FORMAT", "BGR"]).MODEL.PIXEL_STD == [1, 1, 1]


def test_a_config_that_setup_cfg_has_not_completed_is_refused_by_the_backbone():
    cfg = get_cfg()
    add_soma_config(cfg)
    cfg.merge_from_file(BASE)
    with pytest.raises(ValueError, match=r"PIXEL_MEAN is \[103.53.*needs \[123.675.*setup_cfg"):
        build_model(cfg)


def test_a_gpu_that_is_not_there_is_an_error_with_the_words_to_add(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device(setup_cfg(str(ROOT / "configs" / "demo.yaml")))
    with pytest.raises(ValueError, match="no CUDA device: add MODEL.DEVICE cpu SOLVER.AMP.ENABLED False"):
        check_device(setup_cfg(str(ROOT / "configs" / "diverse_weather" / "faster_rcnn_dinov2_b.yaml")))
