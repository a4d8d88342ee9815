"""SynthDrive: geometry, annotation and determinism of the procedural scenes, and what is written to disk."""

import hashlib
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from make_synthdrive import DIGESTS, main

from synthdrive import CLASSES, DOMAINS, digests, generate, make_image, render_scene
from synthdrive.camera import Camera, clip_near
from synthdrive.ordering import painting_order
from synthdrive.voc import voc_corners

SIZE = (135, 240)
COUNTS = {"daytime_clear": (2, 1), "night_rainy": (0, 2)}


def _run(root: Path, counts=COUNTS, **options) -> list[int]:
    return list(generate(root, counts, seed=3, height=SIZE[0], width=SIZE[1], **{"workers": 1, **options}))


def _digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _lines(root: Path, record: Path) -> list[str]:
    """What differs from the record, with paths inside the set."""
    return [line.removeprefix(f"{root}/") for line in digests.differences(root, record)]


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, *SIZE) for seed in range(12)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthdrive")
    assert _run(root) == [1, 2, 3, 4, 5]
    return root


@pytest.fixture(scope="module")
def record(finished, tmp_path_factory) -> Path:
    digests.record(finished, path := tmp_path_factory.mktemp("record") / "digests.json")
    return path


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def camera() -> Camera:
    return Camera(focal=200.0, center_x=120.0, horizon=60.0, height=1.5, image_height=135, image_width=240)


def test_a_point_on_the_road_projects_where_similar_triangles_put_it(camera):
    # 3 m to the right and 1.5 m below a camera, 10 m ahead: 200 * 3 / 10 and 200 * 1.5 / 10 pixels from the center
    np.testing.assert_allclose(camera.project(np.array([[3.0, 0.0, 10.0]])), [[180.0, 90.0]])


def test_a_plane_through_three_points_gives_back_the_depth_of_a_fourth(camera):
    wall = np.array([[4.0, 0.0, 8.0], [4.0, 0.0, 30.0], [4.0, 6.0, 30.0], [4.0, 6.0, 8.0], [4.0, 2.5, 17.0]])
    plane = camera.inverse_depth_plane(wall)
    for pixel, point in zip(camera.project(wall), wall):
        assert plane @ (*pixel, 1.0) == pytest.approx(1.0 / point[2])


def test_a_polygon_is_cut_where_it_passes_the_near_plane():
    triangle = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 5.0], [-1.0, 0.0, 5.0]])
    clipped = clip_near(triangle)
    assert len(clipped) == 4 and clipped[:, 2].min() == pytest.approx(0.7)
    assert len(clip_near(triangle - (0.0, 0.0, 9.0))) == 0


def test_painting_order_puts_nearer_things_last_and_looks_at_sides_where_distances_overlap():
    far, near = (-1.0, 30.0, 1.0, 34.0), (-1.0, 10.0, 1.0, 14.0)
    assert painting_order(np.array([near, far])) == [1, 0]
    # A long bus beside a car: the car's center is nearer, but the bus lies between it and the camera's axis.
    bus, hidden_car = (-4.7, 9.0, -2.2, 21.0), (-8.0, 10.0, -6.0, 14.0)
    assert painting_order(np.array([bus, hidden_car])) == [1, 0]


def test_scenes_have_the_promised_arrays(scenes):
    for scene in scenes:
        assert scene.image.shape == (*SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.depth.shape == SIZE and scene.depth.dtype == np.float32
        assert scene.road.shape == SIZE and scene.road.dtype == bool
        assert scene.emission.shape == (*SIZE, 3)
        assert scene.boxes.shape == (len(scene.labels), 4)


def test_boxes_lie_inside_the_image_and_have_an_area(scenes):
    for scene in scenes:
        assert len(scene.labels) >= 3
        x0, y0, x1, y1 = scene.boxes.T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= SIZE[1]).all() and (y1 <= SIZE[0]).all()
        assert ((x1 - x0) >= 2).all() and ((y1 - y0) >= 3).all()


def test_every_class_occurs_and_cars_most_often(scenes):
    more = [render_scene([7, seed], *SIZE).labels for seed in range(30)]
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes] + more), minlength=len(CLASSES))
    assert (counts > 0).all(), dict(zip(CLASSES, counts.tolist()))
    assert CLASSES[int(counts.argmax())] == "car"


def test_depth_grows_up_the_road_and_is_infinite_in_the_sky_alone(scenes):
    for scene in scenes:
        sky = np.isinf(scene.depth)
        assert not (sky & scene.road).any()
        column = scene.depth[:, SIZE[1] // 2][scene.road[:, SIZE[1] // 2]]
        assert (np.diff(column) <= 0.0).all() and column[-1] < 15.0


def test_things_in_a_box_are_as_far_as_their_own_row_of_road_at_most(scenes):
    for scene in scenes:
        for box in scene.boxes.astype(int):
            inside = scene.depth[box[1] : box[3], box[0] : box[2]]
            assert np.isfinite(np.median(inside)) and np.median(inside) < 120.0


def test_lights_shine_inside_the_image(scenes):
    lights = [light for scene in scenes for light in scene.lights]
    assert {light.kind for light in lights} >= {"head", "tail"}
    assert all(0 <= light.x < SIZE[1] and 0 <= light.y < SIZE[0] and light.depth > 0 for light in lights)


def test_the_same_seed_gives_the_same_scene_and_another_seed_another_one():
    one, same, other = render_scene(5, *SIZE), render_scene(5, *SIZE), render_scene(6, *SIZE)
    for field in ("image", "depth", "boxes", "labels", "road"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
    assert not np.array_equal(one.image, other.image)


def test_clouds_change_the_light_and_nothing_else():
    sunny, cloudy = render_scene(11, *SIZE), render_scene(11, *SIZE, sun=False)
    np.testing.assert_array_equal(sunny.boxes, cloudy.boxes)
    np.testing.assert_array_equal(sunny.depth, cloudy.depth)
    assert not np.array_equal(sunny.image, cloudy.image)


def test_an_image_is_a_pure_function_of_seed_domain_split_and_index():
    first, _ = make_image(1, "dusk_rainy", "test", 4, *SIZE)
    make_image(1, "night_rainy", "test", 4, *SIZE)
    again, _ = make_image(1, "dusk_rainy", "test", 4, *SIZE)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, make_image(1, "dusk_rainy", "train", 4, *SIZE)[0])


def test_voc_coordinates_count_from_one_and_include_the_last_pixel():
    assert voc_corners(np.array([0.0, 0.0, 10.0, 5.0]), 100, 100) == (1, 1, 10, 5)
    assert voc_corners(np.array([2.5, 3.5, 7.5, 99.9]), 100, 100) == (3, 4, 8, 100)


def test_the_written_set_is_a_voc_devkit_per_domain(finished):
    lists = {path.relative_to(finished).as_posix(): path.read_text().split() for path in finished.rglob("*.txt")}
    assert sorted(lists) == [
        "daytime_clear/VOC2007/ImageSets/Main/test.txt",
        "daytime_clear/VOC2007/ImageSets/Main/train.txt",
        "night_rainy/VOC2007/ImageSets/Main/test.txt",
    ]
    for path, names in lists.items():
        for name in names:
            devkit = finished / path.split("/")[0] / "VOC2007"
            image = cv2.imread(str(devkit / "JPEGImages" / f"{name}.jpg"))
            assert image.shape == (*SIZE, 3)
            tree = ElementTree.parse(devkit / "Annotations" / f"{name}.xml")
            assert [tree.findtext(f"size/{tag}") for tag in ("width", "height", "depth")] == ["240", "135", "3"]
            assert {entry.findtext("name") for entry in tree.iter("object")} <= set(CLASSES)
            for box in tree.iter("bndbox"):
                x0, y0, x1, y1 = (int(box.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
                assert 1 <= x0 <= x1 <= 240 and 1 <= y0 <= y1 <= 135


def test_a_finished_set_is_left_alone(finished):
    before = _digests(finished)
    assert _run(finished) == []
    assert _digests(finished) == before


@pytest.mark.slow
def test_the_number_of_processes_changes_no_byte(finished, tmp_path):
    _run(tmp_path, workers=2)
    assert _digests(tmp_path) == _digests(finished)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(finished, tmp_path):
    run = generate(tmp_path, COUNTS, seed=3, height=SIZE[0], width=SIZE[1], workers=1)
    next(run), next(run)
    run.close()
    assert not (tmp_path / "synthdrive.json").exists()
    kept = tmp_path / "daytime_clear/VOC2007/JPEGImages/daytime_clear_train_000000.jpg"
    time_of_writing = kept.stat().st_mtime_ns
    _run(tmp_path)
    assert kept.stat().st_mtime_ns == time_of_writing
    assert _digests(tmp_path) == _digests(finished)


def test_an_image_without_annotation_is_made_again(finished, tmp_path):
    next(generate(tmp_path, COUNTS, seed=3, height=SIZE[0], width=SIZE[1], workers=1))
    devkit = tmp_path / "daytime_clear/VOC2007"
    (devkit / "Annotations/daytime_clear_train_000000.xml").unlink()
    (devkit / "JPEGImages/daytime_clear_train_000000.jpg").write_bytes(b"half")
    _run(tmp_path)
    assert _digests(tmp_path) == _digests(finished)


def _a_byte(data: bytes) -> bytes:
    return data + b" "


def _a_box(data: bytes) -> bytes:
    return data.replace(b"<xmin>", b"<xmin>1", 1)


def _a_pixel(data: bytes) -> bytes:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image[0, 0] ^= 128
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


IMAGE, BOXES = (
    f"{folder}/night_rainy_test_000001.{end}" for folder, end in (("JPEGImages", "jpg"), ("Annotations", "xml"))
)
CHANGES = [
    (IMAGE, _a_byte, "the file differs, its pixels do not"),
    (IMAGE, _a_pixel, "pixels differ"),
    (IMAGE, lambda data: b"half", "cannot be decoded"),
    (IMAGE, None, "missing"),
    (BOXES, _a_box, "the annotation differs"),
    (BOXES, None, "missing"),
    ("ImageSets/Main/test.txt", _a_byte, "the list differs"),
    ("ImageSets/Main/test.txt", None, "the list differs"),
]


def test_a_set_is_as_recorded_and_so_is_a_smaller_one(finished, record, tmp_path):
    assert _lines(finished, record) == []
    _run(tmp_path, {"night_rainy": (0, 1)})
    assert _lines(tmp_path, record) == []


@pytest.mark.parametrize("name, change, said", CHANGES)
def test_the_one_file_that_differs_is_named_with_what_differs(copied, record, name, change, said):
    path = copied / "night_rainy/VOC2007" / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    assert _lines(copied, record) == [f"night_rainy/VOC2007/{name}: {said}"]


def test_a_file_that_is_not_of_the_set_is_named(copied, record):
    (copied / "night_rainy/more.txt").touch()
    assert _lines(copied, record) == ["night_rainy/more.txt: not one of the set's files"]


def test_an_opencv_that_decodes_otherwise_is_told_from_one_that_draws_otherwise(finished, record, monkeypatch):
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *given: decode(*given) ^ 1)
    lines = _lines(finished, record)
    assert len(lines) == 5 and all(line.endswith("but this OpenCV decodes other pixels") for line in lines)


@pytest.mark.parametrize(
    "counts, seed, said", [(COUNTS, 4, "seed 3, not 4"), ({"night_rainy": (0, 3)}, 3, "make fewer")]
)
def test_a_record_of_other_images_is_refused(record, tmp_path, counts, seed, said):
    list(generate(tmp_path, counts, seed, *SIZE, workers=1))
    with pytest.raises(ValueError, match=said):
        _lines(tmp_path, record)


def test_the_command_checks_against_its_own_record_and_ends_with_1_where_a_file_differs(tmp_path, capsys):
    few = ["--output", str(tmp_path), "--train", "1", "--test", "1", "--workers", "1"]
    assert main([*few, "--record", str(tmp_path / "record.json"), "--check", str(tmp_path / "record.json")]) == 0
    (listed := tmp_path / "dusk_rainy/VOC2007/ImageSets/Main/test.txt").write_text("")
    assert main([*few, "--check", str(tmp_path / "record.json")]) == 1
    assert f"{listed}: the list differs" in capsys.readouterr().out
    main([*few, "--check"])
    assert str(DIGESTS) in capsys.readouterr().out


def test_another_set_in_the_folder_is_an_error_unless_it_may_be_overwritten(tmp_path):
    _run(tmp_path, {"dusk_rainy": (0, 2)})
    stranger = tmp_path / "notes.txt"
    stranger.write_text("not ours")
    with pytest.raises(ValueError, match="--overwrite"):
        _run(tmp_path, {"daytime_foggy": (0, 1)})
    assert _run(tmp_path, {"daytime_foggy": (0, 1)}, overwrite=True) == [1]
    assert json.loads((tmp_path / "synthdrive.json").read_text())["counts"] == {"daytime_foggy": [0, 1]}
    assert not (tmp_path / "dusk_rainy").exists() and stranger.exists()


def test_a_folder_of_other_images_is_left_as_it_is(tmp_path):
    listed = tmp_path / "dusk_rainy" / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds dusk_rainy, which SynthDrive did not write"):
            _run(tmp_path, {"dusk_rainy": (0, 2), "daytime_foggy": (0, 1)}, overwrite=overwrite)
    assert listed.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["dusk_rainy"]


@pytest.mark.parametrize("counts", [{"snow": (1, 1)}, {"dusk_rainy": (1, -1)}, {"dusk_rainy": (0, 0)}])
def test_wrong_counts_are_refused_before_anything_is_written(tmp_path, counts):
    with pytest.raises(ValueError):
        _run(tmp_path / "new", counts)
    assert not (tmp_path / "new").exists()


def test_tiny_images_are_refused():
    with pytest.raises(ValueError, match="64 x 64"):
        render_scene(0, 32, 32)


def test_domains_are_those_of_the_weather_effects():
    from soma_det.weather import DOMAIN_EFFECTS

    assert tuple(DOMAIN_EFFECTS) == DOMAINS
