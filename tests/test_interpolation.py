"""Weights between pretrained and trained: exact at both ends, linear between, and evaluated by tools/interpolate.py."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_export import train, write_base
from training import CONFIG, options, write_data

from soma_det.adapters import interpolate_weights
from soma_det.config import setup_cfg
from soma_det.engine import load_model

TOOL = Path(__file__).parents[1] / "tools" / "interpolate.py"
spec = importlib.util.spec_from_file_location("interpolate", TOOL)
interpolate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interpolate)


FROZEN = {"MODEL__ADAPTER__NAME": "frozen", "MODEL__ADAPTER__RANK": 16}  # 16: the default, since it has no rank


def states():
    torch.manual_seed(0)
    return {"a": torch.randn(4, 3), "n": torch.tensor(1)}, {"a": torch.randn(4, 3), "n": torch.tensor(3)}


def test_the_ends_are_the_pretrained_and_the_trained_weights_to_the_bit():
    start, end = states()
    assert torch.equal(interpolate_weights(start, end, 0)["a"], start["a"])
    assert torch.equal(interpolate_weights(start, end, 1)["a"], end["a"])


def test_between_the_ends_weights_are_linear_in_alpha():
    start, end = states()
    torch.testing.assert_close(interpolate_weights(start, end, 0.25)["a"], 0.75 * start["a"] + 0.25 * end["a"])


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_outside_0_to_1_is_an_error(alpha):
    with pytest.raises(ValueError, match="alpha"):
        interpolate_weights(*states(), alpha)


def test_states_of_unequal_models_are_an_error_that_names_the_weights():
    start, end = states()
    with pytest.raises(ValueError, match="merge the adapter"):
        interpolate_weights(start, end | {"a_lora": torch.zeros(1)}, 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """data, base weights, checkpoint of a tiny detector that SoMA has adapted."""
    data, base = (
        write_data(tmp_path_factory.mktemp("data")),
        write_base(tmp_path_factory.mktemp("b") / "v.safetensors", 1),
    )
    return data, base, train(data, tmp_path_factory.mktemp("saved"), base)


def call(run, folder, *flags, **changes):
    data, base, weights = run
    words = [str(w) for w in options(data, folder, MODEL__VIT__WEIGHTS=base, **changes)]
    args = ["--config-file", CONFIG, "--weights", weights, "--output", str(folder), *flags, *words]
    interpolate.main(interpolate.parse_args(args))
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def curve(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    return folder, call(run, folder, "--alphas", "0,1", "--save", "0.5")


def test_every_alpha_is_reported_with_every_split(curve):
    folder, results = curve
    assert list(results["alphas"]) == ["0", "1"]
    assert all("mean of unseen" in scores and len(scores) > 1 for scores in results["alphas"].values())
    assert {"results.md", "results.png", "alpha_0", "alpha_1"} <= {path.name for path in folder.iterdir()}


def test_a_resumed_call_evaluates_only_what_is_new(run, curve, monkeypatch):
    folder, results = curve
    monkeypatch.setattr(interpolate.Trainer, "test", lambda *args: pytest.fail("evaluated again"))
    assert call(run, folder, "--alphas", "0,1", "--resume")["alphas"] == results["alphas"]


def test_the_saved_checkpoint_holds_the_weights_halfway(run, curve):
    data, base, weights = run
    halfway = options(data, curve[0], MODEL__VIT__WEIGHTS=base, **(FROZEN | {"MODEL__ADAPTER__NAME": "full"}))
    saved = str(curve[0] / "model_alpha_0.5.pth")
    model = load_model(setup_cfg(CONFIG, [*map(str, halfway), "MODEL.WEIGHTS", saved]))
    adapted = load_model(
        setup_cfg(CONFIG, [*map(str, options(data, curve[0], MODEL__VIT__WEIGHTS=base)), "MODEL.WEIGHTS", weights])
    )
    name = "blocks.2.attn.qkv"
    expected = (load_file(base)[f"{name}.weight"] + adapted.backbone.net.model.get_submodule(name).merged().weight) / 2
    torch.testing.assert_close(model.backbone.net.model.get_submodule(name).weight, expected)


def test_a_frozen_vit_has_nothing_between(run, tmp_path):
    data, base, _ = run
    frozen = train(data, tmp_path, base, **FROZEN)
    with pytest.raises(ValueError, match="nothing lies between"):
        call((data, base, frozen), tmp_path / "curve", **FROZEN)


def test_wrong_alphas_end_the_program_with_a_message(capsys):
    for alphas in ("a,b", "0,2"):
        with pytest.raises(SystemExit):
            interpolate.parse_args(["--config-file", "c", "--weights", "w", "--alphas", alphas])
        assert "alpha" in capsys.readouterr().err
