"""Detection heads beside each other: what is recorded is not done again, and each head trains on the demo's data."""

import json

import benchmark
import pytest

from benchmarks import heads
from benchmarks.demo_heads import HEADS


def rows(*words):
    benchmark.main([str(word) for word in words])
    with open(words[-1]) as file:
        return json.load(file)["rows"]


def test_iterations_follow_from_the_times_and_means_from_the_seeds(tmp_path):
    runs = tmp_path / "runs"
    for seed, scores in ((1, {"clear": 40, "unseen": 30}), (2, {"clear": 44, "unseen": 36})):
        folder = runs / f"retinanet_seed{seed}"
        folder.mkdir(parents=True)
        (folder / "heads.json").write_text(json.dumps(scores))
    (runs / "seconds.json").write_text(json.dumps({"faster_rcnn": 1.0, "retinanet": 2.0}))
    found = rows(
        "heads", "--heads", "retinanet", "--seeds", 1, 2, "--runs", runs, "--output", tmp_path / "x.json"
    )  # fmt: skip
    expected = {"seed 1": "40.0 / 30.0", "seed 2": "44.0 / 36.0", "mean": "42.0 / 33.0"}
    assert found == [{"head": "retinanet", "seconds an iteration": 2.0, "iterations": 250, **expected}]


@pytest.mark.slow
def test_every_head_is_timed_trained_and_scored(tmp_path, monkeypatch):
    import make_synthdrive

    data, runs = tmp_path / "data", tmp_path / "runs"
    make_synthdrive.main(["--output", str(data), "--train", "12", "--test", "1"])
    monkeypatch.setattr(heads, "ITERATIONS", 12)
    words = ["--heads", *HEADS, "--data", data, "--output", tmp_path / "x.json"]
    found = rows("heads", "--rounds", 2, "--seeds", 1, "--runs", runs, *words)
    assert [row["head"] for row in found] == list(HEADS)
    assert all(row["seconds an iteration"] > 0 and row["iterations"] >= 1 for row in found)
    assert all((runs / f"{head}_seed1" / "results.json").exists() for head in HEADS)
    by_heart = rows("overfit", "--iterations", 3, "--runs", tmp_path / "by_heart", *words)
    assert [row["head"] for row in by_heart] == list(HEADS) and all(0 <= row["VOC AP50"] <= 100 for row in by_heart)
