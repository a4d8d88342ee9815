"""Both strategies get as many boxes, train as long, and an interrupted measurement goes on where it stopped."""

import importlib.util
import json
from pathlib import Path

import pytest
from training import CONFIG, options, write_data
from voc_fixtures import hash_tree

from image_selection import rounds
from image_selection.data import draw_random, link_domains

FILE = Path(__file__).parents[2] / "projects" / "ImageSelection" / "measure_selection.py"
spec = importlib.util.spec_from_file_location("measure_selection", FILE)
measure_selection = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measure_selection)


class FakeTools:
    """Stands for the tools: a training scores by its number of training splits, a selection takes the first images."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def __call__(self, tool, arguments, log):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((tool, list(arguments)))
        if tool == "train_net.py":
            settings = dict(zip(arguments[3::2], arguments[4::2]))  # the last of a key counts, as in a config
            folder, splits = Path(settings["OUTPUT_DIR"]), settings["DATASETS.TRAIN"]
            score = {"voc": {"AP50": float(splits.count("labelled"))}, "bbox": {"AP": 1.0}}
            content = {"metadata": {}, "source": "s", "results": {"tiny_night_sunny_test": score}}
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(content))
            return
        folder = Path(arguments[arguments.index("--output") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        labelled = (folder / "labelled.txt").read_text().split() if "--labelled" in arguments else []
        names = [f"night_sunny_train{i}" for i in range(6) if f"night_sunny_train{i}" not in labelled]
        (folder / "selected.txt").write_text("\n".join(names[:2]))


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def arguments(data, output, *words, **changes):
    opts = [str(word) for word in options(data, output / "unused", **changes)]
    flags = ["--output", str(output), "--config-file", CONFIG, "--pool", "tiny_night_sunny_train", "--images", "2"]
    return measure_selection.parse_args([*flags, *words, *opts])


def test_random_images_have_as_many_boxes_as_whole_images_allow():
    boxes = {f"image{i}": 1 + i % 4 for i in range(40)}
    for seed in range(10):
        drawn = draw_random(boxes, 20, seed)
        assert abs(sum(boxes[name] for name in drawn) - 20) <= 2 and len(set(drawn)) == len(drawn)


def test_random_images_follow_from_the_seed_and_leave_out_labelled_ones():
    boxes = {f"image{i}": 2 for i in range(40)}
    first = draw_random(boxes, 20, 1)
    assert draw_random(dict(reversed(boxes.items())), 20, 1) == first != draw_random(boxes, 20, 2)
    assert not set(draw_random(boxes, 20, 1, first)) & set(first)


def test_links_and_lists_leave_the_data_alone(data, tmp_path):
    before = hash_tree(data)
    lists = link_domains(data, ["daytime_clear", "night_sunny"], "night_sunny", tmp_path / "root")
    (lists / "labelled.txt").write_text("night_sunny_train0\n")
    link_domains(data, ["daytime_clear", "night_sunny"], "night_sunny", tmp_path / "root")
    assert hash_tree(data) == before and (lists / "train.txt").is_file()


def test_each_seed_trains_alone_then_with_selected_and_with_random_images(data, tmp_path):
    tools = FakeTools()
    table = measure_selection.main(arguments(data, tmp_path / "out", "--seeds", "1,2"), tools)
    assert [tool for tool, _ in tools.calls] == 2 * ["train_net.py", "select_images.py", "train_net.py", "train_net.py"]
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    assert scores["selected1"]["1"] == {"AP50": 5.0, "images": 2, "boxes": 4}
    assert scores["random1"]["1"]["boxes"] == 4 and scores["base"]["2"]["boxes"] == 0
    assert "minus random" in table and (tmp_path / "out" / "results.md").is_file()


def test_a_second_round_keeps_the_labels_and_gives_the_model_of_the_round_before(data, tmp_path):
    tools = FakeTools()
    measure_selection.main(arguments(data, tmp_path / "out", "--seeds", "1", "--rounds", "2"), tools)
    second = [words for tool, words in tools.calls if tool == "select_images.py"][1]
    assert second[0].endswith("selected1") and second[second.index("--previous") + 1].endswith("base")
    first, both = (json.loads((tmp_path / "out" / "seed1" / f"selected{n}.json").read_text()) for n in (1, 2))
    assert both[:2] == first and len(set(both)) == 4


@pytest.mark.parametrize("fail_at", range(4))
def test_an_interrupted_measurement_goes_on_where_it_stopped(data, tmp_path, fail_at):
    args, tools = arguments(data, tmp_path / "out", "--seeds", "1"), FakeTools(fail_at)
    with pytest.raises(KeyboardInterrupt):
        measure_selection.main(args, tools)
    rest = FakeTools()
    measure_selection.main(args, rest)
    assert len(tools.calls) + len(rest.calls) == 4


def test_other_settings_in_the_same_folder_are_an_error(data, tmp_path):
    measure_selection.main(arguments(data, tmp_path / "out", "--seeds", "1"), FakeTools())
    with pytest.raises(ValueError, match="images"):
        measure_selection.main(arguments(data, tmp_path / "out", "--images", "3"), FakeTools())


@pytest.mark.parametrize("pool", ["nowhere", "tiny_night_sunny_test"])
def test_a_pool_that_is_no_training_split_is_an_error(data, tmp_path, pool):
    with pytest.raises(ValueError, match="--pool"):
        measure_selection.main(arguments(data, tmp_path / "out", "--pool", pool), FakeTools())


def test_a_tool_that_fails_is_named_with_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "TOOLS", tmp_path)
    (tmp_path / "select_images.py").write_text("raise SystemExit('no such run')")
    with pytest.raises(RuntimeError, match=r"select_images.py failed with 1.*no such run"):
        rounds.call_tool("select_images.py", [], tmp_path / "log.txt")
