"""Adapters as files: what they hold, where they load, and what they are refused for."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from adapter_cases import FROZEN, HAS_PEFT, PEFT, adapt, cases, plain_vit, train_steps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from soma_det import adapters
from soma_det.adapters import (
    ADAPTERS,
    BiasesConfig,
    FrozenConfig,
    FullConfig,
    LoraConfig,
    LoraLinear,
    ReinConfig,
    export_to_peft,
    find_adapter_layers,
    load_adapter,
    merge,
    save_adapter,
)

ROOT = Path(__file__).parents[1]
TRAINED = [case for case in cases() if case != "frozen"]
LOW_RANK = [case for case in TRAINED if case in ("soma", "lora", "peft_lora", "pissa", "olora", "mica")]
needs_peft = pytest.mark.skipif(not HAS_PEFT, reason="needs peft")


def base(seed=1, **size):
    """A plain model with the same weights for the same seed."""
    torch.manual_seed(seed)
    return plain_vit(**size)


def trained_vit(case):
    vit = base()
    adapt(vit, case)
    train_steps(vit)
    return vit


def relative_error(x, reference):
    return (x - reference).norm() / reference.norm()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "adapter.safetensors"


@pytest.mark.parametrize("case", TRAINED)
def test_every_method_computes_the_same_after_loading_and_can_train_on(case, path):
    vit, x = trained_vit(case), torch.randn(2, 3, 64, 64)
    save_adapter(vit, path, base())
    loaded = base()
    names = load_adapter(loaded, path)
    assert relative_error(vit(x), base()(x)) > 1e-4
    assert relative_error(loaded(x), vit(x)) < 1e-5
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == set(names)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    train_steps(loaded)
    assert {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])} == set(names)


@pytest.mark.parametrize("part", ["blocks.5", ""], ids=["a block", "all"])
@pytest.mark.parametrize("case", [case for case in TRAINED if case not in ("full", "biases")])
def test_what_was_frozen_again_after_training_is_saved_too(case, part, path):
    vit, x = trained_vit(case), torch.randn(2, 3, 64, 64)
    vit.get_submodule(part).requires_grad_(False)
    save_adapter(vit, path, base())
    loaded = base()
    load_adapter(loaded, path)
    assert relative_error(loaded(x), vit(x)) < 1e-5


@pytest.mark.parametrize("case", TRAINED)
def test_a_loaded_adapter_can_be_saved_again_and_its_file_does_not_grow(case, path):
    vit, x = trained_vit(case), torch.randn(2, 3, 64, 64)
    save_adapter(vit, path, base())
    loaded, again = base(), base()
    load_adapter(loaded, path)
    second = path.with_name("second.safetensors")
    save_adapter(loaded, second, base())
    load_adapter(again, second)
    assert relative_error(again(x), vit(x)) < 1e-5
    assert abs(second.stat().st_size - path.stat().st_size) < 200  # the settings are text of another length


@pytest.mark.parametrize("case", LOW_RANK)
def test_a_low_rank_adapter_is_merged_after_loading_as_before_saving(case, path):
    vit, x = trained_vit(case), torch.randn(2, 3, 64, 64)
    save_adapter(vit, path, base())
    loaded = base()
    load_adapter(loaded, path)
    assert all(type(layer) is LoraLinear for layer in find_adapter_layers(loaded).values())
    merge(vit), merge(loaded)
    assert relative_error(loaded(x), vit(x)) < 1e-5
    assert loaded.state_dict().keys() == base().state_dict().keys()


def test_a_file_holds_pairs_of_twice_the_rank_and_the_biases_and_nothing_else(path):
    save_adapter(trained_vit("soma"), path, base())
    pairs = 8 * (3 * 128 + 128 + 256 + 256)  # rank 2 * 4, of q, k, v, proj, fc1, fc2: inputs and outputs
    numbers = 4 * (pairs + 512)  # blocks; biases
    with safe_open(path, "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == numbers  # noqa: SIM118
        metadata = file.metadata()
    assert metadata["kind"] == "low_rank" and metadata["method"] == "soma" and metadata["base"] == "test_vit.r160_in1k"
    assert json.loads(metadata["config"])["rank"] == 4 and json.loads(metadata["blocks"]) == [2, 3, 4, 5]
    assert 4 * numbers < path.stat().st_size < 4 * numbers + 10_000
    save_adapter(trained_vit("lora"), path, base())  # which starts at the pretrained weights: no need for twice
    with safe_open(path, "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == 4 * (pairs // 2 + 512)  # noqa: SIM118
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_interrupted_write_leaves_the_file_before_it(path, monkeypatch):
    save_adapter(trained_vit("soma"), path, base())
    before = path.read_bytes()

    def full_disk(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(trained_vit("lora"), path, base())
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


# Another machine


def other_lapack(gram, eigh=torch.linalg.eigh):
    """As eigh, with the few smallest eigenvectors rotated among each other: as exact where they are degenerate."""
    values, vectors = eigh(gram)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=gram.dtype, generator=torch.Generator().manual_seed(5)))[0]
    return values, torch.cat([vectors[:, :4] @ rotation, -vectors[:, 4:]], dim=1)


def adapted_elsewhere(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("soma_det.adapters.decomposition.torch.linalg.eigh", other_lapack)
        vit = base()
        adapt(vit, "soma")
    return vit


def test_an_adapter_from_a_machine_with_other_singular_vectors_loads_with_equal_outputs(path, monkeypatch):
    elsewhere, here, x = adapted_elsewhere(monkeypatch), base(), torch.randn(2, 3, 64, 64)
    adapt(here, "soma")
    layer, other = here.blocks[3].mlp.fc1, elsewhere.blocks[3].mlp.fc1
    assert relative_error(other.a, layer.a) > 0.1 and torch.allclose(other.residual, layer.residual, atol=1e-6)
    train_steps(elsewhere)
    save_adapter(elsewhere, path, base())
    loaded = base()
    load_adapter(loaded, path)
    assert relative_error(loaded(x), elsewhere(x)) < 1e-5


def test_two_machines_that_learn_the_same_function_write_adapters_of_the_same_function(path, monkeypatch):
    here, elsewhere, x = base(), adapted_elsewhere(monkeypatch), torch.randn(2, 3, 64, 64)
    adapt(here, "soma")
    train_steps(here)
    for name, layer in find_adapter_layers(here).items():
        other = elsewhere.get_submodule(name)
        change = (layer.weight - other.residual).detach().double().reshape(layer.parts, -1, layer.in_features)
        u, s, vh = (t for t in torch.linalg.svd(change, full_matrices=False))
        other.b.data.copy_(u[..., :4] * s[:, None, :4])
        other.a.data.copy_(vh[:, :4])
        other.bias.data.copy_(layer.bias)
    outputs = []
    for vit in (here, elsewhere):
        save_adapter(vit, path, base())
        loaded = base()
        load_adapter(loaded, path)
        outputs.append(loaded(x))
    assert relative_error(outputs[1], outputs[0]) < 1e-5 and relative_error(outputs[0], here(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["soma", "lora"])
def test_in_half_precision_nothing_is_rounded_before_the_changes_are_summed(case, dtype, path):
    vit, plain = base().to(dtype), base().to(dtype)
    names = adapt(vit, case)
    for name in names:
        vit.get_parameter(name).data.add_(0.01 * torch.randn_like(vit.get_parameter(name)))
    save_adapter(vit, path, plain)
    loaded = copy.deepcopy(plain)
    load_adapter(loaded, path)
    for name, layer in find_adapter_layers(vit).items():
        residual, a, b = (tensor.double() for tensor in layer.low_rank_form())
        exact = residual + torch.bmm(b, a).view_as(residual)
        change = (exact - plain.get_submodule(name).weight).norm()
        assert (loaded.get_submodule(name).weight - exact).norm() < 1e-4 * change, name
    merge(loaded)
    assert {p.dtype for p in loaded.parameters()} == {dtype}


# What is refused


def test_other_pretrained_weights_and_other_architectures_are_refused_and_stay_plain(path):
    save_adapter(trained_vit("soma"), path, base())
    torch.manual_seed(1)
    deeper = plain_vit("vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3)
    nudged = base()
    nudged.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-4  # of a block that is not even adapted
    for model in (base(seed=2), deeper, nudged, nn.Sequential(nn.Linear(2, 2))):
        modules = list(model.modules())
        with pytest.raises(ValueError, match=r"belongs to other pretrained weights \(test_vit.r160_in1k\) than"):
            load_adapter(model, path)
        assert list(model.modules()) == modules
    # What timm resamples to the size of the image does not count.
    load_adapter(base_of_size(96), path)


def base_of_size(pixels):
    other = plain_vit(pixels=pixels)
    weights = base().state_dict()
    del weights["pos_embed"]
    other.load_state_dict(weights, strict=False)
    return other


@pytest.mark.parametrize("config", [FullConfig(), BiasesConfig(), LoraConfig(rank=4)], ids=lambda c: c.name)
def test_a_model_with_the_same_matrices_and_other_parameters_is_refused(config, path):
    vit = base()
    adapters.adapt(vit, config)
    train_steps(vit)
    save_adapter(vit, path, base())
    other = base_of_size(96)
    if config.name != "full":
        other = plain_vit(qkv_bias=False)
        other.load_state_dict({n: t for n, t in base().state_dict().items() if not n.endswith("qkv.bias")})
    misfit = "pos_embed" if config.name == "full" else r"blocks.\d.attn.qkv.bias"
    with pytest.raises(ValueError, match=f"The adapter's {misfit} does not fit: .* another input size"):
        load_adapter(other, path)


def test_an_adapted_model_takes_no_further_adapter(path):
    vit = trained_vit("soma")
    save_adapter(vit, path, base())
    with pytest.raises(ValueError, match="adapted already: merge it first, or build it again"):
        load_adapter(vit, path)


def test_missing_and_foreign_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no adapter file .*nowhere.safetensors"):
        load_adapter(base(), tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="There is no adapter file"):
        load_adapter(base(), tmp_path)
    (text := tmp_path / "text.safetensors").write_text("not this")
    with pytest.raises(ValueError, match="text.safetensors is not a safetensors file"):
        load_adapter(base(), text)
    for metadata in (None, {"format": "pt"}, {"format": "soma_det.detector.1"}):
        save_file({"w": torch.zeros(2)}, foreign := tmp_path / "foreign.safetensors", metadata)
        found = repr((metadata or {}).get("format"))
        with pytest.raises(ValueError, match=f"format 'soma_det.adapter.1' but of {found}: make one with save_adapter"):
            load_adapter(base(), foreign)


def test_an_adapter_of_a_method_that_is_not_registered_says_so(path, monkeypatch):
    save_adapter(trained_vit("rein"), path, base())
    monkeypatch.delitem(ADAPTERS, "rein")
    with pytest.raises(ValueError, match="method 'rein' is unknown: import the module"):
        load_adapter(base(), path)


def test_saving_without_anything_that_trains_or_with_another_base_is_an_error(path):
    frozen, vit = base(), trained_vit("soma")
    adapters.adapt(frozen, FrozenConfig())
    with pytest.raises(ValueError, match="Nothing of the model trains.*adapt it first"):
        save_adapter(frozen, path, base())
    with pytest.raises(ValueError, match="The given base is not the one that the model was adapted from"):
        save_adapter(vit, path, base(seed=2))
    with pytest.raises(ValueError, match=r"The base has no layer blocks.\d.attn.qkv: give the plain model"):
        save_adapter(vit, path, nn.Linear(2, 2))
    assert not path.exists()
    save_adapter(vit, path, base().state_dict())  # the weights alone will do


# peft


@needs_peft
@pytest.mark.parametrize("train_bias", [True, False])
@pytest.mark.parametrize("name", ["soma", "lora", "pissa"])
def test_peft_loads_an_exported_adapter_with_equal_outputs(name, train_bias, path, tmp_path):
    import peft

    vit, x = base(), torch.randn(2, 3, 64, 64)
    adapters.adapt(vit, ADAPTERS[name](rank=4, train_bias=train_bias), [2, 5])
    train_steps(vit)
    save_adapter(vit, path, base())
    export_to_peft(path, tmp_path / "peft")
    assert {file.name for file in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    plain = base()
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "peft"))
    assert relative_error(loaded(x), vit(x)) < 1e-5
    assert relative_error(base()(x), vit(x)) > 1e-3
    rank = loaded.base_model.model.blocks[5].attn.qkv.r["default"]
    assert rank == {"soma": 3 * 2 * 4, "lora": 3 * 4, "pissa": 2 * 4}[name]
    assert relative_error(loaded.merge_and_unload()(x), vit(x)) < 1e-5


@pytest.mark.parametrize("config", [ReinConfig(rank=4), BiasesConfig()], ids=lambda c: c.name)
def test_what_is_no_lora_is_not_exported_to_peft(config, path, tmp_path):
    vit = base()
    adapters.adapt(vit, config, [FROZEN])
    save_adapter(vit, path, base())
    with pytest.raises(ValueError, match="which is not LoRA in form: peft cannot load it"):
        export_to_peft(path, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


# Alone

WITHOUT_ANYTHING_ELSE = """
import importlib.util, sys

HIDDEN = set(sys.argv[2:])


class Hiding:
    "A finder of modules that finds all but the hidden ones, as if these were not installed."

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # what else finders do, such as finding metadata
        return getattr(self.finder, name)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
assert all(importlib.util.find_spec(name) is None for name in HIDDEN)

import timm, torch
from soma_det.adapters import SomaConfig, ADAPTERS, adapt, load_adapter, merge, save_adapter

def build():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3, img_size=32).eval()

vit, x = build(), torch.randn(1, 3, 32, 32)
before = vit(x)
names = adapt(vit, SomaConfig(rank=4), [1])
assert torch.allclose(vit(x), before, atol=1e-5)
for name in names:
    vit.get_parameter(name).data.add_(0.1)
save_adapter(vit, sys.argv[1], build())
other = build()
load_adapter(other, sys.argv[1])
merge(other)
assert torch.allclose(other(x), vit(x), atol=1e-4) and not torch.allclose(before, vit(x), atol=1e-2)
for name, method in ADAPTERS.items():
    try:
        adapt(build(), method(**({"experts": "lora"} if name == "moa" else {})), [1])
    except ImportError as error:
        assert "pip install peft" in str(error)
        print(name)
try:
    import soma_det
    soma_det.Trainer
except ImportError as error:
    assert "Detectron2" in str(error)
    print("Trainer")
assert not HIDDEN & {name.partition(".")[0] for name in sys.modules}
"""


def test_adapters_need_torch_and_timm_alone(tmp_path):
    """And what timm itself needs: torchvision, PyYAML, huggingface_hub, safetensors, and tqdm by the latter."""
    hidden = {"detectron2", "fvcore", "iopath", "yacs", "omegaconf", "hydra", "pycocotools", "faster_coco_eval", "cv2"}
    hidden |= {"matplotlib", "peft", "transformers", "accelerate", "tabulate", "defusedxml", "tensorboard", "scipy"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_ANYTHING_ELSE, str(tmp_path / "adapter.safetensors"), *hidden]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(done.stdout.split()) == PEFT | {"Trainer"}


@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
def test_a_weight_that_the_attention_reads_directly_is_not_exported_to_peft(tmp_path):
    base = timm.create_model("swinv2_tiny_window8_256", num_classes=0, depths=(1, 1, 1, 1))
    model = copy.deepcopy(base)
    adapters.adapt(model, adapters.SomaConfig(rank=2))
    save_adapter(model, tmp_path / "a.safetensors", base)
    with pytest.raises(ValueError, match="the attention reads directly"):
        export_to_peft(tmp_path / "a.safetensors", tmp_path / "peft")
