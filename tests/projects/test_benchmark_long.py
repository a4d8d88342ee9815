"""The benchmarks of memory find growth where there is some, and say what they measure."""

import gc
import json
import re

import benchmark
import numpy as np
import pytest
from PIL import Image

import benchmarks.long
import benchmarks.memory
from benchmarks.long import Course, histories_mib, measure_slopes, slope

ITERATIONS = 1000


def course(**growth):
    """Flat, but for what grows by so much in 1,000 iterations, and one outlier."""
    x = np.arange(ITERATIONS) / ITERATIONS
    parts = {name: np.full(ITERATIONS, 100.0) + growth.get(name, 0) * x for name in ("wall", "work", "main", "workers")}
    parts["wall"][730] = 1e4
    return Course(parts["wall"], parts["work"], np.arange(ITERATIONS), parts["main"], parts["workers"])


@pytest.mark.parametrize(("part", "slope_of"), [("wall", "time"), ("main", "main"), ("workers", "workers")])
def test_a_slope_tells_what_grows_by_how_much(part, slope_of):
    slopes = measure_slopes(course(**{part: 5.0}))
    assert slopes.pop(slope_of) == pytest.approx(5.0, rel=0.05)
    assert all(value == pytest.approx(0, abs=1e-6) for value in slopes.values())


def test_a_machine_that_becomes_slower_makes_no_iteration_grow():
    assert measure_slopes(course(wall=20.0, work=20.0))["time"] == pytest.approx(0, abs=1e-6)


def test_one_outlier_moves_no_slope():
    y = 2.0 * np.arange(10.0)
    y[7] = 1e6
    assert slope(np.arange(10.0), y) == pytest.approx(2.0)


def test_memory_that_is_taken_is_measured_and_its_peak_stays(tmp_path):
    gc.collect()
    before = benchmarks.memory.allocated_mib()
    taken = np.ones(512 * 2**20 // 8)  # other memory may be given back meanwhile
    assert benchmarks.memory.allocated_mib() - before == pytest.approx(512, abs=80)
    peak = benchmarks.memory.peak_mib()
    del taken
    assert before + 512 - 80 < peak == pytest.approx(benchmarks.memory.peak_mib(), abs=8)


def test_a_process_that_has_ended_holds_nothing():
    assert benchmarks.memory.allocated_mib(2**22 + 1) == 0


def test_bounded_histories_need_as_much_after_many_iterations_as_after_few_and_detectron2s_grow():
    few, many = (histories_mib(5, n, length=10) for n in (20, 2000))
    assert many == pytest.approx(few, abs=0.01)
    assert histories_mib(5, 2000, None) > many + 0.5


def test_a_long_training_measures_each_iteration_and_draws_them(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.long, "WINDOWS", 2)
    monkeypatch.setattr(benchmarks.long, "WARMUP", 0)
    chart, output = tmp_path / "charts" / "long.png", tmp_path / "long.json"
    benchmark.main(["long", "--iterations", "10", "--simulated", "10", "--chart", str(chart), "--output", str(output)])
    content = json.loads(output.read_text())
    assert [row["iterations"] for row in content["rows"]] == ["1 to 5", "6 to 10"]
    for row in content["rows"]:
        assert all(row[name] > 0 for name in row if name != "iterations")
    sizes = re.findall(r"(log.txt|metrics.json|event files) ([0-9]+\.[0-9])", content["notes"][0])
    assert len(sizes) == 3 and all(float(size) > 0 for _, size in sizes)
    with Image.open(chart) as image:
        assert image.width > image.height > 300


def test_iterations_that_no_window_divides_are_an_error():
    with pytest.raises(ValueError, match="multiple of 100"):
        benchmark.main(["long", "--iterations", "150"])


@pytest.mark.slow
def test_each_number_of_images_is_evaluated_in_a_process_of_its_own(tmp_path):
    output, ballast = tmp_path / "memory.json", np.ones(2**28)  # 2 GiB that the other processes must not count
    benchmark.main(["evaluation_memory", "--images", "2", "10", "--detections", "6", "--output", str(output)])
    del ballast
    rows = json.loads(output.read_text())["rows"]
    assert [(row["images"], row["detections"]) for row in rows] == [(2, 12), (10, 60)]
    for row in rows:
        assert 0 < row["before, MiB"] <= row["inference, MiB"] <= row["scoring, MiB"] < 2048
