"""An exported detector gives what the detector gives, by every runtime, from a file or an array, for every head."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import train, write_base
from training import CONFIG, options, tiny_cfg, write_data

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from soma_det import Detector
from soma_det.engine.exported_predictor import ExportedPredictor, open_exported
from soma_det.engine.fixed_size import OUTPUTS, fixed_size_detector
from soma_det.engine.onnx_export import backbone_products, export_onnx, quantize_onnx
from soma_det.engine.torch_export import export_torch, exportable

TOOL = Path(__file__).parents[1] / "tools" / "export_model.py"
spec = importlib.util.spec_from_file_location("export_model", TOOL)
export_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export_model)

CLASSES = ("bus", "bike", "car", "motor", "person", "rider", "truck")
HEADS = {
    "faster_rcnn": {},
    "cascade_rcnn": {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads", "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True},
    "retinanet": {
        "MODEL__META_ARCHITECTURE": "AdaptedRetinaNet",
        "MODEL__RETINANET__NUM_CLASSES": 7,
        "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    },
    "lw_detr": {
        "MODEL__META_ARCHITECTURE": "AdaptedLwDETR",
        "MODEL__PYRAMID__OUT_CHANNELS": 16,
        "MODEL__DETR__NUM_QUERIES": 20,
        "MODEL__DETR__GROUPS": 2,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=HEADS)
def run(request, data, tmp_path_factory):
    """The config of a trained detector with each head."""
    if request.param == "lw_detr":
        pytest.importorskip("transformers")
        pytest.importorskip("scipy")
    folder, base = tmp_path_factory.mktemp(request.param), tmp_path_factory.mktemp("base") / "vit.safetensors"
    write_base(base, seed=1)
    changes = HEADS[request.param]
    weights = train(data, folder, str(base), **changes)
    if request.param == "retinanet":  # whose confidences are all but equal at the start: of equals either may be kept
        checkpoint = torch.load(weights, weights_only=True)
        checkpoint["model"]["head.cls_score.weight"] += torch.randn_like(checkpoint["model"]["head.cls_score.weight"])
        torch.save(checkpoint, weights)
    return tiny_cfg(data, folder, MODEL__VIT__WEIGHTS=str(base), MODEL__WEIGHTS=weights, **changes)


def pixels(seed, height=64, width=96):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_order(tensors):
    """Boxes and confidences by their coordinates: of equal confidences either may come first."""
    boxes, scores, _ = tensors
    order = np.lexsort(boxes.round(1).T)
    return boxes[order], 100 * scores[order]  # so that one tolerance serves both


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_boxes_and_confidences_are_those_of_the_detector(run, runtime, tmp_path):
    pytest.importorskip(runtime)
    export_onnx(run, tmp_path / "model.onnx", (64, 96), CLASSES)
    exported, eager = ExportedPredictor(tmp_path / "model.onnx", runtime), fixed_size_detector(run, (64, 96))
    for seed in range(3):
        image = exported.prepare(pixels(seed))[0]
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in eager(torch.from_numpy(image))]
        found = exported.run(image)
        assert len(found[0]) == len(expected[0]) > 5
        for mine, theirs in zip(in_order(found), in_order(expected), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-2)


def test_torch_export_follows_the_detr_to_its_boxes_and_the_others_to_their_pyramids(run, tmp_path):
    export_torch(run, tmp_path / "model.pt2", (64, 96), CLASSES)
    described, exported = open_exported(tmp_path / "model.pt2")
    eager = exportable(fixed_size_detector(run, (64, 96)))
    whole = run.MODEL.META_ARCHITECTURE == "AdaptedLwDETR"
    assert (described.outputs == OUTPUTS) == whole and described.outputs == eager.names
    image = np.random.default_rng(0).uniform(0, 255, (3, 64, 96)).astype(np.float32)
    with torch.no_grad():
        expected = eager(torch.from_numpy(image))
    for mine, theirs in zip(exported(image), expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="unpickles"):
        Detector(tmp_path / "model.pt2")


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):
    """A Faster R-CNN that the tool has exported and compared, and what the tool said."""
    folder, base = tmp_path_factory.mktemp("tool"), tmp_path_factory.mktemp("base") / "vit.safetensors"
    write_base(base, seed=1)
    weights = train(data, folder, str(base))
    words = [str(word) for word in options(data, folder, MODEL__VIT__WEIGHTS=str(base))]
    arguments = ["--config-file", CONFIG, "--weights", weights, "--check", "2", "--opts", *words]
    return folder / "model.onnx", export_model.main(export_model.parse_args(arguments)), str(base)


def test_the_tool_says_how_close_the_file_is(exported):
    path, text, _ = exported
    assert path.exists() and "64 x 64 pixels" in text and "0 images have another number of detections" in text


def test_detections_whose_order_rounding_has_swapped_are_compared_with_their_like():
    boxes = np.array([[0, 0, 9, 9], [50, 50, 60, 60], [0, 0, 9, 9]], np.float32)
    scores, classes = np.array([0.5, 0.4, 0.4], np.float32), np.array([1, 1, 2])
    swapped = [part[[0, 2, 1]] for part in (boxes, scores, classes)]
    for mine, theirs in zip(export_model.same_order(swapped, (boxes, scores, classes)), (boxes, scores, classes)):
        np.testing.assert_array_equal(mine, theirs)


def test_three_lines_of_python_take_the_file(exported):
    detector = Detector(exported[0], confidence_threshold=0.0)
    result = detector(pixels(0, 30, 50))
    assert detector.classes == CLASSES and len(result) > 0
    assert result.boxes[:, [0, 2]].max() <= 50 and result.boxes[:, [1, 3]].max() <= 30


def test_a_large_image_is_the_small_one_with_larger_boxes(exported):
    detector = Detector(exported[0], confidence_threshold=0.0)
    small = np.full((32, 64, 3), 90, np.uint8)
    small[8:24, 16:40] = 200
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    a, b = detector(small), detector(large)
    assert abs(len(a) - len(b)) <= 2
    np.testing.assert_allclose(4 * a.boxes[0], b.boxes[0], atol=8)


def test_the_runtime_is_chosen_by_its_name(exported):
    pytest.importorskip("openvino")
    found = [Detector(exported[0], confidence_threshold=0.0, runtime=name) for name in ("onnxruntime", "openvino")]
    first, second = (detector(pixels(0, 30, 50)) for detector in found)
    assert len(first) == len(second) > 0 and found[1].classes == CLASSES
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)


def test_unknown_runtimes_are_refused(exported):
    with pytest.raises(ValueError, match="choose one of onnxruntime, openvino"):
        Detector(exported[0], runtime="tensorrt")


def test_results_of_an_exported_file_are_drawn_and_handed_to_supervision_also_in_a_batch(exported):
    results = Detector(exported[0], confidence_threshold=0.0)([pixels(0, 30, 50), pixels(1, 90, 40)])
    assert [result.image.shape[:2] for result in results] == [(30, 50), (90, 40)] and min(map(len, results)) > 0
    assert results[0].draw(width=100).shape[1] == 100
    supervision = pytest.importorskip("supervision")
    assert isinstance(results[1].to_supervision(), supervision.Detections)


def test_int8_is_in_the_backbone_alone_and_keeps_scores_near(exported, tmp_path):
    import onnx

    whole = ExportedPredictor(exported[0])
    images = [whole.prepare(pixels(seed))[0] for seed in range(3)]
    quantize_onnx(exported[0], tmp_path / "int8.onnx", images)
    graph = onnx.load(str(tmp_path / "int8.onnx"))
    sources = {name: node for node in graph.graph.node for name in node.output}
    rounded = {
        node.name
        for node in graph.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and getattr(sources.get(node.input[1]), "op_type", "") == "DequantizeLinear"
    }
    assert len(rounded) == len(backbone_products(onnx.load(str(exported[0])))) > 10
    assert all("/backbone/" in name for name in rounded)
    int8 = ExportedPredictor(tmp_path / "int8.onnx")
    assert int8.classes == CLASSES and int8.size == whole.size
    a, b = (np.sort(predictor.run(images[0])[1])[-5:] for predictor in (whole, int8))
    assert 0 < np.abs(a - b).max() < 0.1


def test_int8_takes_training_images_and_is_compared_by_ap_only(data, exported, tmp_path, capsys):
    weights = str(exported[0].with_name("model_final.pth"))
    words = [str(word) for word in options(data, tmp_path, MODEL__VIT__WEIGHTS=exported[2])]
    arguments = ["--config-file", CONFIG, "--weights", weights, "--int8", "--output", str(tmp_path / "a.onnx")]
    export_model.main(export_model.parse_args([*arguments, "--opts", *words]))
    assert len(Detector(tmp_path / "a.onnx", confidence_threshold=0.0)(pixels(0))) > 0
    for wrong, message in ((["--check", "2"], "measure its AP"), (["--format", "torch"], "--format onnx")):
        with pytest.raises(SystemExit):
            export_model.parse_args([*arguments, *wrong])
        assert message in capsys.readouterr().err


def test_wrong_sizes_and_foreign_files_are_errors(data, tmp_path):
    with pytest.raises(ValueError, match="multiples of 32"):
        export_onnx(tiny_cfg(data, tmp_path), tmp_path / "m.onnx", (50, 64), CLASSES)
    import onnx

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="not written by tools/export_model"):
        ExportedPredictor(tmp_path / "x.onnx")
