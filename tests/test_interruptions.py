"""check_interruptions.py: it kills, and it finds what differs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import check_interruptions as tool
import pytest
import torch
from interruption_differences import differences as find_differences

SCRIPT = Path(tool.__file__)


def write_run(folder, weight=0.0, loss=1.5, score=20.0):
    folder.mkdir()
    torch.save({"model": {"w": torch.tensor([weight, float("nan")])}, "iteration": 3}, folder / "model_final.pth")
    lines = [{"iteration": 19, "total_loss": 1.5, "time": torch.rand(1).item()}] * 2 + [
        {"iteration": 39, "total_loss": loss}
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text(json.dumps({"score": score, "folder": str(folder), "date": str(folder)}))
    return folder


def differences(one, other):
    return list(find_differences(one, other, ("model_*.pth", "metrics.json", "results.json")))


def test_times_dates_folders_and_lines_written_twice_are_no_difference(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    (other / "model_0000003.partial.pth").write_bytes(b"half")
    (other / ".results-abcdefgh.json").write_bytes(b"half")
    assert differences(one, other) == []


@pytest.mark.parametrize(
    "changes, name",
    [(dict(weight=-0.0), "model_final.pth: model: w"), (dict(loss=1.25), "metrics.json: 39: total_loss"),
     (dict(score=20.000000000000004), "results.json: score")],
)  # fmt: skip
def test_one_bit_is_a_difference(tmp_path, changes, name):
    found = differences(write_run(tmp_path / "one"), write_run(tmp_path / "other", **changes))
    assert len(found) == 1 and found[0].startswith(name)


def test_a_missing_file_is_a_difference(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    (other / "model_final.pth").unlink()
    assert differences(one, other) == [f"model_final.pth is only in {one}"]


def test_help_has_examples_and_a_used_folder_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--help"])
    assert "python tests/check_interruptions.py --target comparison" in capsys.readouterr().out
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        tool.parse_args(["--output", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["training", "corruptions", "comparison"])
def test_three_kills_change_no_bit(tmp_path, target):
    command = [sys.executable, str(SCRIPT), "--target", target, "--kills", "3", "--output", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything is bit-equal" in done.stdout and done.stdout.count("\nkill ") >= 3
