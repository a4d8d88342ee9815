"""What trainings logged, drawn over their iterations."""

import json

import cv2
import plot_metric
import pytest

from adapter_comparison.curves import mean_course, read_courses


@pytest.fixture
def output(tmp_path):
    for name, seed, entries in (
        ("one", 1, [(19, 4.0), (39, 9.0), (39, 6.0)]),  # resumed: iteration 39 twice
        ("one", 2, [(19, 2.0), (39, 2.0), (59, 1.0)]),
        ("two", 1, [(19, 3.0)]),
    ):
        folder = tmp_path / name / f"seed{seed}"
        folder.mkdir(parents=True)
        lines = [json.dumps({"iteration": i, "pseudo_labels/boxes": value}) for i, value in entries]
        (folder / "metrics.json").write_text("\n".join([*lines, json.dumps({"iteration": 60, "time": 1.0})]) + "\n")
    return tmp_path


def test_the_mean_is_over_seeds_at_shared_iterations_and_repeated_ones_count_once(output):
    courses = read_courses(output, "pseudo_labels/boxes")
    assert courses["one"]["1"] == {19: 4.0, 39: 6.0}
    assert mean_course(courses["one"]) == {19: 3.0, 39: 4.0}
    assert read_courses(output, "pseudo_labels/boxes", only=["two"]) == {"two": {"1": {19: 3.0}}}


def test_a_picture_is_drawn_beside_the_runs(output, capsys):
    plot_metric.main([str(output), "pseudo_labels/boxes"])
    picture = output / "pseudo_labels_boxes.png"
    assert capsys.readouterr().out.strip() == str(picture)
    image = cv2.imread(str(picture))
    assert image.shape[1] > 1000 and (image != 255).any()


def test_a_metric_that_no_run_logged_lists_those_that_there_are(output):
    with pytest.raises(
        SystemExit, match="No run in .* logged 'boxes'; logged are: iteration, pseudo_labels/boxes, time"
    ):
        plot_metric.main([str(output), "boxes"])
