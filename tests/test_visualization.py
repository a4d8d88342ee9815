"""Drawings, contact sheets, the predictor, and tools/visualize.py."""

import importlib.util
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from training import CONFIG, options, write_data

import soma_det  # noqa: F401
from drawing.split import choose_records, draw_split, saved_detections
from soma_det.engine.predictor import Predictor
from soma_det.utils.contact_sheet import contact_sheet
from soma_det.utils.images import read_image
from soma_det.utils.visualizer import BoxVisualizer, class_colors, draw_detections, draw_ground_truth

DATA_TOOL = Path(__file__).parents[1] / "tools" / "visualize_data.py"
CLASSES = ["bus", "bike", "car", "motor", "person", "rider", "truck"]
GRAY = np.full((270, 480, 3), 90, dtype=np.uint8)


def detections(boxes, scores, classes):
    result = Instances((270, 480))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return result


def near(image, color, tolerance=0.1):
    return np.abs(image / 255 - np.array(color)).max(axis=-1) < tolerance


@pytest.fixture
def split(tmp_path):
    """A registered split of four images with 0, 1, 3 and 4 boxes."""
    records = []
    for i, boxes in enumerate((0, 1, 3, 4)):
        Image.fromarray(GRAY).save(tmp_path / f"{i}.png")
        annotations = [
            {"bbox": [20 + 60 * k, 100, 60 + 60 * k, 140], "bbox_mode": BoxMode.XYXY_ABS, "category_id": k % 3}
            for k in range(boxes)
        ]
        records.append({"file_name": str(tmp_path / f"{i}.png"), "image_id": f"frame_{i}", "annotations": annotations})
    DatasetCatalog.register("drawn_split", lambda: records)
    MetadataCatalog.get("drawn_split").set(thing_classes=CLASSES)
    yield "drawn_split"
    DatasetCatalog.remove("drawn_split")
    MetadataCatalog.remove("drawn_split")


@pytest.fixture
def tool():
    path = Path(__file__).parents[1] / "tools" / "visualize.py"
    spec = importlib.util.spec_from_file_location("visualize_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_model(tool, monkeypatch):
    """Detects one car in every image; returns the images it was given."""
    seen = []

    def predict(image):
        seen.append(image)
        return detections([[100, 60, 220, 140]], [0.9], [2])

    monkeypatch.setattr(tool, "build_predictor", lambda cfg: predict)
    return seen


@pytest.fixture
def logs(caplog, monkeypatch):
    """What the project logs; Detectron2's setup_logger, if another test has called it, keeps it from caplog."""
    monkeypatch.setattr(logging.getLogger("soma_det"), "propagate", True)
    return caplog


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("VERSION: 2\n")
    return str(path)


def test_every_class_has_its_own_color():
    for number in (1, 7, 12):
        colors = class_colors(number)
        assert len(set(colors)) == len(colors) == number
        assert all(0 <= value <= 1 for color in colors for value in color)
    assert class_colors(12)[:7] == class_colors(7)


def test_box_is_drawn_at_its_place_in_the_color_of_its_class():
    drawing = draw_detections(GRAY, detections([[100, 60, 220, 140]], [0.9], [2]), CLASSES)
    assert drawing.shape == (540, 960, 3) and drawing.dtype == np.uint8  # enlarged twice
    lines = near(drawing, class_colors(7)[2], 0.05)
    # Left and right edge at half height, top and bottom edge at three quarters of the width; nothing within.
    assert set(np.flatnonzero(lines[200])) <= {*range(197, 204), *range(437, 444)} and lines[200].sum() >= 2
    assert set(np.flatnonzero(lines[:, 400])) <= {*range(117, 124), *range(277, 284)} and lines[:, 400].sum() >= 2


def test_detections_below_the_threshold_leave_the_image_as_it_was():
    drawing = draw_detections(GRAY, detections([[100, 60, 220, 140]], [0.49], [2]), CLASSES, 0.5, width=480)
    np.testing.assert_array_equal(drawing, GRAY)


def test_drawing_shows_red_as_red():
    red = np.zeros_like(GRAY)
    red[..., 0] = 200
    assert draw_detections(red, detections([], [], []), CLASSES, width=480)[100, 100].tolist() == [200, 0, 0]


def test_labels_do_not_overlap_and_the_most_confident_stays():
    crowd = [[100 + 2 * i, 100, 130 + 2 * i, 130] for i in range(30)]
    visualizer = BoxVisualizer(GRAY, CLASSES, scale=2)
    visualizer.draw_instance_predictions(detections(crowd, np.linspace(0.5, 0.99, 30).tolist(), [2] * 30))
    texts = visualizer.output.ax.texts
    renderer = visualizer.output.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in texts]
    assert 0 < len(texts) < 30 and texts[0].get_text() == "car 99%"
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])


@pytest.mark.parametrize("box", [[0, 0, 30, 20], [450, 250, 480, 270], [0, 0, 480, 270], [470, 0, 480, 8]])
def test_labels_stay_inside_the_image(box):
    visualizer = BoxVisualizer(GRAY, CLASSES, scale=2)
    visualizer.draw_instance_predictions(detections([box], [0.9], [6]))
    (text,) = visualizer.output.ax.texts
    extent = text.get_window_extent(visualizer.output.canvas.get_renderer())
    assert extent.x0 >= 0 and extent.y0 >= 0 and extent.x1 <= 960 and extent.y1 <= 540


def test_ground_truth_is_labeled_with_class_and_crowd():
    annotations = [
        {"bbox": [10, 20, 90, 60], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        {"bbox": [200, 120, 330, 200], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 4, "iscrowd": 1},
    ]
    visualizer = BoxVisualizer(GRAY, CLASSES)
    visualizer.draw_dataset_dict({"annotations": annotations})
    assert {text.get_text() for text in visualizer.output.ax.texts} == {"bus", "person (crowd)"}
    assert draw_ground_truth(GRAY, {}, CLASSES, width=480).tolist() == GRAY.tolist()


def test_contact_sheet_puts_images_in_columns_under_their_headers():
    colors = {"clear": [(200, 0, 0), (0, 200, 0)], "fog": [(0, 0, 200)]}
    columns = {name: [np.full((60, 100, 3), c, dtype=np.uint8) for c in cs] for name, cs in colors.items()}
    sheet = contact_sheet(columns, cell_width=100, legend=CLASSES[:2])
    places = {c: np.argwhere((sheet == c).all(axis=-1)) for cs in colors.values() for c in cs}
    assert all(len(place) == 100 * 60 for place in places.values())
    red, green, blue = (places[c].min(axis=0) for c in [(200, 0, 0), (0, 200, 0), (0, 0, 200)])
    assert red[1] == green[1] < blue[1] and red[0] == blue[0] < green[0]
    header = sheet[: red[0], blue[1] : blue[1] + 100]
    assert (header.sum(axis=-1) < 300).any(), "the second column has no header"


def test_contact_sheet_fits_images_of_another_shape_without_distortion():
    tall = np.full((200, 100, 3), (0, 0, 200), dtype=np.uint8)
    wide = np.full((50, 100, 3), (200, 0, 0), dtype=np.uint8)
    sheet = contact_sheet({"a": [wide, wide, tall]}, cell_width=100)
    place = np.argwhere((sheet == (0, 0, 200)).all(axis=-1))
    height, width = place.max(axis=0) - place.min(axis=0) + 1
    assert (height, width) == (50, 25)


def test_contact_sheet_without_images_is_an_error():
    with pytest.raises(ValueError, match="no image .*columns: fog"):
        contact_sheet({"fog": []})


def test_same_seed_chooses_the_same_records_and_prefers_several_objects():
    records = [{"image_id": i, "annotations": [{"category_id": k} for k in range(i % 5)]} for i in range(50)]
    chosen = choose_records(records, 10, seed=1)
    assert chosen == choose_records(records, 10, seed=1) != choose_records(records, 10, seed=2)
    assert all(len(record["annotations"]) >= 3 for record in chosen)
    assert [r["image_id"] for r in chosen] == sorted(r["image_id"] for r in chosen)
    assert choose_records(records, 99) == records


def test_split_drawings_show_ground_truth_on_the_left_and_detections_on_the_right(split):
    pairs = list(draw_split(split, lambda record, image: detections([[100, 60, 220, 140]], [0.9], [6]), 2))
    assert [record["image_id"] for record, _ in pairs] == ["frame_2", "frame_3"]
    drawing = pairs[0][1]
    left, right = np.split(drawing, [drawing.shape[1] // 2], axis=1)
    truck, bus = class_colors(7)[6], class_colors(7)[0]
    assert near(right, truck, 0.05).sum() > 200 and not near(left, truck, 0.05).any()
    assert near(left, bus, 0.05).sum() > 100 and not near(right, bus, 0.05).any()


def test_saved_detections_are_drawn_on_their_own_image(split, tmp_path):
    path = tmp_path / "coco_instances_results.json"
    entry = {"image_id": "frame_1", "category_id": 2, "bbox": [10, 20, 30, 40], "score": 0.75}
    path.write_text(json.dumps([entry, {**entry, "image_id": "frame_3"}]))
    predict = saved_detections(path, split)
    found = predict({"image_id": "frame_1"}, GRAY)
    assert found.pred_boxes.tensor.tolist() == [[10, 20, 40, 60]] and found.image_size == (270, 480)
    assert found.scores.tolist() == [0.75] and found.pred_classes.tolist() == [2]
    assert len(predict({"image_id": "frame_0"}, GRAY)) == 0


def test_unreadable_image_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for name in ("broken.jpg", "missing.jpg"):
        with pytest.raises(OSError, match=f"Cannot read the image .*{name}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("input_format, channels", [("RGB", [30, 20, 10]), ("BGR", [10, 20, 30])])
def test_predictor_resizes_and_orders_channels_as_the_model_wants(input_format, channels):
    class Model(torch.nn.Module):
        def forward(self, inputs):
            self.inputs = inputs
            return [{"instances": detections([[1, 2, 3, 4]], [0.5], [0])}]

    model = Model()
    bgr = np.broadcast_to(np.array([10, 20, 30], dtype=np.uint8), (270, 480, 3))
    found = Predictor(model, 135, 1000, input_format)(bgr)
    (given,) = model.inputs
    assert given["image"].shape == (3, 135, 240) and given["image"][:, 0, 0].tolist() == channels
    assert (given["height"], given["width"]) == (270, 480)
    assert len(found) == 1


def test_predictor_refuses_an_unknown_channel_order():
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'L'"):
        Predictor(torch.nn.Identity(), 135, 1000, "L")


def test_tool_draws_splits_from_saved_detections(tool, split, tmp_path):
    predictions, output = tmp_path / "p.json", tmp_path / "out"
    predictions.write_text(
        json.dumps([{"image_id": "frame_3", "category_id": 6, "bbox": [9, 9, 99, 99], "score": 0.9}])
    )
    options = ["--predictions", str(predictions), "--dataset", split, "--count", "1", "--output", str(output)]
    (drawn,) = tool.main(tool.parse_args(options))
    assert drawn.parent == output / split and drawn.name in ("frame_2_detections.jpg", "frame_3_detections.jpg")
    (sheet,) = tool.main(tool.parse_args([*options, "--contact-sheet"]))
    assert sheet == output / "contact_sheet.png" and Image.open(sheet).size[0] > 480


def test_tool_draws_folders_with_their_structure_and_skips_what_is_no_image(
    tool, fake_model, config_file, tmp_path, logs
):
    photos = tmp_path / "photos"
    (photos / "night").mkdir(parents=True)
    blue = GRAY.copy()
    blue[..., 2] = 255
    for path in (photos / "a.png", photos / "a.jpg", photos / "night" / "a.png"):
        Image.fromarray(blue).save(path)
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "broken.mp4").write_bytes(b"no video")
    args = tool.parse_args(["--config-file", config_file, "--input", str(photos), "--output", str(photos)])
    before = {p: p.read_bytes() for p in photos.rglob("*") if p.is_file()}
    written = tool.main(args)
    names = ["a_detections.jpg", "a_2_detections.jpg", "night/a_detections.jpg"]
    assert written == [photos / name for name in names]
    assert "broken.jpg" in logs.text and "broken.mp4" in logs.text and "2 of 5 files were skipped" in logs.text
    assert all(path.read_bytes() == content for path, content in before.items())
    assert fake_model[1][0, 0].tolist() == [255, 90, 90], "the predictor takes BGR"
    assert tool.main(args) == written, "a second run must not draw on the first one's drawings"


def test_tool_stops_at_a_named_image_that_cannot_be_read(tool, fake_model, config_file, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for name, message in (("broken.jpg", "Cannot read the image"), ("missing.jpg", "There is no image")):
        with pytest.raises(OSError, match=message):
            tool.main(tool.parse_args(["--config-file", config_file, "--input", str(tmp_path / name)]))


def test_tool_draws_every_frame_of_a_video(tool, fake_model, config_file, tmp_path):
    video = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (480, 270))
    for level in (40, 120, 200):
        writer.write(np.full((270, 480, 3), level, dtype=np.uint8))
    writer.release()
    args = ["--config-file", config_file, "--input", str(video), "--output", str(tmp_path / "out")]
    (drawn,) = tool.main(tool.parse_args(args))
    capture = cv2.VideoCapture(str(drawn))
    frames = [capture.read()[1] for _ in range(3)]
    assert not capture.read()[0] and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert frames[0].shape == (540, 960, 3)
    assert [round(frame[500, 900].mean() / 20) for frame in frames] == [2, 6, 10]
    car = class_colors(7)[2]
    assert near(frames[1][:, :, ::-1], car, 0.15).sum() > 200


def test_tool_reports_a_video_that_cannot_be_read(tool, fake_model, config_file, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    args = ["--config-file", config_file, "--input", str(tmp_path / "broken.mp4"), "--output", str(tmp_path / "out")]
    with pytest.raises(OSError, match="Cannot read the video .*broken.mp4"):
        tool.main(tool.parse_args(args))
    assert list((tmp_path / "out").iterdir()) == []


def test_tool_names_data_sets_like_a_misspelled_one(tool, split, tmp_path):
    with pytest.raises(ValueError, match="no data set 'drawn_splt'.*drawn_split"):
        tool.main(tool.parse_args(["--predictions", "p.json", "--dataset", "drawn_splt"]))


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give --config-file and --weights, or --predictions and --dataset"),
        (["--predictions", "a.json", "b.json", "--dataset", "x"], "as many names"),
        (["--config-file", "missing.yaml"], "no config file missing.yaml"),
        (["--predictions", "a", "--dataset", "x", "--confidence-threshold", "50"], "from 0 to 1"),
        (["--predictions", "a", "--dataset", "x", "--count", "0"], "at least 1"),
        (["--config-file", __file__, "--input", "a.jpg", "--contact-sheet"], "cannot be combined"),
    ],
)
def test_tool_explains_contradictory_options(tool, options, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(options)
    assert message in " ".join(capsys.readouterr().err.split())


def test_tool_lets_idle_threads_sleep_unless_the_user_has_said_otherwise(tool):
    source = Path(tool.__file__).read_text()
    setting = 'os.environ.setdefault("OMP_WAIT_POLICY", "passive")'
    assert setting in source.split("import soma_det")[0]


def test_training_images_are_drawn_as_the_model_gets_them(tmp_path):
    """A row for each image, beside the file as it is, at the size that was asked for."""
    spec = importlib.util.spec_from_file_location("visualize_data", DATA_TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    words = [str(word) for word in options(write_data(tmp_path / "data"), tmp_path)]
    output = tmp_path / "sheet.png"
    tool.main(
        tool.parse_args(["--config-file", CONFIG, "--output", str(output), "--count", "2", "--draws", "1", *words])
    )
    assert Image.open(output).width > 2 * tool.CELL
