"""What every adapter promises: where it starts, what it trains, how it is kept, merged and refused."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapter_cases import FROZEN, HAS_PEFT, OPTIONS, PEFT, adapt, cases, config_of, method, plain_vit, train_steps
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from list_adapters import count_trained
from list_adapters import main as list_adapters
from torch import nn
from torch.nn import functional as F

from soma_det import adapters
from soma_det.adapters import (
    ADAPTERS,
    AdaptFormerConfig,
    BiasesConfig,
    FullConfig,
    LoraConfig,
    MoaConfig,
    ReinConfig,
    SomaConfig,
    VptConfig,
    describe_adapters,
    find_adapter_layers,
    is_mergeable,
    merge,
    pop_auxiliary_losses,
)
from soma_det.adapters.moa import CosineRouter, KroneckerExpert, LoraExpert, MoaLinear, SharedFactors, balance_loss
from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer
from soma_det.config import setup_cfg
from soma_det.modeling.backbone.timm_vit import count_parameters

ROOT = Path(__file__).parents[1]
STARTS_ELSEWHERE = {"moa", "rein", "vpt"}  # nearly (moa, rein) or not at all (vpt) where the pretrained model is
PLAIN = ("frozen", "full", "biases")  # put nothing into the model
MERGEABLE = [case for case in cases() if not ADAPTERS[method(case)].why_not_mergeable]
UNMERGEABLE = [case for case in cases() if ADAPTERS[method(case)].why_not_mergeable]
# By hand, for width d = 64, MLP h = 192 and, where not said otherwise, 4 blocks and rank 4.
COUNTS = {
    "frozen": 0,
    "full": 4 * (4 * 64 + 65 * 192 + 65 * 64 + 65 * 192 + 193 * 64),  # norms, qkv, proj, fc1, fc2
    "biases": 4 * (64 + 192 + 64 + 64 + 192 + 64),
    "soma": 4 * (4 * (3 * 128 + 128 + 256 + 256) + 512),  # q, k, v, proj, fc1, fc2, biases
    "lora": 4 * (4 * (3 * 128 + 128 + 256 + 256) + 512),
    "peft_lora": 4 * (4 * (256 + 128 + 256 + 256) + 512),  # qkv as one
    "dora": 4 * (4 * (256 + 128 + 256 + 256) + 512 + 512),  # and one magnitude for each output
    "pissa": 4 * (4 * (256 + 128 + 256 + 256) + 512),
    "olora": 4 * (4 * (256 + 128 + 256 + 256) + 512),
    "mica": 4 * (4 * (64 + 64 + 64 + 192) + 512),  # A alone
    # half of the components of q, k, v, proj, fc1 and fc2: U, S and V
    "osf": 4 * (4 * (32 * 128 + 32) + 2 * (32 * 256 + 32) + 512),
    # experts, router (projection with bias, experts, temperature), bias of the layer; shared factors
    "moa": 2 * (15 * (64 + 192) + 256 * 64 + 256 + 256 * 4 + 1 + 192) + 2 * 64 * 64,
    "moa_lora": 2 * (15 * (64 + 192) + 256 * 64 + 256 + 256 * 4 + 1),
    "rein": 4 * (10 * 4 + 4 * 64) + 2 * (64 * 64 + 64) + 1,
    "vpt": 4 * 5 * 64,
    "adaptformer": 4 * (64 * 8 + 8 + 8 * 64 + 64),
}
TINY = [
    "MODEL.VIT.NAME",
    "test_vit",
    "MODEL.VIT.WEIGHTS",
    "",
    "MODEL.VIT.IMG_SIZE",
    [64, 64],
    "MODEL.VIT.FROZEN_BLOCKS",
    FROZEN,
]
TINY += ["MODEL.PYRAMID.OUT_CHANNELS", 8, "MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 16]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small are slower on several threads, and much slower where processors are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_cfg(*opts):
    return setup_cfg(str(ROOT / "configs" / "Base-SoMA.yaml"), [*TINY, *opts])


def build_backbone(*opts):
    return BACKBONE_REGISTRY.get("build_soma_vit_backbone")(tiny_cfg(*opts), ShapeSpec(channels=3))


def relative_error(x, reference):
    return (x - reference).norm() / reference.norm()


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def trained_vit(case, seed=0):
    torch.manual_seed(seed)
    vit = plain_vit()
    adapt(vit, case)
    train_steps(vit)
    return vit


@pytest.mark.parametrize("case", cases())
def test_at_the_start_the_output_is_the_pretrained_one(case):
    vit, x = plain_vit(), torch.randn(2, 3, 64, 64)
    before = vit.forward_features(x)
    adapt(vit, case)
    error = relative_error(vit.forward_features(x), before)
    if case not in STARTS_ELSEWHERE:
        assert error < 1e-5
    else:
        assert 0 < error < (1e-2 if case != "vpt" else 1)


@pytest.mark.parametrize("case", cases())
def test_only_the_promised_parameters_train_and_all_others_stay_bit_equal(case):
    vit = plain_vit()
    promised = set(adapt(vit, case))
    assert {name for name, p in vit.named_parameters() if p.requires_grad} == promised
    before = state_of(vit)
    train_steps(vit)
    moved = {name for name, tensor in vit.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == promised
    assert not any(name.startswith(tuple(f"blocks.{index}." for index in range(FROZEN))) for name in promised)


@pytest.mark.parametrize("case", cases())
def test_the_number_of_trained_parameters_is_the_one_worked_out_by_hand(case):
    vit = plain_vit()
    adapt(vit, case)
    assert count_parameters(vit, trainable=True) == COUNTS[case]


@pytest.mark.parametrize("case", cases())
def test_a_saved_model_is_the_same_after_loading(case, tmp_path):
    vit, x = trained_vit(case), torch.randn(2, 3, 64, 64)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    torch.manual_seed(99)
    other = plain_vit()
    adapt(other, case)
    other.load_state_dict(torch.load(tmp_path / "vit.pth"))
    assert torch.equal(other(x), vit(x))


@pytest.mark.parametrize("case", cases())
def test_a_copy_computes_the_same_and_shares_nothing(case):
    vit, x = plain_vit(), torch.randn(2, 3, 64, 64)
    adapt(vit, case)
    before, state = vit(x), state_of(vit)
    duplicate = copy.deepcopy(vit)
    assert torch.equal(duplicate(x), before)
    train_steps(duplicate)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())
    if case != "frozen":
        assert not torch.equal(duplicate(x), before)


@pytest.mark.parametrize("case", cases())
def test_activation_checkpointing_changes_no_gradient(case):
    torch.manual_seed(0)
    vit, x, gradients = plain_vit().train(), torch.randn(1, 3, 64, 64), []
    adapt(vit, case)
    vit.blocks.requires_grad_(True)  # a checkpoint needs something to train
    for checkpointing in (False, True):
        vit.set_grad_checkpointing(checkpointing)
        vit.zero_grad()
        torch.manual_seed(1)  # of routing noise and dropout
        losses = pop_auxiliary_losses(vit)
        assert not losses
        y = vit.forward_features(x)
        (y.square().sum() + sum(pop_auxiliary_losses(vit).values())).backward()
        gradients.append({name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None})
        pop_auxiliary_losses(vit)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("case", MERGEABLE)
def test_merging_keeps_the_output_and_gives_back_a_plain_vit(case):
    vit, plain, x = trained_vit(case), plain_vit(), torch.randn(2, 3, 64, 64)
    before = vit(x)
    assert is_mergeable(vit) == (case not in PLAIN)
    merged = merge(nn.ModuleDict({"backbone": vit}))
    assert relative_error(vit(x), before) < 1e-5
    assert len(merged) == (0 if case in PLAIN else 16)
    assert vit.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in vit.modules()] == [type(module) for module in plain.modules()]
    assert merge(vit) == [] and not find_adapter_layers(vit)


@pytest.mark.parametrize("case", UNMERGEABLE)
def test_merging_what_cannot_be_merged_says_why_and_changes_nothing(case):
    vit = trained_vit(case)
    before, modules = state_of(vit), list(vit.modules())
    assert not is_mergeable(vit)
    with pytest.raises(ValueError, match=f"'{method(case)}' cannot be merged: its .* so | as no | which no "):
        merge(vit)
    assert list(vit.modules()) == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize("case", [case for case in cases() if case not in PLAIN])
def test_the_layers_of_a_method_are_found_with_their_settings_and_hold_all_that_trains(case):
    vit = plain_vit()
    names = set(adapt(vit, case))
    layers = find_adapter_layers(nn.ModuleDict({"backbone": vit}))
    assert layers and all(name.startswith("backbone.blocks.") for name in layers)
    if case not in ("pissa", "olora", "mica"):  # which are LoRA once they have started
        assert {layer.config for layer in layers.values()} == {config_of(case)}
    inside = "layer." if case in PEFT else ""  # peft's layers are seen through a view
    held = {f"{n}.{p.removeprefix(inside)}" for n, layer in layers.items() for p in layer.adapter_parameters()}
    shared = {name for name in names if name.startswith(("moa.", "rein."))}
    assert held == {f"backbone.{name}" for name in names - shared}


@pytest.mark.parametrize("case", [case for case in cases() if case not in PLAIN])
def test_checkpoints_of_a_plain_and_an_adapted_vit_do_not_fit_each_other(case, tmp_path):
    models = [nn.Module(), nn.Module()]
    options = [["MODEL.ADAPTER.NAME", "full"], ["MODEL.ADAPTER.NAME", method(case)]]
    if case == "moa_lora":
        options[1] += ["MODEL.ADAPTER.MOA.EXPERTS", "lora"]
    for model, opts in zip(models, options):
        model.backbone = build_backbone(*opts)
    for model, other in (models, models[::-1]):
        torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
        with pytest.raises(ValueError, match="adapted|another model"):
            AtomicCheckpointer(other).load(str(tmp_path / "model.pth"))
        AtomicCheckpointer(model).load(str(tmp_path / "model.pth"))


def test_a_checkpoint_with_more_than_the_model_has_is_refused(tmp_path):
    dora, lora = nn.Module(), nn.Module()
    dora.backbone, lora.backbone = (build_backbone("MODEL.ADAPTER.NAME", name) for name in ("dora", "peft_lora"))
    torch.save({"model": dora.state_dict()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="left over.*magnitude"):
        AtomicCheckpointer(lora).load(str(tmp_path / "model.pth"))


@pytest.mark.slow
def test_one_step_under_autocast_and_ddp_moves_every_rank_alike():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    worker = str(ROOT / "tests" / "adapter_ddp_worker.py")
    result = subprocess.run([*command, worker], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == cases()


def test_every_method_is_listed_with_one_line_and_has_a_case_here():
    lines = describe_adapters().splitlines()
    assert [line.split()[0] for line in lines] == sorted(ADAPTERS)
    assert all(len(line.split()) > 3 for line in lines)
    assert {method(case) for case in OPTIONS} == set(ADAPTERS)


def documented() -> str:
    return (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")


def test_the_documentation_describes_every_method_with_the_counted_parameters():
    text = documented()
    for name, config in ADAPTERS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {'no' if config.why_not_mergeable else 'yes'} |" in row
        assert f": `{name}`" in text
        if name not in PEFT or HAS_PEFT:
            assert f"| {count_trained(name, 'vit_large_patch14_dinov2', frozen_blocks=8, rank=16):,} |" in row
    lora_experts = count_trained("moa", "vit_large_patch14_dinov2", frozen_blocks=8, rank=16, experts="lora")
    assert f"{lora_experts:,} parameters" in text


def test_the_list_of_adapters_has_a_row_for_each(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["list_adapters.py", "--vit", "test_vit", "--frozen-blocks", "2", "--rank", "4"])
    list_adapters()
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(rows) == {name for name in ADAPTERS if HAS_PEFT or name not in PEFT}
    for case in ("soma", "moa", "full"):
        assert f" {COUNTS[case]:,} " in rows[case]
    assert "not mergeable" in rows["rein"] and "not mergeable" not in rows["soma"]


def test_the_example_of_a_method_of_your_own_works(monkeypatch):
    section = documented().split("## A method of your own")[1]
    code = section.split("```python\n")[1].split("```")[0]
    monkeypatch.setattr(adapters.base, "ADAPTERS", registry := dict(ADAPTERS))
    exec(code, {"__name__": "own_method"})
    (name,) = registry.keys() - ADAPTERS.keys()
    vit, x = plain_vit(), torch.randn(2, 3, 64, 64)
    before = vit(x)
    names = adapters.adapt(vit, registry[name](), [3, 5])
    assert torch.equal(vit(x), before)
    train_steps(vit)
    trained = vit(x)
    assert relative_error(trained, before) > 1e-4
    assert set(find_adapter_layers(vit)) == {name.rpartition(".")[0] for name in names}
    find_adapter_layers(vit)[names[0].rpartition(".")[0]].merged()  # as a trainer does for a while
    assert torch.equal(vit(x), trained)
    assert is_mergeable(vit) and len(merge(vit)) == len(names) == 4
    assert relative_error(vit(x), trained) < 1e-5
    assert [type(module) for module in vit.modules()] == [type(module) for module in plain_vit().modules()]


def test_an_unknown_name_lists_all_methods():
    with pytest.raises(ValueError) as error:
        build_backbone("MODEL.ADAPTER.NAME", "sorcery")
    assert "'sorcery'" in str(error.value) and describe_adapters() in str(error.value)


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["NAME", "lora", "MOA.EXPERTS", "lora"],
            r"ADAPTER.MOA.EXPERTS is 'lora', which the method 'lora' does not",
        ),
        (["NAME", "moa", "RANK", 8], r"RANK is 8, which the method 'moa'.*'MOA.RANKS'.*leave it at 16"),
        (["NAME", "vpt", "TARGETS", ["mlp.fc1"]], "TARGETS is .*'vpt'.*'VPT.TOKENS'"),
        (["NAME", "rein", "SOMA.COMPONENTS", "major"], "SOMA.COMPONENTS.*'rein'"),
        (["NAME", "frozen", "BLOCKS", [3]], "BLOCKS is .*'frozen'.*no options"),
        (["NAME", "full", "TRAIN_BIAS", False], "TRAIN_BIAS is False.*'full'"),
        (["NAME", "moa", "MOA.EXPERTS", "hydra"], "MOA.EXPERTS is 'hydra': choose 'kronecker' or 'lora'"),
        (["NAME", "moa", "MOA.RANKS", [4]], r"MOA.RANKS is \[4\]: a mixture needs at least two"),
        (["NAME", "moa", "MOA.RANKS", [1, 99]], r"Rank 99 is outside 1\.\.64"),
        (["NAME", "lora", "RANK", 65], r"Rank 65 is outside 1\.\.64"),
        (["NAME", "lora", "TARGETS", ["mlp.fc7"]], "'mlp.fc7' matches no linear layer"),
        (["NAME", "rein", "REIN.TOKENS", 1], "REIN.TOKENS is 1: give at least 2"),
        (["NAME", "rein", "REIN.TOKENS", 10], r"Rank 16 is outside 1\.\.10"),
        (["NAME", "vpt", "VPT.TOKENS", 0], "VPT.TOKENS is 0: give at least 1"),
        (["NAME", "adaptformer", "ADAPTFORMER.WIDTH", 0], "WIDTH is 0: give at least 1"),
        (["NAME", "adaptformer", "BLOCKS", [9]], r"Blocks \[9\] do not exist"),
        (["NAME", "rein", "BLOCKS", [1]], "reaches into the 2 MODEL.VIT.FROZEN_BLOCKS"),
        (["NAME", "biases", "BLOCKS", [6]], r"Blocks \[6\] do not exist: this model has blocks 0\.\.5"),
    ],
)
def test_wrong_options_name_the_value_and_the_remedy(opts, message):
    opts = [f"MODEL.ADAPTER.{word}" if index % 2 == 0 else word for index, word in enumerate(opts)]
    with pytest.raises(ValueError, match=message):
        build_backbone(*opts)


@pytest.mark.parametrize("name", ["full", "biases", "soma", "lora", "moa", "rein", "vpt", "adaptformer"])
def test_with_every_block_frozen_only_the_frozen_method_is_left(name):
    with pytest.raises(ValueError, match="freeze fewer leading blocks|Freeze fewer leading blocks"):
        build_backbone("MODEL.ADAPTER.NAME", name, "MODEL.VIT.FROZEN_BLOCKS", 6)
    frozen = build_backbone("MODEL.ADAPTER.NAME", "frozen", "MODEL.VIT.FROZEN_BLOCKS", 6)
    assert count_parameters(frozen.net, trainable=True) == 0


@pytest.mark.parametrize("case", [case for case in cases() if case not in PLAIN])
def test_adapting_twice_is_refused_and_changes_nothing(case):
    vit = plain_vit()
    adapt(vit, case)
    modules = list(vit.modules())
    with pytest.raises(ValueError, match=r"adapted already, at blocks\.\d.*merge it first, or build it again"):
        adapters.adapt(vit, SomaConfig(rank=4), [3])
    assert list(vit.modules()) == modules


def test_settings_of_another_method_and_targets_without_a_use_are_errors():
    with pytest.raises(TypeError, match="ranks"):
        VptConfig(ranks=[1])
    for config in (VptConfig(), BiasesConfig()):
        with pytest.raises(ValueError, match=f"'{config.name}' does not adapt single linear layers.*'mlp.fc1'"):
            adapters.adapt(plain_vit(), config, [3], [r"mlp.fc1"])


def test_blocks_can_be_chosen_and_those_after_the_last_output_are_left_out():
    for opts, expected in (
        ([], {2, 3, 4, 5}),
        (["MODEL.VIT.OUT_BLOCKS", [4]], {2, 3, 4}),
        (["MODEL.ADAPTER.BLOCKS", [3]], {3}),
    ):
        vit = build_backbone("MODEL.ADAPTER.NAME", "lora", *opts).net.model
        assert {int(name.split(".")[1]) for name, p in vit.named_parameters() if p.requires_grad} == expected
    moa = build_backbone("MODEL.ADAPTER.NAME", "moa").net.model
    assert [index for index, block in enumerate(moa.blocks) if isinstance(block.attn.qkv, MoaLinear)] == [3, 5]


def test_training_everything_includes_the_embeddings_only_without_frozen_blocks():
    names = adapters.adapt(plain_vit(), FullConfig(), range(6))
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(names)
    assert not any(name.startswith(("norm", "head")) for name in names)  # nothing would ever give them a gradient
    assert all(name.startswith("blocks.") for name in adapters.adapt(plain_vit(), FullConfig(), range(1, 6)))


def test_biases_of_layers_stay_frozen_when_asked():
    for case in ("soma", "lora", *(PEFT if HAS_PEFT else ())):
        names = adapters.adapt(plain_vit(), ADAPTERS[case](train_bias=False), [3])
        assert not any(name.endswith("bias") for name in names), case
    names = adapters.adapt(plain_vit(), MoaConfig(train_bias=False), [3])
    assert {name for name in names if name.endswith("bias")} == {"blocks.3.attn.qkv.router.project.bias"}


def test_a_missing_peft_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="'dora' is taken from Hugging Face's peft: pip install peft"):
        adapters.adapt(plain_vit(), ADAPTERS["dora"](), [3])


@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
def test_without_decomposition_the_layers_of_peft_have_the_same_weights_to_load():
    for name in sorted(PEFT):
        full, empty = plain_vit(), plain_vit()
        trained = adapters.adapt(full, ADAPTERS[name](rank=4), [3])
        assert adapters.adapt(empty, ADAPTERS[name](rank=4), [3], initialize=False) == trained
        empty.load_state_dict(full.state_dict())
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(full(x), empty(x)), name


@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
def test_pissa_and_soma_train_opposite_ends_of_the_spectrum():
    weight = plain_vit().blocks[3].mlp.fc1.weight.detach()
    singular = torch.linalg.svdvals(weight)
    for name, expected in (("pissa", singular[:4]), ("soma", singular[-4:])):
        vit = plain_vit()
        vit.blocks[3].mlp.fc1.weight.data.copy_(weight)
        adapters.adapt(vit, ADAPTERS[name](rank=4), [3])
        layer = vit.blocks[3].mlp.fc1
        product = (
            layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            if name == "pissa"
            else layer.b[0] @ layer.a[0]
        )
        assert torch.allclose(torch.linalg.svdvals(product)[:4], expected, atol=1e-4), name


def test_lora_adapts_a_fused_qkv_as_three_weights():
    vit = plain_vit()
    adapters.adapt(vit, LoraConfig(rank=2), [3])
    layer = vit.blocks[3].attn.qkv
    pretrained = layer.residual.clone()
    with torch.no_grad():
        layer.b[1].normal_()  # of the keys
    change = (layer.weight - pretrained).chunk(3)
    assert torch.equal(change[0], torch.zeros(64, 64)) and torch.equal(change[2], torch.zeros(64, 64))
    assert torch.linalg.matrix_rank(change[1]) == 2


@pytest.mark.parametrize("case", [case for case in ("moa", "moa_lora", *sorted(PEFT)) if case in cases()])
def test_layers_whose_weight_the_attention_reads_directly_are_refused(case):
    eva = plain_vit("eva02_tiny_patch14_224", depth=3, embed_dim=64, num_heads=2, qkv_fused=True)
    assert eva.blocks[2].attn.q_bias is not None
    with pytest.raises(ValueError, match="blocks.2.attn.qkv: this attention reads its weight directly"):
        adapters.adapt(eva, config_of(case), [2])


@pytest.mark.parametrize("case", [case for case in cases() if case not in ("frozen", "moa")])
def test_rotary_vits_with_separate_projections_can_be_adapted(case):
    vit = plain_vit("vit_small_patch16_dinov3", depth=4, embed_dim=48, num_heads=3)
    x = torch.randn(1, 3, 64, 64)
    adapt(vit, case)
    assert vit.forward_intermediates(x, indices=[3], intermediates_only=True)[0].shape == (1, 48, 4, 4)
    train_steps(vit, 1)


def test_prompts_take_no_position_of_a_rotary_vit():
    vit = plain_vit("vit_small_patch16_dinov3", depth=4, embed_dim=48, num_heads=3)
    before = [block.attn.num_prefix_tokens for block in vit.blocks]
    adapters.adapt(vit, VptConfig(tokens=7), [3])
    assert vit.blocks[3].block.attn.num_prefix_tokens == before[3] + 7
    assert vit.blocks[2].attn.num_prefix_tokens == before[2] == vit.num_prefix_tokens


def test_prompts_are_seen_by_the_attention_and_dropped_after_it():
    vit = plain_vit()
    adapters.adapt(vit, VptConfig(tokens=5), [3])
    block, x = vit.blocks[3], torch.randn(2, 17, 64)
    seen = torch.cat([x[:, :1], block.prompt.expand(2, -1, -1), x[:, 1:]], dim=1)
    expected = block.block(seen)[:, [0, *range(6, 22)]]
    assert torch.equal(block(x), expected)
    assert relative_error(block(x), block.block(x)) > 1e-3


def test_rein_refines_patches_as_in_the_paper_and_leaves_the_prefix_alone():
    vit = plain_vit()
    adapters.adapt(vit, ReinConfig(tokens=6, rank=2), [2, 3])
    block, shared, x = vit.blocks[3], vit.rein, torch.randn(2, 17, 64)
    with torch.no_grad():
        shared.scale.fill_(0.5)
    features, tokens = block.block(x), block.tokens_a @ block.tokens_b
    expected = features.clone()
    for image in range(2):
        for patch in range(1, 17):
            f = features[image, patch]
            weights = (tokens @ f / 8).softmax(0)  # 8 is the square root of the width
            message = sum(weights[i] * shared.token_to_feature(tokens[i]) for i in range(1, 6))
            expected[image, patch] = f + 0.5 * shared.refine(message + f)
    assert torch.allclose(block(x), expected, atol=1e-5)
    assert torch.equal(block(x)[:, 0], features[:, 0])


def test_adaptformer_adds_a_tenth_of_its_bottleneck():
    vit = plain_vit()
    adapters.adapt(vit, AdaptFormerConfig(width=8), [3])
    layer, x = vit.blocks[3].mlp, torch.randn(2, 5, 64)
    nn.init.normal_(layer.up.weight)
    nn.init.normal_(layer.down.bias)
    nn.init.normal_(layer.up.bias)
    inner = (x @ layer.down.weight.T + layer.down.bias).relu()
    expected = layer.mlp(x) + 0.1 * (inner @ layer.up.weight.T + layer.up.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_a_kronecker_expert_is_the_sum_of_kronecker_products():
    expert = KroneckerExpert(shared := SharedFactors(), d_in=128, d_out=192, rank=2)
    terms = [
        torch.kron(torch.outer(shared.left[i], shared.right[i]), expert.left[i] @ expert.right[i]) for i in range(64)
    ]
    assert torch.allclose(expert(), sum(terms), rtol=1e-4, atol=1e-9)
    assert shared.left.abs().max() <= 0.01 and shared.right.abs().max() <= 0.01
    bound = 2**0.5 * (6 / (2 + 2)) ** 0.5  # Glorot, gain sqrt 2, for L of (128 / 64, 2)
    assert 0.95 * bound < expert.left.abs().max() <= bound


def test_a_lora_expert_starts_at_zero_with_a_normal_factor_of_deviation_one_over_rank_and_has_no_bias():
    expert = LoraExpert(d_in=4096, d_out=8, rank=4)
    assert not expert().any() and abs(expert.a.std() - 1 / 4) < 0.01 and expert.a.abs().max() > 2 / 4
    vit = plain_vit()
    names = adapters.adapt(vit, MoaConfig(experts="lora"), [3])
    layer = vit.blocks[3].attn.qkv
    assert layer.bias is None and layer.base.bias is not None
    assert not any(name.endswith("qkv.bias") for name in names)


def test_the_router_scores_by_cosine_and_its_temperature_is_capped():
    router, x = CosineRouter(64, 4), torch.randn(5, 64)
    assert router.project.bias.shape == (256,)
    cosine = F.normalize(x @ router.project.weight.T + router.project.bias, dim=1) @ F.normalize(router.experts, dim=0)
    assert torch.allclose(router(x), 2 * cosine, atol=1e-6)
    with torch.no_grad():
        router.temperature.fill_(50)
    assert torch.allclose(router(x), 100 * cosine, atol=1e-4)


def test_the_balance_loss_is_the_one_worked_out_by_hand():
    even = torch.full((6, 4), 0.25)
    assert balance_loss(even, torch.full((6,), 0.25)) == 0
    clean, top = torch.tensor([[0.75, 0.25]]), torch.tensor([0.75])
    # importance (0.75, 0.25): variance 0.125, mean 0.5, so 0.5
    # load: Phi(0) = 0.5 and Phi(-0.5 * 2) = 0.158655: variance 0.058260, mean 0.329328, so 0.537172
    assert torch.allclose(balance_loss(clean, top), torch.tensor((0.5 + 0.537172) / 2), atol=1e-5)


def test_each_token_gets_its_best_expert_weighted_by_its_probability():
    vit = plain_vit()
    adapters.adapt(vit, MoaConfig(), [3])
    layer, x = vit.blocks[3].attn.qkv, torch.randn(2, 17, 64)
    nn.init.normal_(layer.bias)
    probability = layer.router(x.view(-1, 64)).softmax(1)
    expected = [
        layer.base(token) + p.max() * token @ layer.experts[int(p.argmax())]() + layer.bias
        for token, p in zip(x.view(-1, 64), probability)
    ]
    assert torch.allclose(layer(x).view(-1, 192), torch.stack(expected), atol=1e-5)


def test_routing_noise_and_dropout_are_there_in_training_only():
    vit = plain_vit()
    adapters.adapt(vit, MoaConfig(), [3])
    layer, x = vit.blocks[3].attn.qkv, torch.randn(2, 17, 64)
    assert torch.equal(layer(x), layer(x)) and layer.auxiliary_loss is None
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    assert 0 < pop_auxiliary_losses(vit)["loss_moa_balance"] < 0.01
    assert pop_auxiliary_losses(vit) == {}


def test_an_expert_without_tokens_has_a_gradient_of_zero():
    vit = plain_vit().train()
    adapters.adapt(vit, MoaConfig(), [3])
    layer = vit.blocks[3].attn.qkv
    layer(torch.randn(1, 1, 64)).sum().backward()  # one token goes to one expert
    largest = [max(p.grad.abs().max() for p in expert.parameters()) for expert in layer.experts]
    assert sum(value > 0 for value in largest) == 1


def test_the_auxiliary_loss_joins_the_losses_of_the_detector():
    model = build_model(tiny_cfg("MODEL.ADAPTER.NAME", "moa"))
    instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])), gt_classes=torch.tensor([2]))
    inputs = [{"image": torch.zeros(3, 64, 64), "instances": instances}]
    with EventStorage():
        losses = model.train()(inputs)
    assert {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "loss_moa_balance"} == set(losses)
    sum(losses.values()).backward()
    assert model.backbone.net.model.blocks[3].attn.qkv.router.project.weight.grad.abs().max() > 0
    copy.deepcopy(model)  # nothing of the graph is left behind
    with torch.no_grad():
        assert "instances" in model.eval()(inputs)[0]


def test_a_detector_that_would_leave_the_auxiliary_loss_out_is_refused():
    with pytest.raises(ValueError, match="has a loss of its own.*'GeneralizedRCNN'.*'AdaptedRCNN'"):
        build_backbone("MODEL.ADAPTER.NAME", "moa", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    build_backbone("MODEL.ADAPTER.NAME", "lora", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")


def test_widths_that_64_does_not_divide_are_refused_with_the_remedy():
    vit = plain_vit("vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3)
    with pytest.raises(ValueError, match="144 x 48, which does not divide by 64.*MOA.EXPERTS to 'lora'"):
        adapters.adapt(vit, MoaConfig(), [1])
    adapters.adapt(vit, MoaConfig(experts="lora"), [1])
