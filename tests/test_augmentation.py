"""Augmentations: where boxes and colors go."""

import colorsys

import numpy as np
import pytest
from detectron2.data import transforms as T

import soma_det  # noqa: F401
from soma_det.data.transforms.augmentation import build_test_augmentation, build_train_augmentation
from soma_det.data.transforms.photometric import PhotometricDistortion, PhotometricTransform

RECIPE = dict(scale_range=(0.1, 2.0), crop_size=(64, 80), photometric=True, flip=True)


@pytest.fixture(autouse=True)
def _same_numbers():
    np.random.seed(0)


def random_image(height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def augment(augmentations, image, box):
    """The augmented image and box, not clipped to the image."""
    inputs = T.AugInput(image, boxes=np.array([box], dtype=np.float64))
    T.AugmentationList(augmentations)(inputs)
    return inputs.image, inputs.boxes[0]


def fixed_colors(**change):
    return PhotometricTransform(
        **{**dict(brightness=0, contrast=1, saturation=1, hue=0, contrast_first=True, channels=[0, 1, 2]), **change}
    )


def pixel(rgb, **change):
    return fixed_colors(**change).apply_image(np.array([[rgb]], dtype=np.uint8))[0, 0].tolist()


def close(levels):
    return pytest.approx(levels, abs=1e-3)


@pytest.mark.parametrize("height, width", [(48, 64), (300, 200), (20, 500), (64, 80)])
def test_every_training_image_has_the_size_of_the_crop(height, width):
    for _ in range(20):
        image, _ = augment(build_train_augmentation(**RECIPE), random_image(height, width), (1, 1, 9, 9))
        assert image.shape == (64, 80, 3) and image.dtype == np.float32


def test_a_box_stays_on_its_object_under_resize_crop_and_flip():
    # A white square on black: wherever its box ends, the white pixels are those inside.
    image = np.zeros((96, 128, 3), dtype=np.uint8)
    image[32:64, 48:80] = 255
    recipe = {**RECIPE, "photometric": False, "scale_range": (0.5, 2.0), "crop_size": (96, 128)}
    seen = 0
    for _ in range(50):
        out, box = augment(build_train_augmentation(**recipe), image, (48, 32, 80, 64))
        rows, columns = np.nonzero(out[:, :, 0] == 255)
        x0, y0, x1, y1 = box.clip(0, [128, 96, 128, 96])
        if x1 - x0 > 8 and y1 - y0 > 8:
            seen += 1
            found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(found, (x0, y0, x1, y1), atol=2.5)  # resizing blurs the white edge
    assert seen > 30


def test_a_flip_mirrors_boxes_as_worked_out_by_hand():
    # 64 pixels wide: x0 = 64 - 30 = 34, x1 = 64 - 10 = 54; y stays.
    flip = T.RandomFlip(prob=1.0)
    image, box = augment([flip], random_image(), (10, 5, 30, 20))
    assert box.tolist() == [34, 5, 54, 20]
    assert np.array_equal(image, random_image()[:, ::-1])


def test_the_smallest_scale_shrinks_the_image_to_a_tenth_of_the_crop_and_pads_with_gray():
    recipe = dict(scale_range=(0.1, 0.1), crop_size=(320, 640), photometric=False, flip=False)
    image, box = augment(build_train_augmentation(**recipe), random_image(320, 640), (0, 0, 640, 320))
    assert box.tolist() == [0, 0, 64, 32]
    padding = np.ones((320, 640), dtype=bool)
    padding[:32, :64] = False
    assert (image[padding] == 114).all()


def test_colors_are_distorted_after_padding_so_the_padding_changes_too():
    recipe = dict(scale_range=(0.5, 0.5), crop_size=(32, 64), photometric=True, flip=False)
    augmentations = build_train_augmentation(**recipe)
    padding = [augment(augmentations, random_image(32, 64), (0, 0, 64, 32))[0][20:, 40:] for _ in range(40)]
    assert all(np.ptp(one, axis=(0, 1)).max() < 1e-3 for one in padding)
    levels = [one[0, 0, 0] for one in padding]
    assert any(level == pytest.approx(114, abs=1e-3) for level in levels) and np.std(levels) > 10


def test_the_crop_moves_freely_along_both_sides():
    recipe = dict(scale_range=(2.0, 2.0), crop_size=(32, 32), photometric=False, flip=False)
    augmentations = build_train_augmentation(**recipe)
    corners = [augment(augmentations, random_image(32, 32), (0, 0, 32, 32))[1][:2] for _ in range(300)]
    corners = np.array(corners)
    assert corners.min() == -32 and corners.max() == 0
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.2


@pytest.mark.parametrize("key", ["photometric", "flip"])
def test_what_is_switched_off_is_not_in_the_recipe(key):
    off = build_train_augmentation(**{**RECIPE, "photometric": False, "flip": False})
    on = build_train_augmentation(**{**RECIPE, "photometric": False, "flip": False, key: True})
    assert len(on) == len(off) + 1


@pytest.mark.parametrize("scale_range", [(0, 1), (-1, 1), (2, 1), (1,)])
def test_a_wrong_scale_range_is_an_error(scale_range):
    with pytest.raises(ValueError, match="SCALE_RANGE"):
        build_train_augmentation(**{**RECIPE, "scale_range": scale_range})


@pytest.mark.parametrize("crop_size", [(0, 64), (64,)])
def test_a_wrong_crop_size_is_an_error(crop_size):
    with pytest.raises(ValueError, match="CROP_SIZE"):
        build_train_augmentation(**{**RECIPE, "crop_size": crop_size})


@pytest.mark.parametrize("size, shape", [((24, 100), (24, 32, 3)), ((96, 96), (72, 96, 3)), ((0, 0), (48, 64, 3))])
def test_images_for_evaluation_are_resized_by_their_sides(size, shape):
    image, _ = augment(build_test_augmentation(min_size=size[0], max_size=size[1]), random_image(), (0, 0, 64, 48))
    assert image.shape == shape


@pytest.mark.parametrize("sizes", [(800, 600), (-1, 600)])
def test_wrong_sizes_for_evaluation_are_an_error(sizes):
    with pytest.raises(ValueError, match="MIN_SIZE_TEST"):
        build_test_augmentation(min_size=sizes[0], max_size=sizes[1])


@pytest.mark.parametrize("hue", [0, 360])
def test_neutral_color_changes_leave_every_pixel(hue):
    np.testing.assert_allclose(fixed_colors(hue=hue).apply_image(random_image()), random_image(), atol=1e-3)


def test_brightness_adds_and_contrast_multiplies_without_clipping():
    assert pixel((0, 100, 250), brightness=10) == close([10, 110, 260])
    assert pixel((0, 100, 250), brightness=-10) == close([-10, 90, 240])
    assert pixel((0, 100, 250), contrast=1.5) == close([0, 150, 375])


@pytest.mark.parametrize("contrast_first", [True, False])
def test_contrast_before_the_colors_equals_contrast_after_them_as_nothing_is_clipped(contrast_first):
    # Brightness 100: (200, 100, 100); turned by 120 degrees: (100, 200, 100); halved: (50, 100, 50).
    change = dict(brightness=100, contrast=0.5, hue=120, contrast_first=contrast_first)
    assert pixel((100, 0, 0), **change) == close([50, 100, 50])


def test_saturation_is_limited_to_1_only_where_it_grows_as_in_mmdet():
    # Brightness -20: (100, -20, 60), of saturation 120 / 100 = 1.2. The third channel loses a third of it.
    assert pixel((120, 0, 80), brightness=-20) == close([100, -20, 60])
    assert pixel((120, 0, 80), brightness=-20, saturation=1.5) == close([100, 0, 100 * (1 - 1 / 3)])
    assert pixel((120, 0, 80), brightness=-20, saturation=0.5) == close([100, 40, 100 * (1 - 0.6 / 3)])


def test_three_negative_channels_are_mirrored_at_the_largest_as_in_mmdet():
    assert pixel((15, 0, 0), brightness=-20) == close([-5, 10, 10])


@pytest.mark.parametrize("hue, saturation", [(18, 1.0), (-18, 1.0), (0, 0.5), (0, 1.5), (-7.5, 1.3)])
def test_hue_and_saturation_follow_their_definition(hue, saturation):
    for rgb in ((200, 30, 60), (10, 250, 90), (70, 70, 75), (0, 0, 255), (128, 128, 128)):
        h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in rgb))
        expected = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(s * saturation, 1), v)
        assert pixel(rgb, hue=hue, saturation=saturation) == close([255 * level for level in expected])


def test_channels_come_out_in_the_drawn_order():
    assert pixel((1, 2, 3), channels=[2, 0, 1]) == close([3, 1, 2])


def test_colors_move_no_box():
    box = np.array([[10.0, 5.0, 30.0, 20.0]])
    assert np.array_equal(PhotometricDistortion().get_transform(random_image()).apply_box(box), box)


def test_each_color_change_happens_to_about_half_of_the_images():
    drawn = [PhotometricDistortion().get_transform(random_image()) for _ in range(400)]
    for name, rest in (("brightness", 0), ("contrast", 1), ("saturation", 1), ("hue", 0)):
        share = np.mean([getattr(transform, name) != rest for transform in drawn])
        assert 0.4 < share < 0.6, name
    assert all(abs(t.brightness) <= 32 and abs(t.hue) <= 18 and 0.5 <= t.contrast <= 1.5 for t in drawn)
