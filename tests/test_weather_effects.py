"""Weather effects as image formation: limits, numbers worked out by hand, and purity."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import soma_det  # noqa: F401
from soma_det.weather import DOMAIN_EFFECTS, apply_weather
from soma_det.weather.camera import sensor_noise
from soma_det.weather.depth import assume_road_depth
from soma_det.weather.fog import fog
from soma_det.weather.night import headlamps, lamps, street_lighting
from soma_det.weather.radiance import to_linear, to_srgb
from soma_det.weather.rain import lens_drops, rain_streaks, rain_veil, wet_road

AIRLIGHT = (0.7, 0.72, 0.75)
LAMP = SimpleNamespace(
    x=30.0, y=20.0, width=4.0, height=4.0, depth=15.0, color=(1.0, 0.6, 0.3), power=1.0, kind="street"
)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_every_srgb_code_survives_the_way_to_linear_and_back():
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_srgb(to_linear(codes)), codes)


def test_srgb_mid_gray_is_the_linear_radiance_of_the_standard():
    # ((128 / 255 + 0.055) / 1.055)^2.4
    assert to_linear(np.array([128], np.uint8))[0] == pytest.approx(0.21586, abs=1e-5)


def test_fog_at_distance_zero_is_the_identity(image):
    np.testing.assert_array_equal(fog(image, np.zeros((48, 64)), 100.0, AIRLIGHT), image)


def test_fog_at_infinity_is_the_airlight(image):
    foggy = fog(to_linear(image), np.full((48, 64), np.inf), 100.0, AIRLIGHT)
    np.testing.assert_allclose(foggy, np.broadcast_to(np.float32(AIRLIGHT), foggy.shape))


def test_two_percent_of_the_contrast_is_left_at_the_visibility():
    black = np.zeros((2, 2, 3), np.float32)
    seen = fog(black, np.full((2, 2), 80.0), 80.0, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(1.0 - seen, 0.02, rtol=1e-5)


def test_half_the_visibility_leaves_the_square_root_of_the_contrast():
    seen = fog(np.zeros((1, 1, 3), np.float32), np.full((1, 1), 40.0), 80.0, (1.0, 1.0, 1.0))
    assert 1.0 - seen[0, 0, 0] == pytest.approx(math.sqrt(0.02), rel=1e-5)


def test_fog_only_moves_pixels_towards_the_airlight(image):
    clear = to_linear(image)
    airlight = np.float32(AIRLIGHT)
    foggy = fog(clear, np.full((48, 64), 30.0), 100.0, AIRLIGHT)
    assert (np.abs(foggy - airlight) <= np.abs(clear - airlight) + 1e-6).all()


def test_no_rain_is_no_veil(image):
    np.testing.assert_array_equal(rain_veil(image, np.full((48, 64), 90.0), 0.0, AIRLIGHT), image)


def test_more_rain_hides_more():
    black, depth = np.zeros((1, 1, 3), np.float32), np.full((1, 1), 60.0)
    veils = [rain_veil(black, depth, rate, (1.0, 1.0, 1.0))[0, 0, 0] for rate in (2.0, 10.0, 50.0)]
    assert 0.0 < veils[0] < veils[1] < veils[2] < 1.0


def test_the_mean_of_sensor_noise_is_zero_and_its_variance_that_of_electrons():
    for signal in (0.05, 0.2, 0.8):
        flat = np.full((200, 200, 3), signal, np.float32)
        noisy = sensor_noise(flat, np.random.default_rng(1), full_well=2000.0, read_noise=4.0)
        expected = (signal * 2000.0 + 16.0) / 2000.0**2
        assert noisy.mean() == pytest.approx(signal, abs=5.0 * math.sqrt(expected / noisy.size))
        assert noisy.var() == pytest.approx(expected, rel=0.03)


def test_the_own_headlamps_fade_with_the_square_of_the_distance():
    gray = np.full((40, 40, 3), 0.5, np.float32)
    near, far = (headlamps(gray, np.full((40, 40), depth)) - gray for depth in (10.0, 30.0))
    np.testing.assert_allclose(near, 9.0 * far, rtol=1e-3, atol=1e-6)


def test_headlamps_and_street_lamps_light_nothing_that_reflects_nothing():
    black, depth = np.zeros((40, 60, 3), np.float32), np.full((40, 60), 12.0)
    assert not headlamps(black, depth).any()
    assert not street_lighting(black, depth, [LAMP]).any()


def test_a_street_lamp_lights_most_what_is_next_to_it():
    gray, depth = np.full((48, 64, 3), 0.5, np.float32), np.full((48, 64), 15.0)
    lit = street_lighting(gray, depth, [LAMP])[..., 0]
    assert np.unravel_index(lit.argmax(), lit.shape) in {(19, 29), (19, 30), (20, 29), (20, 30)}


def test_lamps_only_add_light():
    dark = np.full((48, 64, 3), 0.02, np.float32)
    shining = lamps(dark, [LAMP])
    assert (shining >= dark).all()
    assert shining[20, 30, 0] > 1.0 > shining[2, 2, 0]


def test_without_road_a_wet_road_changes_nothing(image):
    dry = np.zeros((48, 64), bool)
    np.testing.assert_array_equal(wet_road(image, dry, np.full((48, 64), 20.0), np.random.default_rng(0)), image)


def test_a_wet_road_changes_the_road_alone_and_mirrors_a_lamp_above_it():
    image = np.full((90, 120, 3), 0.1, np.float32)
    image[30:36, 58:64] = 5.0
    road = np.zeros((90, 120), bool)
    road[45:] = True
    wet = wet_road(image, road, np.full((90, 120), 40.0), np.random.default_rng(0))
    np.testing.assert_array_equal(wet[:45], image[:45])
    assert wet[52:62, 58:64].mean() > 2.0 * wet[52:62, :20].mean()


def test_rain_streaks_behind_a_surface_are_hidden():
    image, wall = np.full((60, 80, 3), 0.2, np.float32), np.full((60, 80), 1.0)
    unchanged = rain_streaks(image, wall, np.random.default_rng(0), rate=30.0, light=1.0)
    np.testing.assert_allclose(unchanged, image, atol=1e-6)
    open_road = rain_streaks(image, wall * 100.0, np.random.default_rng(0), rate=30.0, light=1.0)
    assert open_road.mean() > image.mean()


def test_a_drop_on_the_lens_shows_the_scene_upside_down():
    image = np.zeros((120, 160, 3), np.float32)
    image[60:] = 1.0
    wet = lens_drops(image, np.random.default_rng(4), 60)
    sky_drops, road_drops = wet[:48] - image[:48], wet[72:] - image[72:]
    assert sky_drops.max() > 0.3  # bright road seen in drops before the dark sky
    assert road_drops.min() < -0.3


def test_the_assumed_depth_of_a_photograph_is_a_flat_road():
    depth = assume_road_depth(200, 320, camera_height=1.5, far=150.0)
    assert depth.shape == (200, 320) and depth.dtype == np.float32
    assert (np.diff(depth[:, 0]) <= 0.0).all()
    assert depth[0, 0] == 150.0
    # 0.95 x 320 pixels of focal length, 1.5 m above the road, last row 199.5 - 90 pixels below the horizon
    assert depth[-1, 0] == pytest.approx(0.95 * 320 * 1.5 / 109.5, rel=1e-5)


@pytest.mark.parametrize("domain", DOMAIN_EFFECTS)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_weather_keeps_shape_and_kind_and_leaves_its_input_alone(image, domain, kind):
    image = image if kind == np.uint8 else to_linear(image)
    before, depth = image.copy(), np.full((48, 64), 25.0, np.float32)
    depth[:10] = np.inf
    road = np.arange(48)[:, None].repeat(64, axis=1) > 30
    result = apply_weather(image, depth, domain, np.random.default_rng(2), [LAMP], road)
    assert result.shape == image.shape and result.dtype == kind
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(image, before)
    again = apply_weather(image, depth, domain, np.random.default_rng(2), [LAMP], road)
    np.testing.assert_array_equal(result, again)


@pytest.mark.parametrize("domain", DOMAIN_EFFECTS)
def test_weather_works_on_a_photograph_without_depth(image, domain):
    assert apply_weather(image, None, domain, np.random.default_rng(3)).shape == image.shape


def test_nights_are_darker_and_fog_has_less_contrast_than_a_clear_day(image):
    seen = {domain: apply_weather(image, None, domain, np.random.default_rng(5)) for domain in DOMAIN_EFFECTS}
    brightness = {domain: image.mean() for domain, image in seen.items()}
    assert brightness["night_sunny"] < brightness["dusk_rainy"] < brightness["daytime_clear"]
    assert brightness["night_rainy"] < brightness["dusk_rainy"]
    assert seen["daytime_foggy"].std() < 0.8 * seen["daytime_clear"].std()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: fog(image, np.zeros((48, 64)), 0.0), "above 0"),
        (lambda image: fog(image[..., 0], np.zeros((48, 64)), 50.0), r"\(48, 64\)"),
        (lambda image: sensor_noise(image, np.random.default_rng(0), full_well=-1.0), "-1.0"),
        (lambda image: rain_veil(image, np.zeros((48, 64)), -2.0, AIRLIGHT), "-2.0"),
        (lambda image: apply_weather(image, None, "snow", np.random.default_rng(0)), "daytime_foggy"),
        (
            lambda image: apply_weather(image, np.zeros((4, 4)), "night_rainy", np.random.default_rng(0)),
            "48 x 64",
        ),
    ],
)
def test_wrong_input_is_named_in_the_error(image, call, message):
    with pytest.raises(ValueError, match=message):
        call(image)


def test_fog_without_depth_seldom_hides_what_rises_above_the_horizon(image):
    fogs = [apply_weather(image, None, "daytime_foggy", np.random.default_rng(seed)) for seed in range(60)]
    contrast = np.array([fog[:20].std() for fog in fogs]) / image[:20].std()
    assert np.quantile(contrast, 0.2) > 0.1 and contrast.max() < 0.9
