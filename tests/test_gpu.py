"""What only a machine with a GPU can show; skipped without one. How to run and report it: docs/gpu.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import CONFIG, options, write_data

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
KINDS = {
    "fp32": {},
    "fp16": dict(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="float16"),
    "bf16": dict(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="bfloat16", TEST__AMP__ENABLED=True),
    "compile": dict(TEST__COMPILE=True),
    "deterministic": dict(SOLVER__DETERMINISTIC=True),
}


def run(data, output, *flags, **changes):
    """Train or evaluate by the command line, in a process of its own; returns the weights and the scores."""
    words = options(data, output, MODEL__DEVICE="cuda", **changes)
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", CONFIG, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *map(str, words)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    weights = torch.load(output / "model_final.pth", map_location="cpu", weights_only=True)["model"]
    return weights, json.loads((output / "results.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_and_evaluates(tmp_path, kind):
    weights, results = run(write_data(tmp_path / "data"), tmp_path / "output", **KINDS[kind])
    assert all(torch.isfinite(tensor).all() for tensor in weights.values()) and results


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    data, changes = write_data(tmp_path / "data"), dict(SOLVER__DETERMINISTIC=True)
    whole, _ = run(data, tmp_path / "whole", **changes)
    run(data, tmp_path / "parts", **changes)
    (tmp_path / "parts" / "model_final.pth").unlink()
    (tmp_path / "parts" / "model_0000005.pth").unlink()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000002.pth")
    resumed, _ = run(data, tmp_path / "parts", "--resume", **changes)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_together_and_evaluate(tmp_path):
    weights, _ = run(write_data(tmp_path / "data"), tmp_path / "output", "--num-gpus", "2", "--dist-url", "auto")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert "World size: 2" in (tmp_path / "output" / "log.txt").read_text()
