"""Two processes under torchrun with gloo."""

import subprocess
import sys
from pathlib import Path

import pytest
from training import write_data

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
