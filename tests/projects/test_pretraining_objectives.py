"""Targets of pretraining, from images and from objects that come and go, and how the ViT starts."""

import numpy as np
import pytest
import torch

from pretraining.distillation import SelfDistillation
from pretraining.encoder import grid_windows
from pretraining.masked import MaskedAutoencoder
from pretraining.mimetic import _factors, mimetic_init
from pretraining.motion import departed, object_targets
from pretraining.moving import MovingObjects
from pretraining.objectives import hog, normalized_pixels, patchify
from soma_det.modeling.backbone.timm_vit import create_timm_vit

SIZE = (32, 64)  # of the images' grid, pixels


# Targets


def test_patches_come_row_by_row_with_all_their_pixels():
    image = torch.arange(2 * 4 * 6, dtype=torch.float32).view(1, 2, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 8)
    assert patches[0, 1].tolist() == image[0, :, 0:2, 2:4].flatten().tolist()
    assert patches[0, 3].tolist() == image[0, :, 2:4, 0:2].flatten().tolist()


def test_normalized_pixels_do_not_depend_on_brightness_and_contrast():
    image = torch.rand(2, 3, 32, 32)
    target = normalized_pixels(image, 16)
    torch.testing.assert_close(normalized_pixels(0.3 * image + 0.5, 16), target, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("turned, orientation", [(False, 0), (True, 4)])
def test_hog_of_a_ramp_is_in_the_bin_of_its_direction(turned, orientation):
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)  # brighter to the right: 0 degrees; turned: 90, in bin 4 of 9
    histograms = hog(ramp.transpose(2, 3) if turned else ramp, 16).view(4, 9, 4)
    assert (histograms.argmax(dim=1) == orientation).all()
    # The only nonzero bin of 4 cells in 36 numbers of mean square 1: (4 x^2) / 36 = 1, but for the image's border.
    torch.testing.assert_close(histograms[1 if turned else 2].square().mean(), torch.tensor(1.0))
    assert histograms[:, [k for k in range(9) if k != orientation]].abs().max() < 1e-6


def test_hog_of_an_even_image_is_nothing():
    assert hog(torch.full((1, 3, 32, 32), 0.7), 16).abs().max() == 0.0


def test_a_window_of_the_grid_lies_where_the_crop_does():
    corners = torch.tensor([[0.0, 0.0], [0.999, 0.999]])
    first, last = grid_windows((3, 4), (2, 2), corners)
    assert first.tolist() == [0, 1, 4, 5]
    assert last.tolist() == [6, 7, 10, 11]


# The autoencoder


def test_hidden_patches_do_not_reach_the_prediction():
    torch.manual_seed(0)
    model = MaskedAutoencoder(create_timm_vit("test_vit", "", 16, SIZE), "pixels", 0.5, width=16, depth=1).eval()
    image = 255 * torch.rand(1, 3, 32, 64)
    window, seen = model.windows(image, torch.zeros(1, 2)), torch.arange(4)[None]  # of 8, the upper row
    changed = image.clone()
    changed[:, :, 16:] = 0.0
    assert torch.equal(model.encode(image, window, seen), model.encode(changed, window, seen))
    changed[:, :, :16] = 0.0
    assert not torch.equal(model.encode(image, window, seen), model.encode(changed, window, seen))


def distillation(**options) -> SelfDistillation:
    torch.manual_seed(0)
    return SelfDistillation(create_timm_vit("test_vit", "", 16, SIZE), 0.5, width=16, depth=1, **options)


def test_the_teacher_follows_the_vit_as_worked_out_by_hand():
    model = distillation(momentum=0.8)
    model.teacher.norm.bias.data.fill_(1.0)
    model.vit.norm.bias.data.fill_(2.0)
    for progress, expected in ((0.0, 1.2), (0.5, 1.28), (1.0, 1.28)):  # of the way that is left 20, 10 and 0 percent
        model.after_step(progress)
        torch.testing.assert_close(model.teacher.norm.bias, torch.full_like(model.vit.norm.bias, expected))


def test_the_teacher_sees_all_patches_and_gets_no_gradient():
    model = distillation().train()
    image = 255 * torch.rand(1, 3, *SIZE)
    window = model.windows(image, torch.zeros(1, 2))
    features = model.targets(image, window)
    torch.testing.assert_close(features.mean(1), torch.zeros(1, features.shape[2]), atol=1e-5, rtol=0)
    changed = image.clone()
    changed[:, :, 16:] = 0.0  # the lower row of patches
    assert not torch.allclose(features[:, :4], model.targets(changed, window)[:, :4])
    model(image, torch.zeros(1, 2), torch.rand(8))["loss_masked"].backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert model.vit.patch_embed.proj.weight.grad.abs().max() > 0


def test_the_encoder_is_the_vit_itself():
    model = MovingObjects(create_timm_vit("test_vit", "", 16, SIZE)).eval()
    image = 255 * torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        encoded = model.encode(image, model.windows(image, torch.zeros(2, 2)))
        normalized = (image - torch.tensor([[123.675, 116.28, 103.53]]).view(3, 1, 1)) / torch.tensor(
            [[58.395, 57.12, 57.375]]
        ).view(3, 1, 1)
        expected = model.vit.forward_features(normalized)[:, model.vit.num_prefix_tokens :]
        torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=1e-5)


# Objects that come and go


def place(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A gray image 32 x 64 with a white rectangle in each XYXY box."""
    image = np.full((32, 64, 3), 90, np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 255
    return image


def test_what_departed_is_found_with_its_box():
    left, right = (8, 8, 24, 20), (40, 4, 52, 28)
    ((box, mask),) = departed(place(left, right), place(right))
    assert np.abs(np.subtract(box, left)).max() <= 1  # the images are smoothed a little
    assert mask.mean() > 0.95  # without its corners
    assert not list(departed(place(left), place(left)))
    assert not list(departed(place((8, 8, 11, 11)), place()))  # too small to be more than noise


def test_objects_that_touch_are_told_apart_when_they_leave_one_by_one():
    near, far = (8, 8, 24, 24), (24, 8, 40, 24)
    both, one, none = place(near, far), place(far), place()
    assert len(list(departed(both, none))) == 1
    assert len([*departed(both, one), *departed(one, none)]) == 2


def test_targets_of_one_object_are_as_worked_out_by_hand():
    """A rectangle over the whole second patch of the upper row and half of the third, in patches of 16 pixels."""
    targets = object_targets([place((16, 0, 40, 16)), place()], 16)
    assert targets["covered"].tolist() == [False, True, True, False, False, False, False, False]
    cover = targets["cover"].reshape(8, 4, 4)
    np.testing.assert_allclose(cover[1], 1.0)
    np.testing.assert_allclose(cover[2], [[1, 1, 0.25, 0]] * 4)  # smoothing moves the border by one pixel
    assert cover[3:].max() <= 0.25
    # The box is 15..41 x 0..17 with the pixel that smoothing adds; the center of patch 2 lies at (40, 8).
    signs = np.log1p(np.array([25, 8, 1, 9]) / 8)
    np.testing.assert_allclose(targets["extent"][2], signs, rtol=1e-6)
    assert targets["portrait"].shape == (2, 32, 32) and targets["portrait"].mean() > 200


def test_a_patch_outside_its_objects_box_has_a_negative_distance():
    targets = object_targets([place((2, 2, 6, 30)), place()], 16)
    assert targets["covered"][0]
    left, top, right, bottom = targets["extent"][0]
    assert left > 0 and right < 0 and top > 0 and bottom > 0  # the center, x = 8, is right of the object


def test_an_empty_street_gives_finite_losses():
    model = MovingObjects(create_timm_vit("test_vit", "", 16, SIZE))
    targets = {n: torch.from_numpy(a) for n, a in object_targets([place(), place()], 16).items()}
    losses = model(torch.zeros(1, 3, 32, 64), torch.zeros(1, 2), **targets)
    assert losses["loss_extent"] == losses["loss_portrait"] == 0 < losses["loss_cover"]


# The start of attention


def test_mimetic_attention_starts_at_similar_tokens_and_away_from_the_value():
    """W_q W_k^T has a positive diagonal in every head; W_v W_proj one of about -0.4, whose deviation is 0.4 / width."""
    vit = create_timm_vit("vit_tiny_patch16_224", "", 16, (32, 32))
    mimetic_init(vit.blocks[:1])
    attention, width = vit.blocks[0].attn, 192
    query, key, value = attention.qkv.weight.split(width)
    for start in range(0, width, 64):
        assert (query[start : start + 64].T @ key[start : start + 64]).diagonal().mean() > 0.1
    diagonal = (value.T @ attention.proj.weight.T).diagonal().mean().item()
    assert diagonal == pytest.approx(-0.4, abs=5 * 0.4 / width)


def test_factors_are_the_best_of_their_rank():
    product = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    for rank, expected in ((2, [[3.0, 0.0], [0.0, 2.0]]), (1, [[3.0, 0.0], [0.0, 0.0]])):
        a, b = _factors(product, rank)
        assert a.shape == b.shape == (rank, 2)
        torch.testing.assert_close(a.T @ b, torch.tensor(expected))


@pytest.mark.parametrize("options", [{"target": "depth"}, {"target": "hog", "mask_ratio": 1.0}])
def test_a_wrong_objective_is_an_error(options):
    with pytest.raises(ValueError):
        MaskedAutoencoder(create_timm_vit("test_vit", "", 16, SIZE), **options)


def test_a_momentum_outside_its_limits_is_an_error():
    with pytest.raises(ValueError, match="1.5"):
        distillation(momentum=1.5)


def test_a_vit_without_position_embeddings_is_an_error():
    vit = create_timm_vit("test_vit", "", 16, SIZE)
    vit.pos_embed = None
    with pytest.raises(ValueError, match="position embeddings"):
        MaskedAutoencoder(vit, "hog")
