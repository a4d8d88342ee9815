"""tools/train_net.py as a user runs it: train, interrupt, resume, evaluate, and what wrong input gets."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from training import CONFIG, options, write_data

TOOL = Path(__file__).parents[1] / "tools" / "train_net.py"
spec = importlib.util.spec_from_file_location("train_net", TOOL)
train_net = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train_net)


def run(data, output, *flags, **changes):
    words = [str(word) for word in options(data, output, **changes)]
    return train_net.main(train_net.parse_args(["--config-file", CONFIG, *flags, *words]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_it_trains_resumes_and_evaluates_into_one_folder(data, tmp_path):
    short = dict(SOLVER__MAX_ITER=2, SOLVER__STEPS=[])
    run(data, tmp_path, **short)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    trained = json.loads((tmp_path / "results.json").read_text())
    with pytest.raises(SystemExit, match="holds the checkpoints of another run: continue it with --resume"):
        run(data, tmp_path, **short)
    run(data, tmp_path, "--resume", SOLVER__MAX_ITER=3, SOLVER__STEPS=[])
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [1, 2]
    (tmp_path / "results.json").unlink()
    run(data, tmp_path, "--eval-only", MODEL__WEIGHTS=f"{tmp_path}/model_final.pth")
    evaluated = json.loads((tmp_path / "results.json").read_text())
    assert evaluated["results"].keys() == trained["results"].keys()
    assert evaluated["metadata"]["weights"].endswith("model_final.pth")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(MODEL__ADAPTER__NAME="sora"), "(?s)Unknown adapter 'sora'.*lora.*soma"),
        (dict(DATASETS__TRAIN=["tiny_daytime_claer_train"]), "(?s)tiny_daytime_claer_train.*tiny_daytime_clear_train"),
        (dict(DATASETS__WEATHER__ROOT="/nowhere"), "(?s)/nowhere.*DATASETS.WEATHER.ROOT"),
        (dict(DATASETS__COCO_JSON=[["mine", "/nowhere.json", "/"]]), "nowhere.json does not exist"),
        (dict(MODEL__ROI_HEADS__NUM_CLASSES=3), "MODEL.ROI_HEADS.NUM_CLASSES"),
        (dict(SOLVER__MAX_ITERS=3), "Did you mean SOLVER.MAX_ITER"),
    ],
)
def test_wrong_input_is_explained_and_leaves_no_output_folder(data, tmp_path, changes, message):
    output = tmp_path / "output"
    with pytest.raises(SystemExit, match=message):
        run(data, output, **changes)
    assert not output.exists()


@pytest.mark.parametrize(
    "device, flags, message",
    [
        ("cpu", ["--num-gpus", "2"], "with MODEL.DEVICE cpu: this machine has a GPU.*CUDA_VISIBLE_DEVICES"),
        ("cuda", ["--num-gpus", "3"], "--num-gpus is 3, and there are 2 GPUs"),
        ("cuda:1", ["--num-gpus", "2"], "one GPU for several processes"),
        ("cuda:2", [], "there are 2 GPUs"),
        ("gpu", [], "'gpu'.*set it to cuda or cpu"),
    ],
)
def test_devices_that_processes_cannot_use_are_explained(data, tmp_path, monkeypatch, device, flags, message):
    monkeypatch.setattr(train_net.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(train_net.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit, match=message):
        run(data, tmp_path / "output", *flags, MODEL__DEVICE=device)
    assert not (tmp_path / "output").exists()


def test_wrong_input_is_explained_once_and_before_processes_start(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_net, "launch", lambda *args, **options: pytest.fail("processes were started"))
    for flags, changes in ((["--num-gpus", "2"], dict(MODEL__DEVICE="tpu")), ([], dict(SOLVER__MAX_ITERS=3))):
        words = [str(word) for word in options(data, tmp_path, **changes)]
        with pytest.raises(SystemExit, match="train_net.py: "):
            train_net.start(train_net.parse_args(["--config-file", CONFIG, *flags, *words]))


@pytest.mark.parametrize("own, expected", [(None, "passive"), ("active", "active")])
def test_openmps_threads_wait_passively_unless_told_otherwise(monkeypatch, own, expected):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    before_torch = TOOL.read_text().split("import soma_det")[0]  # where OpenMP is not loaded yet
    exec(compile(before_torch, str(TOOL), "exec"), {})
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_help_has_examples_and_names_every_method(capsys):
    with pytest.raises(SystemExit):
        train_net.parse_args(["--help"])
    text = capsys.readouterr().out
    assert "--eval-only MODEL.WEIGHTS" in text and "torchrun" in text
    for name in ("soma", "moa", "rein", "frozen", "build_ibn_resnet_fpn_backbone"):
        assert name in text


def test_a_missing_config_file_is_named(capsys):
    for argv, message in (([], "--config-file is required"), (["--config-file", "x.yaml"], "no config file x.yaml")):
        with pytest.raises(SystemExit):
            train_net.parse_args(argv)
        assert message in capsys.readouterr().err
