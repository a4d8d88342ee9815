"""Detectron2 without its compiled extension: what works, and what is said of what does not."""

import importlib.util
import subprocess
import sys

import detectron2
import pytest
import torch
from detectron2.layers import batched_nms
from PIL import Image

from soma_det.utils import compat


def test_box_nms_and_pooling_need_no_compiled_extension():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    kept = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), 0.5)
    assert kept.tolist() == [0, 2]


@pytest.mark.skipif(not isinstance(detectron2._C, compat._MissingExtension), reason="this Detectron2 is compiled")
def test_an_op_of_the_missing_extension_names_itself():
    with pytest.raises(RuntimeError, match="detectron2._C.ml_nms needs Detectron2's compiled extension"):
        detectron2._C.ml_nms
    with pytest.raises(RuntimeError, match="nms_rotated needs Detectron2's compiled extension"):
        torch.ops.detectron2.nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)


def test_applying_twice_changes_nothing():
    extension = sys.modules.get("detectron2._C")
    compat.apply()
    assert sys.modules.get("detectron2._C") is extension
    assert Image.LINEAR == Image.Resampling.BILINEAR


def test_a_missing_detectron2_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match="(?s)Detectron2 is not installed.*pip install --no-deps.*requirements/detectron2.txt"
    ):
        compat.apply()


def test_importing_the_package_prints_nothing():
    run = subprocess.run(
        [sys.executable, "-c", "import soma_det, soma_det.engine"], capture_output=True, text=True, check=True
    )
    assert run.stdout + run.stderr == ""
