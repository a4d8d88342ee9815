"""LW-DETR on this project's backbones: packing, padding, losses, boxes, training and checkpoints."""

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from test_export import train, write_base
from training import tiny_cfg, vit_of, write_data

pytest.importorskip("transformers")
pytest.importorskip("scipy")

from soma_det.adapters import find_adapter_layers
from soma_det.checkpoint.exported import export_detector
from soma_det.engine import Trainer, load_model
from soma_det.engine.inference import merged_for_inference
from soma_det.modeling.backbone.timm_vit import create_timm_vit
from soma_det.modeling.meta_arch import lw_detr
from soma_det.modeling.meta_arch.lw_detr import PackedFeatures, image_mask, pack_features, to_labels

SMALL = dict(
    MODEL__META_ARCHITECTURE="AdaptedLwDETR",
    MODEL__PYRAMID__OUT_CHANNELS=16,
    MODEL__DETR__NUM_QUERIES=20,
    MODEL__DETR__GROUPS=2,
    MODEL__DETR__DECODER_LAYERS=2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def cfg_of(data, output, **changes):
    return tiny_cfg(data, output, **{**SMALL, **changes})


@pytest.fixture
def model(data, tmp_path):
    return Trainer.build_model(cfg_of(data, tmp_path))


def image(height=48, width=64, **more):
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": pixels, "height": height, "width": width, **more}


def ground_truth(height=48, width=64, boxes=((8.0, 8.0, 40.0, 32.0),)):
    truth = Instances((height, width))
    truth.gt_boxes, truth.gt_classes = Boxes(torch.tensor(boxes).reshape(-1, 4)), torch.zeros(len(boxes)).long()
    return truth


def test_packed_maps_come_out_as_they_went_in():
    maps = [torch.randn(2, 16, 8, 12), torch.randn(2, 16, 4, 6)]
    out = PackedFeatures([8, 16])(pack_features(maps), torch.ones(2, 64, 96))
    assert all(torch.equal(after, before) for (after, _), before in zip(out, maps, strict=True))
    assert all(mask.all() for _, mask in out)


def test_the_mask_is_1_on_each_image_and_0_on_its_padding():
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (32, 48)])
    mask = image_mask(images)
    assert mask[0].all() and mask[1].sum() == 32 * 48 and mask[1, :32, :48].all()
    ((_, coarse),) = PackedFeatures([16])(torch.zeros(2, 16, 1, 24), mask)
    assert coarse[1].sum() == 2 * 3


def test_labels_are_centers_and_extents_relative_to_the_image_without_padding():
    labels = to_labels(ground_truth(40, 80, ((8.0, 10.0, 40.0, 30.0),)), (40, 80))
    assert labels["boxes"].tolist() == [pytest.approx([0.3, 0.5, 0.4, 0.5])]  # 24/80, 20/40, 32/80, 20/40


def test_the_logged_losses_add_up_to_the_one_of_transformers(model, monkeypatch):
    kept, head = {}, model.head.forward

    def forward(*args, **kwargs):
        kept["out"] = head(*args, **kwargs)
        return kept["out"]

    monkeypatch.setattr(model.head, "forward", forward)
    losses = model.train()([image(instances=ground_truth())])
    assert set(losses) == {"loss_cls", "loss_box_l1", "loss_box_giou"}
    torch.testing.assert_close(sum(losses.values()), kept["out"].loss)


def test_an_image_without_boxes_gives_finite_losses_and_gradients(model):
    losses = model.train()([image(instances=ground_truth()), image(instances=ground_truth(boxes=()))])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Levels of the pyramid that the head does not take have no gradient; all else has.
    without = {name for name, p in trained.items() if p.grad is None}
    assert not {name for name in without if not name.startswith("backbone.simfp_2.")}
    assert all(torch.isfinite(p.grad).all() for p in trained.values() if p.grad is not None)


@torch.no_grad()
def test_what_lies_in_the_padding_changes_no_output_of_the_head(model):
    mask = image_mask(ImageList(torch.zeros(1, 3, 64, 96), [(32, 64)]))
    clean = [torch.randn(1, 16, 8, 12), torch.randn(1, 16, 4, 6), torch.randn(1, 16, 2, 3)]
    dirty = [features.clone() for features in clean]
    for features, stride in zip(dirty, (8, 16, 32), strict=True):
        features[:, :, 32 // stride :] = 9.0
        features[:, :, :, 64 // stride :] = -9.0
    outputs = [model.eval().head(pack_features(maps), pixel_mask=mask) for maps in (clean, dirty)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    torch.testing.assert_close(outputs[0].pred_boxes, outputs[1].pred_boxes)


@torch.no_grad()
def test_detections_are_in_pixels_of_the_file_and_sorted_by_confidence(model):
    entry = image(48, 64) | {"height": 480, "width": 640}
    found = model.eval()([entry])[0]["instances"]
    assert found.image_size == (480, 640)
    assert (found.scores.diff() <= 0).all() and found.pred_classes.max() < 7
    assert found.pred_boxes.tensor[:, 2].max() > 64


def test_a_box_that_the_head_predicts_comes_out_where_it_is(model):
    logits = torch.full((20, 7), -9.0)
    logits[3, 5] = 4.0
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25]]).repeat(20, 1)
    best = model._detections(logits, boxes, (40, 80), {"height": 80, "width": 160})[0]
    assert best.pred_classes.item() == 5
    assert best.pred_boxes.tensor[0].tolist() == pytest.approx([40, 30, 120, 50])


@torch.no_grad()
def test_merging_the_adapter_changes_no_detection(model):
    for parameter in model.backbone.parameters():
        if parameter.requires_grad:
            parameter.add_(0.02 * torch.randn_like(parameter))
    entry = image()
    adapted = model.eval()([entry])[0]["instances"]
    with merged_for_inference(model) as merged:
        assert not find_adapter_layers(merged)
        plain = merged([entry])[0]["instances"]
    torch.testing.assert_close(plain.pred_boxes.tensor, adapted.pred_boxes.tensor, rtol=1e-3, atol=1e-2)


def test_training_moves_adapter_and_head_alone_and_its_checkpoint_evaluates(data, tmp_path):
    cfg = cfg_of(data, tmp_path)
    trainer = Trainer(cfg)
    _, vit = vit_of(trainer.model)
    before = {name: tensor.clone() for name, tensor in vit.model.blocks[0].state_dict().items()}
    trainer.train()
    assert all(torch.equal(t, before[name]) for name, t in vit.model.blocks[0].state_dict().items())
    loaded = load_model(cfg_of(data, tmp_path, MODEL__WEIGHTS=str(tmp_path / "model_final.pth")))
    results = Trainer.test(cfg, loaded)
    assert set(results) == {"tiny_daytime_clear_test", "tiny_night_sunny_test"}


def test_wrong_settings_are_errors_that_name_the_key(data, tmp_path):
    with pytest.raises(ValueError, match=r"MODEL\.DETR\.IN_FEATURES has \['p9'\]"):
        Trainer.build_model(cfg_of(data, tmp_path, MODEL__DETR__IN_FEATURES=["p9"]))
    with pytest.raises(ValueError, match=r"MODEL\.PYRAMID\.OUT_CHANNELS is 24"):
        Trainer.build_model(cfg_of(data, tmp_path, MODEL__PYRAMID__OUT_CHANNELS=24))
    with pytest.raises(ValueError, match=r"MODEL\.DETR\.NUM_CLASSES is 3"):
        cfg_of(data, tmp_path, MODEL__DETR__NUM_CLASSES=3)


def test_without_transformers_the_error_names_the_extra(data, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"soma_det\[detr\]"):
        Trainer.build_model(cfg_of(data, tmp_path))


def test_the_head_is_in_full_precision_under_autocast(model, monkeypatch):
    seen = []
    monkeypatch.setattr(lw_detr, "pack_features", lambda maps: seen.append(maps[0].dtype) or pack_features(maps))
    model.head.class_embed.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([image(instances=ground_truth())])
    assert set(seen) == {torch.float32} and all(loss.dtype == torch.float32 for loss in losses.values())


def test_an_exported_detector_finds_what_its_checkpoint_does(data, tmp_path):
    """Adapter and head alone, in one file, on the pretrained weights."""
    base = write_base(tmp_path / "vit.safetensors", seed=1)
    weights = train(data, tmp_path, base, **SMALL)
    path = str(tmp_path / "detector.safetensors")
    cfg = cfg_of(data, tmp_path, MODEL__VIT__WEIGHTS=base, MODEL__WEIGHTS=weights)
    vit = cfg.MODEL.VIT
    export_detector(load_model(cfg), path, create_timm_vit(vit.NAME, base, vit.PATCH_SIZE, vit.IMG_SIZE))
    exported = load_model(cfg_of(data, tmp_path, MODEL__VIT__WEIGHTS=base, MODEL__WEIGHTS=path))
    entry = image()
    with torch.no_grad():
        before, after = (m([entry])[0]["instances"] for m in (load_model(cfg), exported))
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-4, atol=1e-5)
