"""Simulated weather and mixed Fourier amplitudes in training: shares, limits, labels, and the stream's seed."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image
from training import tiny_cfg, write_data

from soma_det.data.build import build_train_loader
from soma_det.data.transforms.fourier import FourierMixing, mix_amplitudes
from soma_det.data.transforms.simulated_weather import SimulatedWeather


@pytest.fixture(autouse=True)
def _same_numbers():
    np.random.seed(0)


def random_image(seed=0, height=48, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def augment(augmentation, image, box=(10, 5, 30, 20)):
    inputs = T.AugInput(image.copy(), boxes=np.array([box], dtype=np.float64))
    augmentation(inputs)
    return inputs.image, inputs.boxes[0].tolist()


def test_weather_changes_its_share_of_the_images_and_no_box():
    image, changed = random_image(), 0
    for _ in range(60):
        out, box = augment(SimulatedWeather(0.5), image)
        assert out.shape == image.shape and out.dtype == np.uint8 and box == [10, 5, 30, 20]
        changed += not np.array_equal(out, image)
    assert 15 < changed < 45


def test_night_makes_images_darker_and_fog_makes_them_flatter():
    image = random_image()
    night, fog = (
        np.stack([augment(SimulatedWeather(1.0, [domain]), image)[0] for _ in range(20)])
        for domain in ("night_sunny", "daytime_foggy")
    )
    assert night.mean() < 0.6 * image.mean()
    assert fog.std(axis=(1, 2, 3)).mean() < 0.6 * image.std()


@pytest.mark.parametrize("probability, domains", [(1.5, ["night_sunny"]), (0.5, ["snow"]), (0.5, [])])
def test_wrong_weather_is_an_error_that_names_the_key(probability, domains):
    with pytest.raises(ValueError, match=r"INPUT\.AUGMENTATION\.WEATHER"):
        SimulatedWeather(probability, domains)


def test_mixing_by_nothing_changes_nothing():
    assert np.array_equal(mix_amplitudes(random_image(0), random_image(1), 0.0), random_image(0))


def test_mixing_with_itself_changes_nothing():
    assert np.array_equal(mix_amplitudes(random_image(0), random_image(0), 0.7), random_image(0))


def test_a_mixed_image_has_the_amplitudes_between_both_and_its_own_phase():
    # Low contrast, so that no gray level is clipped.
    image, other = (100 + random_image(seed) // 8 for seed in (0, 1))
    spectra = [np.fft.rfft2(x.astype(float), axes=(0, 1)) for x in (image, other, mix_amplitudes(image, other, 0.25))]
    expected = 0.75 * abs(spectra[0]) + 0.25 * abs(spectra[1])
    assert np.abs(abs(spectra[2]) - expected).mean() < 0.02 * expected.mean()  # gray levels are rounded
    strong = expected > 300
    assert strong.sum() > 50 and np.abs(np.angle(spectra[2] / spectra[0])[strong]).max() < 0.3


def test_the_mean_of_a_flat_image_moves_by_the_share():
    # Only the mean of a flat image has an amplitude: 100 + 0.5 (200 - 100) = 150.
    flat, other = np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 200, np.uint8)
    assert np.array_equal(mix_amplitudes(flat, other, 0.5), np.full((8, 8, 3), 150, np.uint8))


def test_the_other_image_is_brought_to_the_size_of_this_one(tmp_path):
    Image.fromarray(random_image(1, 30, 90)).save(tmp_path / "other.png")
    out, box = augment(FourierMixing(1.0, 1.0, [str(tmp_path / "other.png")]), random_image())
    assert out.shape == (48, 64, 3) and out.dtype == np.uint8 and box == [10, 5, 30, 20]
    assert not np.array_equal(out, random_image())


@pytest.mark.parametrize("probability, strength", [(-0.1, 0.5), (0.5, 2.0)])
def test_a_wrong_mixture_is_an_error_that_names_the_key(probability, strength):
    with pytest.raises(ValueError, match=r"INPUT\.AUGMENTATION\.FOURIER"):
        FourierMixing(probability, strength, ["a.png"])


def flat(batches):
    return [sample for batch in batches for sample in batch]


def stream(data, output, start=0, **changes):
    cfg = tiny_cfg(data, output, DATASETS__TEST=[], DATASETS__SOURCE_TEST="", **changes)
    loader = build_train_loader(cfg)
    loader.start_iteration = start
    batches = iter(loader)
    return [next(batches) for _ in range(4)]


def test_the_stream_of_changed_images_follows_from_its_position_alone(tmp_path):
    data = write_data(tmp_path / "data")
    changes = dict(INPUT__AUGMENTATION__WEATHER__PROBABILITY=0.5, INPUT__AUGMENTATION__FOURIER__PROBABILITY=0.5)
    whole, late = stream(data, tmp_path, **changes), stream(data, tmp_path, start=2, **changes)
    for one, other in zip(whole[2:], late[:2], strict=True):
        assert all((a["image"] == b["image"]).all() for a, b in zip(one, other, strict=True))
    plain = stream(data, tmp_path)
    assert any((a["image"] != b["image"]).any() for a, b in zip(flat(whole), flat(plain), strict=True))


def test_weather_on_bgr_images_is_an_error(tmp_path):
    changes = dict(INPUT__AUGMENTATION__WEATHER__PROBABILITY=0.5, INPUT__FORMAT="BGR")
    with pytest.raises(ValueError, match="RGB"):
        stream(write_data(tmp_path / "data"), tmp_path, **changes)
