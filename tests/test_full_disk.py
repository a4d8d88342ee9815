"""Where a file cannot be written: the error names it and says what to do, and what was there before stays."""

import importlib.util
import json
import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import compare_adapters
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from training import CONFIG, options, write_data

from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer
from soma_det.engine.output_dir import check_writable, locked_output_dir
from soma_det.utils.files import UnwrittenFileError, atomic_path, write_text

TOOLS = Path(__file__).parents[1] / "tools"
UNTESTED = dict(DATASETS__TEST=[], DATASETS__SOURCE_TEST="")
REMEDY = "could not be written: .*Make room there and run the command again, a training with --resume"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train_net, evaluate_corruptions = load_tool("train_net"), load_tool("evaluate_corruptions")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def train(data, output, *flags, **changes):
    words = [str(word) for word in options(data, output, **changes)]
    return train_net.main(train_net.parse_args(["--config-file", CONFIG, *flags, *words]))


@contextmanager
def files_up_to(size):
    """Inside, the system refuses to let any file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mount(folder, settings):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a file system")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    mount(folder, "size=4m")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def contents(folder):
    """The bytes of every file but logs, which grow."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".pth", ".yaml", "")]
    return {path.name: path.read_bytes() for path in files if "events" not in path.name}


# A full disk


@pytest.mark.parametrize("write", ["text", "image", "arrays"])
def test_a_result_that_does_not_fit_is_named_and_the_one_before_it_stays(tmp_path, write):
    path = tmp_path / ("result" + {"text": ".json", "image": ".png", "arrays": ".npz"}[write])
    path.write_bytes(b"before")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    with pytest.raises(UnwrittenFileError, match=f"{path.name} {REMEDY}"), files_up_to(5_000):
        if write == "text":
            write_text(path, "x" * 10_000)
        else:
            with atomic_path(path) as temporary:
                Image.fromarray(noise).save(temporary) if write == "image" else np.savez(temporary, noise=noise)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == [path.name]


def test_a_checkpoint_that_does_not_fit_is_named_and_the_ones_before_it_stay(tmp_path):
    checkpointer = AtomicCheckpointer(nn.Linear(200, 200), str(tmp_path))
    checkpointer.save("model_0000001")
    before = contents(tmp_path)
    with pytest.raises(UnwrittenFileError, match=f"model_0000002.pth {REMEDY}"), files_up_to(20_000):
        checkpointer.save("model_0000002")
    assert contents(tmp_path) == before and set(before) == {"model_0000001.pth", "last_checkpoint"}


def test_an_error_of_another_kind_comes_out_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "result.json"):
        (tmp_path / "input.json").read_text()


def test_a_training_on_a_full_disk_says_so_and_goes_on_when_there_is_room(data, tmp_path, small_disk):
    changes = dict(SOLVER__CHECKPOINT_PERIOD=1, **UNTESTED)
    train(data, tmp_path / "whole", **changes)
    output = small_disk / "run"
    with pytest.raises(SystemExit, match=f"train_net.py: .*{output}.* {REMEDY}"):
        train(data, output, **changes)
    left = sorted(output.glob("model_*.pth"))
    assert 0 < len(left) < 6 and not list(output.glob("*.partial*"))
    for path in left:
        expected = torch.load(tmp_path / "whole" / path.name, weights_only=True)["model"]
        saved = torch.load(path, weights_only=True)["model"]
        assert all(torch.equal(tensor, saved[name]) for name, tensor in expected.items())
    assert (output / "last_checkpoint").read_text() == left[-1].name
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    train(data, output, "--resume", **changes)
    whole, resumed = (torch.load(f / "model_final.pth", weights_only=True) for f in (tmp_path / "whole", output))
    assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in whole["model"].items())
    assert all(json.loads(line) for line in (output / "metrics.json").read_text().splitlines())


def test_half_a_line_of_metrics_makes_way_for_the_next_training(tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"iteration": 19}\n{"iteration": 39, "total_lo')
    with locked_output_dir(str(tmp_path)):
        assert metrics.read_text() == '{"iteration": 19}\n'


# A folder that cannot be written to


@pytest.fixture(params=["below a file", "read-only"])
def closed(request, tmp_path):
    """A folder for output that nobody, not even root, can write to."""
    if request.param == "below a file":
        (tmp_path / "file").write_text("not a folder")
        yield tmp_path / "file" / "output"
        return
    mount(tmp_path / "mounted", "ro,size=1m")
    yield tmp_path / "mounted"
    subprocess.run(["umount", "--lazy", str(tmp_path / "mounted")], check=True)


def test_a_training_into_a_folder_that_cannot_be_written_to_ends_before_it_begins(data, closed):
    with pytest.raises(SystemExit, match=f"train_net.py: {closed} cannot be written to .*choose another output folder"):
        train(data, closed)


def test_an_evaluation_of_corruptions_finds_a_closed_folder_before_it_loads_the_model(data, tmp_path, closed):
    words = [str(word) for word in options(data, tmp_path)]
    arguments = ["--config-file", CONFIG, "--weights", "absent.pth", "--output", str(closed), "--opts", *words]
    names = ["--corruptions", "simulated_daytime_foggy"]
    with pytest.raises(ValueError, match=f"{closed} cannot be written to"):
        evaluate_corruptions.main(evaluate_corruptions.parse_args([*names, *arguments]))


def test_a_comparison_finds_a_closed_folder_before_it_trains(data, tmp_path, closed):
    words = options(data, tmp_path)
    shared = dict(zip(words[::2], words[1::2]))
    del shared["OUTPUT_DIR"]
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump({"config": CONFIG, "options": shared, "seeds": [1], "runs": {"soma": {}}}))
    trained = []
    with pytest.raises(SystemExit, match=f"{closed} cannot be written to"):
        compare_adapters.main(["--config-file", str(path), "--output", str(closed)], train=trained.append)
    assert not trained


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_folder_without_permission_to_write_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="cannot be written to .*Permission denied"):
        check_writable(str(tmp_path))


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(tmp_path):
    check_writable(str(tmp_path / "new" / "folder"))
    assert os.listdir(tmp_path / "new" / "folder") == []
