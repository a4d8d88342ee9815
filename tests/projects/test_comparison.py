"""Comparing adapters: the tool from its file of runs to its report."""

import fcntl
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import compare_adapters
import numpy as np
import pytest
import torch
import train_net
import yaml
from detectron2.modeling import build_model
from training import CONFIG, options, tiny_cfg, write_data

from adapter_comparison import TrainingProcess, load_comparison, plan_runs, write_report
from adapter_comparison.plan import Comparison, Configuration, require_comparable, require_validation
from adapter_comparison.process import Exit
from adapter_comparison.runs import (
    RECORD_FILE,
    Finished,
    Run,
    count_trainable,
    data_sha256,
    record_run,
    require_unchanged,
)
from adapter_comparison.training import train_one
from soma_det.adapters import ADAPTERS
from soma_det.config import setup_cfg
from soma_det.data import register_from_config

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "projects" / "AdapterComparison"
RESNET = PROJECT / "configs" / "ibn_resnet.yaml"
COMPARISONS = sorted(set((PROJECT / "configs").glob("*.yaml")) - {RESNET})
CLEAR, NIGHT = "tiny_daytime_clear_test", "tiny_night_sunny_test"
NAN = float("nan")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


# The list of runs


def write_comparison(path, data, runs=None, **content):
    """A comparison of the tiny detector; returns the file."""
    words = options(data, path.parent / "unused", SOLVER__MAX_ITER=2, SOLVER__STEPS=[], SOLVER__CHECKPOINT_PERIOD=1)
    shared = dict(zip(words[::2], words[1::2]))
    del shared["OUTPUT_DIR"]
    runs = runs or {"soma": {}, "biases": {"MODEL.ADAPTER.NAME": "biases", "MODEL.ADAPTER.RANK": 16}}
    content = {"config": CONFIG, "options": shared, "seeds": [1, 2], "reference": "soma", "runs": runs, **content}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_runs_own_settings_win_over_the_command_line_and_that_over_the_file(data, tmp_path):
    path = write_comparison(tmp_path / "c.yaml", data, {"soma": {}, "rank1": {"MODEL.ADAPTER.RANK": 1}})
    comparison = load_comparison(path, ["MODEL.ADAPTER.RANK", "3", "SOLVER.MAX_ITER", "9"])
    runs = plan_runs(comparison, tmp_path / "out")
    assert [(run.name, run.seed) for run in runs] == [("soma", 1), ("rank1", 1), ("soma", 2), ("rank1", 2)]
    assert [run.cfg.MODEL.ADAPTER.RANK for run in runs[:2]] == [3, 1]
    assert {run.cfg.SOLVER.MAX_ITER for run in runs} == {9}
    assert [run.cfg.SEED for run in runs] == [1, 1, 2, 2]
    assert str(tmp_path / "out" / "rank1" / "seed1") == runs[1].cfg.OUTPUT_DIR
    only = load_comparison(path, seeds=[7], reference="rank1", only=["soma"])
    assert [c.name for c in only.configurations] == ["soma", "rank1"] and only.seeds == (7,)


@pytest.mark.parametrize(
    "content, message",
    [
        (dict(seeds=[1, 1]), "distinct seeds"),
        (dict(seeds=[-1]), "distinct seeds from 0 on"),
        (dict(reference="sora"), "no run 'sora'; it has soma, biases"),
        (dict(rums={}), "unknown keys .'rums'."),
        (dict(runs={"a/b": {}}), "'a/b' names a folder"),
        (dict(runs={"soma": ["x"]}), "write KEY: VALUE pairs"),
        (dict(config="nowhere.yaml"), "nowhere.yaml, which does not exist"),
        (dict(config=""), "has no config"),
        (dict(seeds=3), "seeds is 3; it must be a list"),
        (dict(classes="car"), "classes is 'car'; it must be a list"),
    ],
)
def test_a_wrong_comparison_file_is_explained(data, tmp_path, content, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_comparison(write_comparison(tmp_path / "c.yaml", data, **content))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"SOLVER.MAX_ITER": 3}, "other and soma cannot be compared: SOLVER.MAX_ITER is 3 and 2"),
        ({"MODEL.PYRAMID.OUT_CHANNELS": 16}, "MODEL.PYRAMID.OUT_CHANNELS"),
        ({"DATASETS.TRAIN": ["tiny_night_sunny_train"]}, "other trains on tiny_night_sunny_train"),
        ({"DATASETS.TRAIN": [CLEAR]}, f"other trains on {CLEAR}"),
        ({"DATASETS.TEST": [CLEAR]}, "an unseen test set"),
    ],
)
def test_runs_that_differ_in_more_than_the_adapter_or_see_unseen_weather_are_refused(data, tmp_path, settings, message):
    path = write_comparison(tmp_path / "c.yaml", data, {"soma": {}, "other": settings})
    with pytest.raises(SystemExit, match=message):
        compare_adapters.main(["--config-file", str(path), "--output", str(tmp_path / "out")], train=None)
    assert not (tmp_path / "out").exists()


def test_settings_cannot_be_chosen_by_the_source_or_by_the_only_unseen_weather(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path)
    for validation in (CLEAR, NIGHT, "nowhere"):
        with pytest.raises(ValueError, match=f"validation of the comparison file is '{validation}'"):
            require_validation(cfg, validation)
    cfg = setup_cfg(CONFIG, [*options(data, tmp_path), "DATASETS.TEST", (CLEAR, NIGHT, "tiny_rainy_test")])
    require_validation(cfg, NIGHT)
    require_validation(cfg, "")


@pytest.mark.parametrize("path", COMPARISONS, ids=[path.stem for path in COMPARISONS])
def test_every_comparison_file_can_be_compared(path):
    runs = plan_runs(load_comparison(path, seeds=[1]), "output/comparison")
    if path.stem != "pretraining" and not {"recipe", "uda"} & set(path.stem.split("_")):  # those compare something else
        adapters = {"full", "soma", "lora"}
        adapters |= set() if path.stem.endswith("_rates") else {"frozen", "biases"}  # frozen weights have no rate
        assert adapters <= {run.cfg.MODEL.ADAPTER.NAME for run in runs}
    for run in runs:
        register_from_config(run.cfg)
    require_comparable({run.name: run.cfg for run in runs})
    require_validation(runs[0].cfg, load_comparison(path).validation)


def test_the_comparison_on_generated_scenes_has_every_adapter():
    runs = plan_runs(load_comparison(PROJECT / "configs" / "synthdrive.yaml", seeds=[1]), "output")
    assert set(ADAPTERS) == {run.cfg.MODEL.ADAPTER.NAME for run in runs}


def test_the_resnet_baseline_builds_without_a_vit():
    cfg = setup_cfg(str(RESNET))
    assert cfg.MODEL.DEVICE == "cpu"
    backbone = build_model(cfg).backbone
    assert list(backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6", "p7"]
    assert count_trainable(cfg)["adapter"] > 0


def test_pyramid_and_head_start_alike_with_every_adapter(data, tmp_path):
    states = []
    for name in ("frozen", "soma", "lora", "rein"):
        rank = 16 if name == "frozen" else 2
        torch.manual_seed(1)
        model = build_model(tiny_cfg(data, tmp_path, MODEL__ADAPTER__NAME=name, MODEL__ADAPTER__RANK=rank))
        states.append({k: v for k, v in model.state_dict().items() if not k.startswith("backbone.net.")})
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for key, value in state.items():
            assert torch.equal(value, states[0][key]), key


def test_trainable_parameters_by_hand(data, tmp_path):
    # test_vit: width 64, MLP 192. In each block q, k, v and proj (64 x 64), fc1 and fc2 (64 x 192), each at rank 2.
    cfg = tiny_cfg(data, tmp_path)
    layers = 2 * (4 * (64 + 64) + 2 * (64 + 192))
    biases = 4 * 64 + 192 + 64
    depth = len(build_model(cfg).backbone.net.model.blocks)
    counts = count_trainable(cfg)
    assert counts["adapter"] == (depth - 2) * (layers + biases)
    frozen = count_trainable(tiny_cfg(data, tmp_path, MODEL__ADAPTER__NAME="frozen", MODEL__ADAPTER__RANK=16))
    assert frozen == {"adapter": 0, "all": counts["all"] - counts["adapter"]}


# The report


def result(clear, per_class):
    return {
        "bbox": {"AP": clear / 2, **{f"AP-{name}": ap / 2 for name, ap in per_class.items()}},
        "voc": {"AP50": clear, **{f"AP50-{name}": ap for name, ap in per_class.items()}},
        "boxes": {"car": 5, "bus": 1},
        "images": {"count": 3},
    }


def finished(cfg, tmp_path, name, seed, clear, night):
    """A run that scored the same for all classes on clear days, and 10 less for buses than for cars at night."""
    results = {
        CLEAR: result(clear, {"car": clear, "bus": clear}),
        NIGHT: result(night, {"car": night + 5, "bus": night - 5}),
    }
    resampled = {CLEAR: np.full((20, 2), clear), NIGHT: np.tile([night + 5.0, night - 5.0], (20, 1))}
    record = {
        "arguments": ["--config-file", "a.yaml", "--resume", "MODEL.ADAPTER.NAME", name, "SEED", str(seed)],
        "trainable_parameters": {"adapter": 1000, "all": 2000},
        "seconds_per_iteration": 0.1 * seed,
        "peak_memory_mb": 100.0 * seed,
        "seconds": 1.0,
    }
    return Finished(Run(name, seed, (), tmp_path / name / f"seed{seed}", cfg), record, results, resampled)


@pytest.fixture
def trained(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path)
    scores = {
        ("soma", 1): (60.0, 30.0),
        ("soma", 2): (64.0, 34.0),
        ("lora", 1): (61.0, 29.0),
        ("lora", 2): (65.0, 31.0),
    }
    return [finished(cfg, tmp_path, *key, *values) for key, values in scores.items()]


def comparison_of(names, classes=(), validation=""):
    configurations = tuple(Configuration(name, "a.yaml", ()) for name in names)
    return Comparison(configurations, (1, 2), "soma", tuple(classes), validation)


def test_the_report_holds_the_numbers_of_all_runs(trained, tmp_path):
    text = write_report(tmp_path, comparison_of(["soma", "lora"]), trained, {}, [], {"date": "today"})
    content = json.loads((tmp_path / "results.json").read_text())
    soma = content["scores"]["voc_AP50"]["soma"]
    assert soma["unseen"]["mean"] == 32 and soma["unseen"]["sd"] == pytest.approx(math.sqrt(8))
    assert soma[CLEAR] == {"values": {"1": 60, "2": 64}, "mean": 62, "sd": pytest.approx(math.sqrt(8))}
    assert soma["relative"]["mean"] == pytest.approx(100 * (30 / 60 + 34 / 64) / 2)
    assert content["scores"]["coco_AP"]["soma"]["unseen"]["mean"] == 16
    difference = content["differences"]["lora"]["unseen"]
    assert difference["values"] == {"1": -1, "2": -3} and difference["mean"] == -2
    assert difference["sd"] == pytest.approx(math.sqrt(2)) and difference["interval"] == [-3, -1]
    assert content["per_class"]["lora"]["bus"]["mean"] == 25
    cost = content["configurations"]["soma"]
    assert cost["seconds_per_iteration"] == pytest.approx(0.15) and cost["peak_memory_mb"] == 200
    assert "32.0 ± 2.8" in text and "-2.0 [-3.0, -1.0]" in text and "0 of 2" in text
    markdown = (tmp_path / "results.md").read_text()
    assert (
        "no checkpoint\n  was chosen by its score" in markdown
        and "2 seeds are few" in markdown
        and "Not complete" not in markdown
    )
    # Seeds: sd^2 = 2 over 2 seeds; images: none. 2.801585 sqrt(2 / 2) = 2.8
    assert content["noise"] == {"seed_sd": pytest.approx(math.sqrt(2)), "image_sd": 0}
    assert "Detectable difference of the unseen mean: 2.8 points" in markdown
    assert "- lora: `MODEL.ADAPTER.NAME lora`" in markdown and "- all: `--config-file a.yaml`" in markdown
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_scores_over_chosen_classes_are_their_mean_in_table_and_interval(trained, tmp_path):
    write_report(tmp_path, comparison_of(["soma", "lora"], ["car"]), trained, {}, [], {})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["scores"]["voc_AP50"]["soma"]["unseen"]["mean"] == 37
    assert content["scores"]["coco_AP"]["lora"]["unseen"]["mean"] == 17.5
    assert content["differences"]["lora"]["unseen"]["interval"] == [-3, -1]
    assert "VOC AP50 of car" in (tmp_path / "results.md").read_text()


def test_settings_chosen_by_the_source_and_one_weather_are_reported_by_the_others(trained, tmp_path):
    fog = "tiny_foggy_test"
    for one, score in zip(trained, (20.0, 22.0, 27.0, 25.0)):
        one.results[fog], one.resampled[fog] = result(score, {"car": score, "bus": score}), np.full((20, 2), score)
    text = write_report(tmp_path, comparison_of(["lora", "soma"], validation=NIGHT), trained, {}, [], {})
    content = json.loads((tmp_path / "results.json").read_text())
    chosen = {name: scores["choosing"]["mean"] for name, scores in content["scores"]["voc_AP50"].items()}
    assert chosen == {"soma": 47, "lora": 46.5}  # soma: (60 + 30) / 2 and (64 + 34) / 2
    assert content["differences"]["lora"]["held_out"] == {
        "values": {"1": 7, "2": 3}, "mean": 5, "sd": pytest.approx(math.sqrt(8)), "interval": [3, 7], "image_sd": 0,
    }  # fmt: skip
    table = text.split("settings chosen by daytime clear and night sunny and confirmed on the rest")[1].split("cost")[0]
    assert table.index("soma") < table.index("lora") and "+5.0 [+3.0, +7.0]" in table


def test_a_report_of_one_run_leaves_out_what_takes_more(trained, tmp_path):
    write_report(tmp_path, comparison_of(["soma", "lora"]), trained[2:3], {}, [trained[0].run], {})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["differences"] == {} and content["scores"]["voc_AP50"]["lora"]["unseen"]["sd"] is None
    assert "not trained yet: soma, seed 1" in (tmp_path / "results.md").read_text()


def test_runs_tested_on_different_boxes_are_not_put_side_by_side(trained, tmp_path):
    trained[3].results[NIGHT]["boxes"] = {"car": 6, "bus": 1}
    with pytest.raises(ValueError, match="(?s)lora, seed 2 and soma, seed 1 were tested on different data.*delete"):
        write_report(tmp_path, comparison_of(["soma", "lora"]), trained, {}, [], {})


# Training


class TrainHere:
    """Trains in this process, which spares the start of a new one; notes what, and can be interrupted or fail."""

    def __init__(self, interrupt_at=None, fail=()):
        self.trained, self.interrupt_at, self.fail = [], interrupt_at, fail

    def __call__(self, arguments, log):
        name = log.parent.parent.name
        if len(self.trained) == self.interrupt_at:
            raise KeyboardInterrupt
        self.trained.append((name, int(log.parent.name.removeprefix("seed"))))
        if name in self.fail:
            log.write_text("Traceback\nRuntimeError: out of luck\n\n")
            return Exit(1)
        train_net.main(train_net.parse_args(list(arguments)))
        return Exit(0, 512.0)


def compare(path, output, train, *words):
    return compare_adapters.main(["--config-file", str(path), "--output", str(output), *words], train=train)


def test_a_comparison_goes_on_after_an_interruption_skips_what_is_done_and_refuses_changes(data, tmp_path, capsys):
    path, output = write_comparison(tmp_path / "c.yaml", data), tmp_path / "out"
    first = TrainHere(interrupt_at=3)
    assert compare(path, output, first) == 130
    assert first.trained == [("soma", 1), ("biases", 1), ("soma", 2)]
    assert "not trained yet: biases, seed 2" in (output / "results.md").read_text()
    second = TrainHere()
    assert compare(path, output, second) == 0
    assert second.trained == [("biases", 2)]
    content = json.loads((output / "results.json").read_text())
    assert content["missing"] == content["failed"] == []
    assert list(content["scores"]["voc_AP50"]) == ["soma", "biases"]
    assert list(content["differences"]["biases"]["unseen"]["values"]) == ["1", "2"]
    assert content["configurations"]["soma"]["peak_memory_mb"] == 512
    assert not list(output.rglob("*.pth")) and not list(output.rglob("last_checkpoint"))
    third = TrainHere()
    assert compare(path, output, third) == 0 and third.trained == []
    assert "VOC AP50 minus that of soma" in capsys.readouterr().out
    with pytest.raises(
        SystemExit, match=r"(?s)was trained with SOLVER.BASE_LR 0.0002, where now it is 0.1.*another --output"
    ):
        compare(path, output, third, "SOLVER.BASE_LR", "0.1")
    assert third.trained == []


def test_a_failed_run_is_reported_with_its_log_and_the_others_go_on(data, tmp_path, capsys):
    path, output = write_comparison(tmp_path / "c.yaml", data, seeds=[1]), tmp_path / "out"
    assert compare(path, output, TrainHere(fail=["soma"]), "--keep-checkpoints") == 1
    failure = json.loads((output / "results.json").read_text())["failed"][0]
    assert failure["run"] == "soma, seed 1" and failure["log"].endswith("soma/seed1/train.log")
    assert "RuntimeError: out of luck" in failure["why"]
    assert "FAILED soma, seed 1" in capsys.readouterr().out
    assert (output / "biases" / "seed1" / "model_final.pth").is_file()
    again = TrainHere()
    assert compare(path, output, again) == 0 and again.trained == [("soma", 1)]


def test_an_interrupted_comparison_still_tells_which_runs_have_failed(data, tmp_path, capsys):
    path, output = write_comparison(tmp_path / "c.yaml", data), tmp_path / "out"
    assert compare(path, output, TrainHere(interrupt_at=2, fail=["soma"])) == 130
    assert [failure["run"] for failure in json.loads((output / "results.json").read_text())["failed"]] == [
        "soma, seed 1"
    ]
    assert "FAILED soma, seed 1" in capsys.readouterr().out


def test_a_run_that_cannot_be_recorded_has_failed_and_the_others_go_on(data, tmp_path, monkeypatch):
    path, output = write_comparison(tmp_path / "c.yaml", data, seeds=[1]), tmp_path / "out"

    def full(run, *others):
        if run.name == "soma":
            raise OSError("no space left")
        record_run(run, *others)

    monkeypatch.setattr("adapter_comparison.training.record_run", full)
    assert compare(path, output, TrainHere()) == 1
    assert "no space left" in json.loads((output / "results.json").read_text())["failed"][0]["why"]
    assert (output / "biases" / "seed1" / RECORD_FILE).is_file()


def test_missing_pretrained_weights_are_noticed_before_anything_is_trained(data, tmp_path):
    lost = {"MODEL.VIT.WEIGHTS": str(tmp_path / "lost.safetensors")}
    train = TrainHere()
    with pytest.raises(SystemExit, match="lost.safetensors"):
        compare(write_comparison(tmp_path / "c.yaml", data, {"soma": {}, "lost": lost}), tmp_path / "out", train)
    assert train.trained == []


def test_a_signal_that_comes_before_the_process_is_passed_on_to_it(tmp_path, monkeypatch):
    start = subprocess.Popen

    def late(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return start(*arguments, **options)

    monkeypatch.setattr("subprocess.Popen", late)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        TrainingProcess([sys.executable, "-c", "import time; time.sleep(60)"])([], tmp_path / "log")
    assert time.monotonic() - begun < 30


def test_a_run_evaluated_but_not_recorded_is_evaluated_again_and_not_trained(data, tmp_path):
    path, output = write_comparison(tmp_path / "c.yaml", data, {"soma": {}}, seeds=[1]), tmp_path / "out"
    assert compare(path, output, TrainHere(), "--keep-checkpoints") == 0
    folder = output / "soma" / "seed1"
    lines, scores = (folder / "metrics.json").read_text(), (folder / "results.json").read_text()
    (folder / "run.json").unlink()
    assert compare(path, output, TrainHere(), "--keep-checkpoints") == 0
    new = [json.loads(line) for line in (folder / "metrics.json").read_text()[len(lines) :].splitlines()]
    assert not any("total_loss" in line for line in new)
    assert json.loads((folder / "results.json").read_text())["results"] == json.loads(scores)["results"]


def test_other_data_under_the_same_names_are_noticed(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path)
    run = Run("soma", 1, (), tmp_path / "soma" / "seed1", cfg)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(cfg.dump())
    fingerprint = data_sha256((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    (run.folder / "run.json").write_text(json.dumps({"weights_sha256": "", "data_sha256": fingerprint}))
    require_unchanged(run)
    assert data_sha256(cfg.DATASETS.TEST) != fingerprint  # without the training images
    (run.folder / "run.json").write_text(json.dumps({"weights_sha256": "", "data_sha256": data_sha256(())}))
    with pytest.raises(ValueError, match="was trained with other images or boxes"):
        require_unchanged(run)


def test_other_pretrained_weights_under_the_same_name_are_noticed(data, tmp_path):
    weights = tmp_path / "vit.pth"
    weights.write_bytes(b"the first")
    run = Run("soma", 1, (), tmp_path / "soma" / "seed1", tiny_cfg(data, tmp_path, MODEL__VIT__WEIGHTS=str(weights)))
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(run.cfg.dump())
    (run.folder / "run.json").write_text(json.dumps({"weights_sha256": hashlib.sha256(b"the first").hexdigest()}))
    require_unchanged(run)
    weights.write_bytes(b"the second")
    with pytest.raises(ValueError, match="(?s)another content of .*vit.pth.*delete"):
        require_unchanged(run)


def test_a_run_that_another_process_trains_is_left_to_it(data, tmp_path):
    run = Run("soma", 1, (), tmp_path / "soma" / "seed1", tiny_cfg(data, tmp_path))
    run.folder.mkdir(parents=True)
    with (run.folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        trained = []
        assert train_one(run, lambda arguments, log: trained.append(arguments)) == ""
        (run.folder / RECORD_FILE).write_text("{}")  # as the other process does in the end
        fcntl.flock(file, fcntl.LOCK_UN)
        assert train_one(run, lambda arguments, log: trained.append(arguments)) == ""
    assert not trained


def test_a_training_process_reports_exit_code_and_peak_memory_and_logs_its_command(tmp_path):
    code = "import sys, time; b'1' * (200 << 20); time.sleep(0.8); print('said', sys.argv[1]); sys.exit(3)"
    exit = TrainingProcess([sys.executable, "-c", code])(["MODEL.X 1"], tmp_path / "log")
    assert exit.code == 3 and 200 < exit.peak_memory_mb < 300
    log = (tmp_path / "log").read_text()
    assert "'MODEL.X 1'\n" in log and "said MODEL.X 1" in log


def test_an_interrupt_reaches_the_training_once_and_waits_until_it_has_saved(tmp_path):
    code = """
import signal, sys, time
count = 0
def note(number, frame):
    global count
    count += 1
signal.signal(signal.SIGINT, note)
print("ready", flush=True)
while not count:
    time.sleep(0.01)
time.sleep(0.3)
print("saved after", count, flush=True)
sys.exit(130)
"""
    log, train = tmp_path / "log", TrainingProcess([sys.executable, "-c", code])

    def interrupt():
        while not (log.exists() and "\nready" in log.read_text()):
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train([], log)
    thread.join()
    assert log.read_text().endswith("saved after 1\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_the_tool_trains_in_processes_of_their_own(data, tmp_path, capsys):
    path = write_comparison(tmp_path / "c.yaml", data, seeds=[1])
    assert compare_adapters.main(["--config-file", str(path), "--output", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "soma" / "seed1" / "run.json").read_text())
    assert record["peak_memory_mb"] > 100 and record["trainable_parameters"]["adapter"] > 0
    assert "tools/train_net.py" in (tmp_path / "out" / "soma" / "seed1" / "train.log").read_text()


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        compare_adapters.parse_args(["--help"])
    assert "projects/AdapterComparison/configs/synthdrive.yaml --output" in capsys.readouterr().out
