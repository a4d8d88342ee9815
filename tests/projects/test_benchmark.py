"""The benchmarks run, and their tables agree with their JSON files. No test depends on how long anything takes."""

import json
import re

import benchmark
import numpy as np
import pytest
import torch
from torch import nn
from training import CONFIG, options, write_data

from benchmarks.contestants import TwoBranchLinear, adapt, adapted_blocks, create_vit
from benchmarks.evaluation import random_boxes, score_with_pycocotools, score_with_soma_det
from benchmarks.timing import Timing, interleave, ratio
from soma_det.adapters.selection import select_linears
from soma_det.adapters.soma import SomaLinear

MODEL = ["--vit", "test_vit", "--pixels", "64", "--rank", "2", "--rounds", "2"]
RUNS = {
    "train": [*MODEL, "--batch", "1"],
    "detector": [*MODEL[:-1], "1", "--batch", "1", "--detector", "--contestants", "biases", "soma"],
    "infer": MODEL,
    "init": MODEL,
    "data": ["--images", "2", "--rounds", "1"],
    "eval": ["--images", "8", "--detections", "6"],
}


@pytest.fixture(autouse=True)
def same_threads():
    """The data benchmark sets the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def table(text, first_column):
    """The rows of the Markdown table whose first column has this heading."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    start = next(i for i, cells in enumerate(lines) if cells[0] == first_column)
    rows = []
    for cells in lines[start + 2 :]:
        if len(cells) != len(lines[start]) or set(cells[0]) <= set("-:"):
            break
        rows.append(dict(zip(lines[start], cells)))
    return rows


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=pytest.mark.slow if run == "detector" else ()) for run in RUNS]
)
def test_every_benchmark_runs_and_its_table_and_json_agree(run, tmp_path, capsys):
    command, output = "train" if run == "detector" else run, tmp_path / "out" / "result.json"
    benchmark.main([command, *RUNS[run], "--output", str(output)])
    text, content = capsys.readouterr().out, json.loads(output.read_text())
    assert content["rows"]
    printed = table(text, next(iter(content["rows"][0])))
    assert len(printed) >= len(content["rows"])
    for row, cells in zip(content["rows"], printed):
        assert row.keys() == cells.keys()
        for column, value in row.items():
            if isinstance(value, float):
                assert float(cells[column]) == pytest.approx(value, rel=1e-3), column
            else:
                assert cells[column] == str(value)
    assert content["settings"]["seed"] == 0
    assert content["versions"]["timm"] in text and content["machine"]["cpu"] in text


def test_steps_with_and_without_determinism_take_turns_and_torch_is_left_as_it_was(tmp_path):
    words = map(str, options(write_data(tmp_path / "data"), tmp_path / "run"))
    output = str(tmp_path / "result.json")
    benchmark.main(["determinism", "--rounds", "2", "--output", output, "--config-file", CONFIG, *words])
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["SOLVER.DETERMINISTIC"] for row in rows] == ["without", "with"] and rows[0]["by CPU time"] == 1
    assert not torch.are_deterministic_algorithms_enabled() and not (tmp_path / "run").exists()


def test_exactness_that_the_benchmarks_measure_holds(tmp_path):
    limits = {}
    for run in ("infer", "init", "eval"):
        benchmark.main([run, *RUNS[run], "--output", str(tmp_path / "result.json")])
        limits |= {limit["what"]: limit for limit in json.loads((tmp_path / "result.json").read_text())["limits"]}
    for what in (
        "relative change of the outputs by merging",
        "relative error of B A against the full SVD",
        "distance of the projectors on the spans",
        "largest difference of any class and metric, of 100",
    ):
        assert limits[what]["met"], limits[what]


def test_both_coco_metrics_are_of_the_same_detections_and_neither_is_trivial():
    truth, detections = random_boxes(30, 20, seed=1)
    ours, theirs = score_with_soma_det(truth, detections), score_with_pycocotools(truth, detections)
    assert np.allclose(ours, theirs, atol=1e-6, equal_nan=True)
    assert 0 < np.nanmean(ours) < 100


def test_contestants_share_layers_and_rank_and_differ_in_what_trains():
    pytest.importorskip("peft")
    plain = create_vit("test_vit", 64)
    layers = select_linears(plain, adapted_blocks(plain))
    trained = {}
    for name in ("biases", "soma", "two_branch", "peft_lora", "frozen", "full"):
        vit = create_vit("test_vit", 64)
        adapt(vit, name, 2)
        trained[name] = sum(p.numel() for p in vit.parameters() if p.requires_grad)
    biases = sum(plain.get_submodule(name).bias.numel() for name in layers)
    factors = sum(2 * sum(plain.get_submodule(name).weight.shape) for name in layers)
    qkv = [plain.get_submodule(name) for name in layers if name.endswith("qkv")]
    thirds = sum(2 * 2 * layer.in_features for layer in qkv)  # A of k and v; B has the same size either way
    assert trained["frozen"] == 0 and trained["biases"] == biases
    assert trained["soma"] == trained["two_branch"] == biases + factors + thirds
    assert trained["peft_lora"] == biases + factors
    assert trained["full"] > trained["soma"]


def test_the_two_branch_reference_computes_what_soma_does():
    layer = SomaLinear(nn.Linear(8, 12).double(), 2, parts=3)
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.allclose(TwoBranchLinear(layer)(x), layer(x))


def test_every_round_runs_all_contestants_and_warmups_do_not_count():
    calls = []
    contestants = {name: [("part", lambda name=name: calls.append(name))] for name in "abc"}
    timings = interleave(contestants, rounds=4, warmup=2)
    assert [sorted(calls[i : i + 3]) for i in range(0, 18, 3)] == [list("abc")] * 6
    assert all(len(timings[name]["part"].wall) == 4 for name in "abc")
    # One slow spell, the second round: the quotients within rounds are 2, 2 and 3.
    assert ratio(Timing(wall=[2.0, 20.0, 6.0]), Timing(wall=[1.0, 10.0, 2.0])) == 2
    assert Timing(wall=[1.0, 2.0, 3.0, 4.0, 5.0]).quartiles == (2.0, 4.0)


def test_unknown_contestants_and_missing_gpus_are_refused(capsys, monkeypatch):
    with pytest.raises(ValueError, match="Unknown contestants .'lore'"):
        benchmark.main(["train", *MODEL, "--contestants", "lore"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for wrong, message in ((["--device", "cuda"], "finds no GPU"), (["--rounds", "0"], "--rounds is 0")):
        with pytest.raises(SystemExit):
            benchmark.main(["train", *wrong])
        assert message in capsys.readouterr().err


def test_the_help_text_names_every_benchmark_with_an_example(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    examples = set(re.findall(r"python projects/Benchmarks/benchmark\.py (\w+)", capsys.readouterr().out))
    assert examples == set(benchmark.BENCHMARKS)
