"""Detectron2 without its compiled extension: what works, what is said of what does not, and which names are needed."""

import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys

import detectron2
import pytest
import torch
from detectron2.layers import batched_nms

from soma_det.utils import compat

# Every name of Detectron2 that soma_det uses, and the parameters that it passes.
REQUIRED = {
    "checkpoint:DetectionCheckpointer.save": "name",
    "checkpoint:DetectionCheckpointer.tag_last_checkpoint": "last_filename_basename",
    "config:CfgNode.merge_from_file": "cfg_filename",
    "config:configurable": "",
    "config:get_cfg": "",
    "data:DatasetCatalog": "",
    "data:DatasetFromList": "lst copy serialize",
    "data:DatasetMapper": "",
    "data:MapDataset": "dataset map_func",
    "data:MetadataCatalog": "",
    "data.build:get_detection_dataset_dicts": "names filter_empty",
    "data.build:trivial_batch_collator": "batch",
    "data.datasets:register_coco_instances": "name metadata json_file image_root",
    "data.detection_utils:check_image_size": "dataset_dict image",
    "data.samplers:InferenceSampler": "size",
    "data.transforms:RandomFlip": "prob",
    "data.transforms:ResizeShortestEdge": "short_edge_length max_size",
    "engine:AMPTrainer": "model data_loader optimizer grad_scaler precision",
    "engine:DefaultTrainer": "cfg",
    "engine:DefaultTrainer.auto_scale_workers": "cfg num_workers",
    "engine:HookBase.after_backward": "",
    "engine:SimpleTrainer.run_step": "",
    "engine:SimpleTrainer.state_dict": "",
    "engine:default_argument_parser": "epilog",
    "engine:default_setup": "cfg args",
    "engine.defaults:create_ddp_model": "model kwargs",
    "engine:launch": "main_func num_gpus_per_machine num_machines machine_rank dist_url args timeout",
    "evaluation:COCOEvaluator": "dataset_name tasks distributed output_dir max_dets_per_image use_fast_impl",
    "evaluation:DatasetEvaluator.evaluate": "",
    "evaluation:DatasetEvaluators": "evaluators",
    "layers:ShapeSpec": "channels stride",
    "layers:get_norm": "norm out_channels",
    "modeling:BACKBONE_REGISTRY": "",
    "modeling:Backbone.output_shape": "",
    "modeling:Backbone.padding_constraints": "",
    "modeling:FPN": "bottom_up in_features out_channels norm top_block fuse_type",
    "modeling:GeneralizedRCNN": "",
    "modeling:GeneralizedRCNN.from_config": "cfg",
    "modeling:GeneralizedRCNN.preprocess_image": "batched_inputs",
    "modeling:META_ARCH_REGISTRY": "",
    "modeling:RetinaNet.from_config": "cfg",
    "modeling:RetinaNet.preprocess_image": "batched_inputs",
    "modeling.backbone.resnet:build_resnet_backbone": "cfg input_shape",
    "modeling.backbone.vit:SimpleFeaturePyramid": "net in_feature out_channels scale_factors top_block norm",
    "modeling:build_model": "cfg",
    "solver.build:get_default_optimizer_params": (
        "model base_lr weight_decay weight_decay_norm lr_factor_func overrides"
    ),
    "solver:build_lr_scheduler": "cfg optimizer",
    "structures:BoxMode.convert": "box from_mode to_mode",
    "structures:Boxes": "tensor",
    "structures:ImageList": "tensor image_sizes",
    "structures:Instances": "image_size",
    "utils.comm:gather": "data",
    "utils.events:EventStorage": "start_iter",
    "utils.events:EventStorage.histories": "",
    "utils.logger:setup_logger": "output distributed_rank name abbrev_name",
    "utils.visualizer:VisImage": "img scale",
    "utils.visualizer:Visualizer": "img_rgb metadata scale",
    "utils.visualizer:Visualizer.draw_dataset_dict": "dic",
    "utils.visualizer:Visualizer.draw_instance_predictions": "predictions",
}


@pytest.mark.parametrize("name", REQUIRED)
def test_detectron2_has_each_name_and_parameter_that_soma_det_uses(name):
    found, wanted = pkgutil.resolve_name(f"detectron2.{name}"), set(REQUIRED[name].split())
    if wanted:
        has = set(inspect.signature(found).parameters)
        assert wanted <= has, f"this Detectron2's {name} lacks {wanted - has}"


def test_box_nms_and_pooling_need_no_compiled_extension():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    kept = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), 0.5)
    assert kept.tolist() == [0, 2]


@pytest.mark.skipif(not isinstance(detectron2._C, compat._MissingExtension), reason="this Detectron2 is compiled")
def test_an_op_of_the_missing_extension_names_itself():
    with pytest.raises(RuntimeError, match="detectron2._C.ml_nms needs Detectron2's compiled extension"):
        _ = detectron2._C.ml_nms
    with pytest.raises(RuntimeError, match="nms_rotated needs Detectron2's compiled extension"):
        torch.ops.detectron2.nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)


def test_applying_twice_changes_nothing():
    extension = sys.modules.get("detectron2._C")
    compat.apply()
    assert sys.modules.get("detectron2._C") is extension


def test_a_missing_detectron2_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match="(?s)Detectron2 is not installed.*pip install --no-deps.*requirements/detectron2.txt"
    ):
        compat.apply()


def run(code):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_importing_the_package_prints_nothing():
    assert run("import soma_det, soma_det.engine") == ""


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="older torch warns of less")
def test_each_warning_that_is_silenced_is_one_that_detectron2_causes():
    warned = run(
        "from soma_det.utils import compat\n"  # imports Detectron2, silently
        "import importlib, sys, warnings\n"
        "warnings.resetwarnings()\n"
        "for name in ('box_regression', 'anchor_generator'):\n"
        "    module = importlib.reload(sys.modules[f'detectron2.modeling.{name}'])\n"
        "import torch\n"
        "module._create_grid_offsets([2, 2], 16, 0.0, torch.zeros(1))\n"
        "from detectron2.engine import AMPTrainer\n"
        "layer = torch.nn.Linear(1, 1)\n"
        "AMPTrainer(layer, [{}], torch.optim.SGD(layer.parameters(), lr=1.0))\n"
    )
    for message in compat.DEPRECATIONS:
        assert re.search(message, warned), f"nothing causes {message}: drop it"
