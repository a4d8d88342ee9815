"""The page that tools/report.py makes of runs."""

import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from training import CONFIG, DOMAINS, options
from voc_fixtures import write_domain

import soma_det  # noqa: F401
from reporting.charts import Axis, Line, line_chart
from reporting.page import setting_differences
from reporting.run import read_metrics
from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.evaluation.coco_evaluation import evaluate_coco
from soma_det.evaluation.detections import DETECTIONS_FILE, Detections, load_ground_truth, save_detections
from soma_det.evaluation.results import write_results
from soma_det.evaluation.voc_evaluation import voc_average_precision

TOOL = Path(__file__).parents[1] / "tools" / "report.py"
SECTIONS = ["summary", "classes", "precision", "confusion", "errors", "calibration", "images", "training", "settings"]
CLASSES = ["<u>x", "person"]  # the first has to be escaped wherever it stands
VOID = {"meta", "img", "br", "i"}  # an i of the page never holds anything, but is closed
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags, ids, addresses and text of a page, whose tags must be closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.addresses, self.text, self.open = [], [], [], "", []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        self.addresses += [value for key, value in attrs if key in ("href", "src", "srcset", "action", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("report_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    objects = (("&lt;u&gt;x", (11, 6, 30, 20)), ("person", (41, 21, 44, 40)))
    for domain in DOMAINS:
        write_domain(
            tmp_path / "data", domain, {s: [f"{domain}_{s}{i}" for i in range(3)] for s in ("train", "test")}, objects
        )
    return tmp_path / "data"


def write_run(data, folder, **changes):
    """A run's folder as training and evaluation leave it; each image has one of two boxes found and a false alarm."""
    keys = {"DATASETS__WEATHER__CLASSES": CLASSES, "MODEL__ROI_HEADS__NUM_CLASSES": 2} | changes
    cfg = setup_cfg(CONFIG, options(data, folder, **keys))
    register_from_config(cfg)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    results = {}
    for name in cfg.DATASETS.TEST:
        truth = load_ground_truth(name)
        rows, score = np.arange(0, len(truth.image), 2), np.linspace(0.5, 0.9, 3)
        xyxy = np.concatenate([truth.xyxy[rows], truth.xyxy[rows] + 12])
        found = Detections(
            np.tile(truth.image[rows], 2), np.tile(truth.category[rows], 2), xyxy, np.append(score, score)
        )
        save_detections(folder / "inference" / name / DETECTIONS_FILE, found, truth.image_ids, name)
        stats, voc = evaluate_coco(truth, found).stats, voc_average_precision(truth, found)
        bbox = dict(
            zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), (100 * np.where(stats < 0, np.nan, stats)).tolist())
        )
        per_class = {f"AP50-{c}": float(ap) for c, ap in zip(CLASSES, voc)}
        counts = {"boxes": truth.counts(), "images": {"count": len(truth.image_ids)}}
        results[name] = {"bbox": bbox, "voc": {"AP50": float(voc.mean()), **per_class}, **counts}
    write_results(folder, results, cfg.DATASETS.SOURCE_TEST, {n: n.replace("_", " ") for n in results}, {"seed": 42})
    lines = [{"iteration": i, "total_loss": 2 / (i + 1), "loss_cls": 1 / (i + 1), "lr": 1e-3} for i in range(6)]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def page_of(tool, words):
    args = tool.parse_args([str(word) for word in words])
    missing = tool.main(args)
    html = args.output.read_text(encoding="utf-8")
    return Page(html), html, missing


@pytest.fixture
def run(data, tmp_path):
    return write_run(data, tmp_path / "<u>run")


def test_the_page_has_every_section_and_nothing_from_elsewhere(tool, run):
    page, html, missing = page_of(tool, [run])
    assert not missing and "missing" not in page.ids
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} == set(SECTIONS)
    assert "@import" not in html and "url(" not in html and not re.search(r"https?://", html)
    assert "prefers-color-scheme: dark" in html


def test_names_are_escaped(tool, run):
    page, html, _ = page_of(tool, [run])
    assert "u" not in page.tags
    for place in ("<u>x", "<u>run"):
        assert place in page.text and place not in html


def test_the_page_shows_scores_curves_errors_and_images(tool, run):
    page, _, _ = page_of(tool, [run, "--images", 1])
    assert "tiny night sunny test" in page.text and "found 1 of 2, 1 false alarm" in page.text
    assert page.tags.count("img") == 2 * 2 * 2  # truth and detections of the best and the worst of two splits
    # A curve for each class, a diagram for each split, and loss, learning rate and losses.
    assert page.tags.count("svg") == 2 + 2 + 3
    scores = json.loads((run / "results.json").read_text())["summary"]["voc_AP50"]
    assert f"{scores['mean_unseen']:.1f}" in page.text and f"{scores['relative']:.1f} %" in page.text


def test_two_runs_are_compared_and_their_different_settings_listed(tool, run, data, tmp_path):
    other = write_run(data, tmp_path / "other", SOLVER__BASE_LR=0.125, SEED=7)
    page, _, missing = page_of(tool, [run, other, "--output", tmp_path / "both.html", "--images", 0])
    assert not missing and "img" not in page.tags and not (run / "report.html").exists()
    settings = page.text[page.text.index("Where the runs differ") :]
    assert "SOLVER.BASE_LR" in settings and "0.125" in settings and "SEED" in settings
    assert "SOLVER.GAMMA" not in settings and "OUTPUT_DIR" not in settings


@pytest.mark.parametrize(
    "absent, sentence",
    [
        ("metrics.json", "no training curves"),
        ("config.yaml", "no ground truth"),
        (
            "inference/tiny_night_sunny_test/coco_instances_results.json",
            "tiny night sunny test: there are no detections",
        ),
    ],
)
def test_a_run_without_a_file_still_gives_a_page_that_says_so(tool, run, absent, sentence):
    (run / absent).unlink()
    page, _, (missing,) = page_of(tool, [run])
    assert sentence in missing and sentence in page.text
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS


def test_images_that_are_not_on_disk_are_named_and_the_rest_is_there(tool, run, data):
    shutil.rmtree(data / "night_sunny" / "VOC2007" / "JPEGImages")
    page, _, (missing,) = page_of(tool, [run])
    assert "are not shown (3)" in missing and "night_sunny_test" in missing
    assert page.tags.count("img") == 2 * 3 and "errors" in page.ids  # three images, two best and one worst


def test_data_that_have_moved_are_found_by_an_override(tool, run, data, tmp_path):
    shutil.move(data, tmp_path / "moved")
    DatasetCatalog.pop("tiny_daytime_clear_test")
    page, _, missing = page_of(tool, [run, "--images", 1, "DATASETS.WEATHER.ROOT", tmp_path / "moved"])
    assert not missing and page.tags.count("img") == 8
    _, _, missing = page_of(tool, [run])
    assert len(missing) == 2 and str(data) in missing[0]


def test_a_folder_without_results_and_half_an_override_are_errors(tool, run, tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json"):
        tool.main(tool.parse_args([str(tmp_path)]))
    with pytest.raises(ValueError, match="pairs"):
        tool.main(tool.parse_args([str(run), "DATASETS.WEATHER.ROOT"]))
    for words in (["SEED", "1"], [str(run), "--confidence-threshold", "2"], [str(run), "--images", "-1"]):
        with pytest.raises(SystemExit):
            tool.parse_args(words)


def test_of_an_iteration_written_twice_the_later_line_counts_and_half_a_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 9, "lr": 1}\n{"iteration": 4, "lr": 2}\n{"iteration": 9, "lr": 3}\n{"iteration": 1')
    lines, broken = read_metrics(path)
    assert [(line["iteration"], line["lr"]) for line in lines] == [(4, 2), (9, 3)] and broken == 1


def test_settings_of_a_run_alone_are_compared_with_the_defaults():
    (row,) = [row for row in setting_differences([{"SEED": 7}]) if row[0] == "SEED"]
    assert row[1][1] == "7" != row[1][0]
    assert setting_differences([{"A": 1, "B": 2}, {"A": 1, "B": 3}]) == [("B", ["2", "3"])]
    assert setting_differences([{"A": 1}, {}]) == []


def test_a_gap_in_a_line_is_not_bridged_and_points_lie_where_the_axes_say():
    line = Line("a", [0, 1, 2, 3], [0.0, float("nan"), 1.0, 1.0], 0)
    svg = str(line_chart("<u>", [line], Axis("x", 0, 3), Axis("y", 0, 1)))
    first, second = re.findall(r'points="([^"]*)"', svg)
    assert first == "42.0,176.0" and second == "207.3,10.0 290.0,10.0"
    assert 'aria-label="&lt;u&gt;"' in svg


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_without_complaint(tool, run, tmp_path):
    page_of(tool, [run, "--output", tmp_path / "page.html"])
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    home = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run([*command, home, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr
    assert all(f'<section id="{name}">' in done.stdout for name in SECTIONS)
