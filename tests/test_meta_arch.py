"""AdaptedRCNN and AdaptedRetinaNet: Detectron2's detectors with the adapters' losses and the authors' padding."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet, build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from soma_det.config import setup_cfg

TINY = ["MODEL.DEVICE", "cpu", "MODEL.VIT.NAME", "test_vit", "MODEL.VIT.WEIGHTS", "", "MODEL.VIT.IMG_SIZE", [64, 96]]
TINY += ["MODEL.VIT.FROZEN_BLOCKS", 2, "MODEL.ADAPTER.RANK", 2, "MODEL.PYRAMID.OUT_CHANNELS", 16]
TINY += [
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    0.0,
    "INPUT.AUGMENTATION.CROP_SIZE",
    [64, 96],
]
RETINANET = ["MODEL.META_ARCHITECTURE", "AdaptedRetinaNet", "MODEL.RETINANET.NUM_CLASSES", 7]
RETINANET += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
PAD = ["INPUT.PAD_TO_CROP", True]
DETECTORS = pytest.mark.parametrize("detector", [[], RETINANET], ids=["rcnn", "retinanet"])


def build(*opts):
    torch.manual_seed(0)
    return build_model(setup_cfg("configs/Base-SoMA.yaml", [*TINY, *opts]))


def image(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def entry(height, width):
    instances = Instances((height, width))
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[4.0, 4, 40, 40]])), torch.tensor([2])
    return {"image": image(height, width), "instances": instances}


def losses_of(model, *entries):
    with EventStorage(0):
        return model.train()(list(entries))


def test_retinanet_works_with_its_own_features_p3_to_p7():
    model = build(*RETINANET)
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    losses = losses_of(model, entry(64, 96), entry(96, 64))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    unused = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == {"simfp_2"}  # the level that RetinaNet leaves out
    (output,) = model.eval()([{"image": image(64, 96), "height": 64, "width": 96}])
    assert len(output["instances"]) > 0


@DETECTORS
def test_the_losses_of_an_adapter_join_the_detectors(detector):
    losses = losses_of(build("MODEL.ADAPTER.NAME", "moa", "MODEL.ADAPTER.RANK", 16, *detector), entry(64, 96))
    assert losses["loss_moa_balance"] > 0
    assert losses.keys() - {"loss_moa_balance"} == losses_of(build(*detector), entry(64, 96)).keys()


@DETECTORS
def test_small_test_images_are_padded_with_gray_at_the_right_and_the_bottom(detector):
    model, small = build(*PAD, *detector).eval(), image(48, 64)
    images = model.preprocess_image([{"image": small}])
    assert images.tensor.shape == (1, 3, 64, 96) and images.image_sizes == [(48, 64)]
    pixels = images.tensor[0] * model.pixel_std + model.pixel_mean
    torch.testing.assert_close(pixels[:, :48, :64], small.float(), atol=1e-3, rtol=0)
    for padding in (pixels[:, 48:], pixels[:, :, 64:]):
        torch.testing.assert_close(padding, torch.full_like(padding, 114), atol=1e-3, rtol=0)


@DETECTORS
def test_images_larger_than_the_crop_are_padded_as_without_the_key(detector):
    batch = [{"image": image(80, 100)}, {"image": image(96, 128)}]
    padded, plain = (build(*opts, *detector).eval().preprocess_image(batch) for opts in (PAD, []))
    assert torch.equal(padded.tensor, plain.tensor) and padded.image_sizes == plain.image_sizes


@DETECTORS
def test_training_images_are_not_padded_to_the_crop(detector):
    images = build(*PAD, *detector).train().preprocess_image([{"image": image(32, 64)}])
    assert images.tensor.shape == (1, 3, 32, 64)


@pytest.mark.parametrize("detector, parent", [([], GeneralizedRCNN), (RETINANET, RetinaNet)], ids=["rcnn", "retinanet"])
def test_without_the_key_images_are_batched_as_by_detectron2(detector, parent):
    model, batch = build(*detector).eval(), [{"image": image(48, 64)}, {"image": image(40, 90)}]
    ours, theirs = model.preprocess_image(batch), parent.preprocess_image(model, batch)
    assert torch.equal(ours.tensor, theirs.tensor) and ours.image_sizes == theirs.image_sizes


@DETECTORS
@torch.no_grad()
def test_boxes_come_back_in_the_pixels_of_the_original_image(detector):
    model, small = build(*PAD, *detector).eval(), image(48, 64)
    as_seen, original = (
        model([{"image": small, "height": height, "width": width}])[0]["instances"]
        for height, width in ((48, 64), (96, 192))
    )
    assert len(as_seen) > 5 and (as_seen.pred_boxes.tensor[:, 2:] <= torch.tensor([64, 48])).all()
    assert original.image_size == (96, 192)
    factors = torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(original.pred_boxes.tensor, as_seen.pred_boxes.tensor * factors)


@pytest.mark.parametrize("cascade", [[], ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]], ids=["faster", "cascade"])
def test_untrained_heads_give_the_background_the_probability_that_the_prior_says(cascade):
    agnostic = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    model = build("MODEL.ROI_HEADS.BACKGROUND_PRIOR", 0.9, *agnostic, *cascade)
    heads = [m for m in model.roi_heads.modules() if isinstance(m, FastRCNNOutputLayers)]
    assert len(heads) == (3 if cascade else 1)
    for head in heads:
        probabilities = head.cls_score(torch.zeros(1, head.cls_score.in_features)).softmax(1)[0]
        torch.testing.assert_close(probabilities, torch.tensor([0.1 / 7] * 7 + [0.9]))


def test_the_prior_draws_no_random_numbers_and_is_one_bias_of_the_model():
    plain, prior = build().state_dict(), build("MODEL.ROI_HEADS.BACKGROUND_PRIOR", 0.9).state_dict()
    assert [key for key in plain if not plain[key].equal(prior[key])] == ["roi_heads.box_predictor.cls_score.bias"]


@pytest.mark.parametrize("prior", [-0.1, 1.0])
def test_a_prior_that_is_no_probability_below_1_is_an_error(prior):
    with pytest.raises(ValueError, match="BACKGROUND_PRIOR is .*: give a probability below 1"):
        setup_cfg("configs/Base-SoMA.yaml", ["MODEL.ROI_HEADS.BACKGROUND_PRIOR", prior])


def test_a_prior_of_the_softmax_is_refused_with_sigmoids():
    opts = ["MODEL.ROI_HEADS.BACKGROUND_PRIOR", 0.9, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]
    with pytest.raises(ValueError, match="or 0, as with USE_SIGMOID_CE"):
        setup_cfg("configs/Base-SoMA.yaml", opts)
