"""Two processes on CPUs, started by torchrun and by Detectron2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import CONFIG, options, write_data

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes_have_one_processs_gradients_and_keep_their_replicas_bit_equal(tmp_path):
    data, output = write_data(tmp_path / "data"), tmp_path / "output"
    output.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, str(HERE / "ddp_worker.py"), str(data), str(output)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert (output / "passed_0").exists() and (output / "passed_1").exists()
    assert (output / "results.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, --num-gpus is for GPUs")
def test_num_gpus_starts_processes_on_cpus_where_there_is_no_gpu(tmp_path):
    words = options(write_data(tmp_path / "data"), tmp_path / "output", SOLVER__MAX_ITER=2, SOLVER__CHECKPOINT_PERIOD=1)
    command = [sys.executable, str(HERE.parent / "tools" / "train_net.py"), "--config-file", CONFIG, "--num-gpus", "2"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    run = subprocess.run(
        [*command, "--dist-url", "auto", *map(str, words)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "World size: 2" in (tmp_path / "output" / "log.txt").read_text()
    assert (tmp_path / "output" / "results.json").exists()
