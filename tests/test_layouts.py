"""Published weights under timm's names: the converted model computes what the model of the other layout does."""

import importlib.util
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from soma_det.adapters import ReinConfig, SomaConfig, adapt, find_adapter_layers, load_adapter
from soma_det.checkpoint.layouts import convert, find_layout
from soma_det.modeling.backbone.timm_vit import create_timm_vit

SPEC = importlib.util.spec_from_file_location(
    "convert_weights", Path(__file__).parents[1] / "tools" / "convert_weights.py"
)
convert_weights = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(convert_weights)

SMALL = dict(embed_dim=48, depth=2, num_heads=3, num_classes=0, global_pool="token")
MODELS = {
    "dinov2": ("vit_small_patch14_dinov2", dict(img_size=56)),
    "dinov2_swiglu": ("vit_giant_patch14_dinov2", dict(img_size=56, mlp_ratio=256.5 / 48)),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", dict(img_size=56)),
    "dinov3": ("vit_small_patch16_dinov3", dict(img_size=64)),
    "dinov3_biases": ("vit_small_patch16_dinov3_qkvb", dict(img_size=64)),
    "dinov3_swiglu": ("vit_small_plus_patch16_dinov3", dict(img_size=64)),
}
EACH = pytest.mark.parametrize("kind", MODELS)


def timm_model(kind):
    """timm's small model of a kind, with random weights that hide nothing."""
    name, options = MODELS[kind]
    model = timm.create_model(name, **SMALL, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.1) if parameter.ndim > 1 else nn.init.normal_(parameter, 0.5, 0.1)
    return model


def features(model, x):
    """Of both blocks, patches alone: (N, C, H, W) each."""
    return model.forward_intermediates(x, indices=2, intermediates_only=True)


def run(source, target, *options):
    convert_weights.main(convert_weights.parse_args([str(source), str(target), *map(str, options)]))
    return load_file(target)


def largest_error(x, reference):
    return max((a - b).abs().max().item() for a, b in zip(x, reference, strict=True))


# Meta's layout


def metas_names(kind, model):
    """The inverse of timm's filter, written from Meta's code: facebookresearch/dinov2 and dinov3."""
    state = {}
    for key, tensor in model.state_dict().items():
        if kind.startswith("dinov2"):
            key = re.sub(r"mlp\.fc1", "mlp.w12", key) if "swiglu" in kind else key
            key = re.sub(r"mlp\.fc2", "mlp.w3", key) if "swiglu" in kind else key
            key = key.replace("reg_token", "register_tokens")
        else:
            key = re.sub(r"gamma_([12])", r"ls\1.gamma", key).replace("reg_token", "storage_tokens")
            for own, metas in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")) if "swiglu" in kind else ():
                key = key.replace(f"mlp.{own}", f"mlp.{metas}")
        if not key.endswith(("q_bias", "v_bias")):
            state[key] = tensor.clone()
    state["mask_token"] = torch.randn(1, 48)
    if kind == "dinov2_registers":  # whose class token has a position of its own in the table
        position = torch.randn(1, 1, 48)
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
        state["cls_token"] -= position
    if kind.startswith("dinov3"):
        state["rope_embed.periods"] = torch.randn(8)
        for index, block in enumerate(model.blocks):
            biased = kind == "dinov3_biases"
            q, v = (block.attn.q_bias, block.attn.v_bias) if biased else (torch.zeros(48), torch.zeros(48))
            state[f"blocks.{index}.attn.qkv.bias"] = torch.cat([q, torch.ones(48), v]).detach()  # k's is masked out
            state[f"blocks.{index}.attn.qkv.bias_mask"] = torch.ones(144)
    return state


@EACH
@pytest.mark.parametrize("wrapper", [None, "model"])
def test_metas_files_get_timms_names(kind, wrapper, tmp_path):
    model = timm_model(kind)
    state = metas_names(kind, model)
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "meta.pth")
    converted = run(tmp_path / "meta.pth", tmp_path / "timm.safetensors")
    other = timm.create_model(MODELS[kind][0], **SMALL, **MODELS[kind][1]).eval()
    other.load_state_dict(converted, strict=True)
    x = torch.randn(2, 3, *([56, 56] if kind.startswith("dinov2") else [64, 64]))
    assert largest_error(features(other, x), features(model, x)) < 1e-5
    assert find_layout(state) == f"{kind[:6]}_meta"


# Hugging Face's layout


def hugging_face_model(kind):
    """transformers' small model of a kind, with random weights that hide nothing."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3)
    v2 = dict(image_size=56, patch_size=14, layer_norm_eps=1e-6, **sizes)
    no_biases = dict(query_bias=False, value_bias=False)
    v3 = dict(image_size=64, patch_size=16, intermediate_size=192, num_register_tokens=4, layer_norm_eps=1e-5, **sizes)
    models = {
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**v2)),
        "dinov2_swiglu": lambda: transformers.Dinov2Model(transformers.Dinov2Config(use_swiglu_ffn=True, **v2)),
        "dinov2_registers": lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**v2)),
        "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**no_biases, **v3)),
        "dinov3_biases": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**v3)),
        "dinov3_swiglu": lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(use_gated_mlp=True, hidden_act="silu", **no_biases, **v3)
        ),
    }
    model = models[kind]().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.1) if parameter.ndim > 1 else nn.init.normal_(parameter, 0.5, 0.1)
    return model


@EACH
@pytest.mark.parametrize("saved_by", ["save_pretrained", "state_dict"])  # the names differ since transformers 5
def test_hugging_faces_files_get_timms_names_and_compute_the_same(kind, saved_by, tmp_path):
    model = hugging_face_model(kind)
    path = tmp_path / "model.safetensors"
    model.save_pretrained(tmp_path) if saved_by == "save_pretrained" else save_file(model.state_dict(), path)
    converted = run(path, tmp_path / "timm.safetensors")
    sizes = {"mlp_ratio": 192.5 / 48} if kind == "dinov3_swiglu" else {}
    other = timm.create_model(MODELS[kind][0], **{**SMALL, **MODELS[kind][1], **sizes}).eval()
    other.load_state_dict(converted, strict=True)
    pixels = 56 if kind.startswith("dinov2") else 64
    x = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        reference = model(x).last_hidden_state  # after the final norm
        tokens = other.forward_features(x)
    assert tokens.shape == reference.shape and largest_error([tokens], [reference]) < 1e-5


def test_weights_below_the_name_of_a_classifiers_backbone_are_found(tmp_path):
    model = hugging_face_model("dinov2")
    path = tmp_path / "model.safetensors"
    model.save_pretrained(tmp_path)
    plain = load_file(path)
    below = {f"dinov2.{key}": tensor for key, tensor in plain.items()}
    assert find_layout(below) == "dinov2_hf"
    first, second = convert(plain).tensors, convert(below).tensors
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# SoMA's and Rein's checkpoints


def somas_names(adapted, plain):
    """A checkpoint as of the authors: A, B of each of q, k, v, proj, fc1, fc2, all biases, and a detector's head."""
    state = {"backbone.model.mask_token": torch.randn(1, 48), "bbox_head.0.weight": torch.randn(3, 3)}
    for name, layer in find_adapter_layers(adapted).items():
        weight, base = layer.merged().weight.detach(), plain.get_submodule(name).weight.detach()
        parts = "qkv" if name.endswith("qkv") else [name.rpartition(".")[2]]
        for part, change in zip(parts, (weight - base).chunk(len(parts)), strict=True):
            u, s, vh = torch.linalg.svd(change.double(), full_matrices=False)
            key = f"backbone.model.{name.rpartition('.')[0]}.{part}"
            state[f"{key}.lora_A.weight"] = (s[:16, None] * vh[:16]).float()
            state[f"{key}.lora_B.weight"] = u[:, :16].float()
    for key, tensor in adapted.state_dict().items():
        if key.endswith(".qkv.bias"):
            for part, bias in zip("qkv", tensor.chunk(3), strict=True):
                state["backbone.model." + key.replace("qkv", part)] = bias.clone()
        elif key.endswith(".bias"):
            state[f"backbone.model.{key}"] = tensor.clone()
    return state


def test_somas_checkpoint_is_merged_into_the_original_weights(tmp_path):
    plain = timm_model("dinov2")
    torch.save(metas_names("dinov2", plain), tmp_path / "base.pth")
    adapted = timm.create_model(MODELS["dinov2"][0], **SMALL, img_size=56).eval()
    adapted.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for name in adapt(adapted, SomaConfig(rank=4), [1]):
            adapted.get_parameter(name).add_(0.1 * torch.randn_like(adapted.get_parameter(name)))
    torch.save({"state_dict": somas_names(adapted, plain), "meta": {}}, tmp_path / "best.pth")
    target = tmp_path / "soma.safetensors"
    merged = run(tmp_path / "best.pth", target, "--base", tmp_path / "base.pth")

    x = torch.randn(2, 17, 48)
    other = timm.create_model(MODELS["dinov2"][0], **SMALL, img_size=1024, patch_size=16).eval()
    other.load_state_dict(merged, strict=True)
    for block, reference in zip(other.blocks, adapted.blocks, strict=True):
        assert largest_error([block(x)], [reference(x)]) < 1e-5
    assert largest_error([adapted.blocks[1](x)], [plain.blocks[1](x)]) > 0.1
    # Positions and patches as by the authors' scripts: plain bicubic.
    grid = plain.pos_embed[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(64, 64), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 4096, 48)
    assert torch.equal(other.pos_embed[:, :1], plain.pos_embed[:, :1])
    assert torch.allclose(other.pos_embed[:, 1:], expected, atol=1e-6)
    kernel = F.interpolate(plain.patch_embed.proj.weight, size=(16, 16), mode="bicubic")
    assert torch.allclose(other.patch_embed.proj.weight, kernel, atol=1e-6)


def test_a_converted_file_is_what_the_detector_loads(tmp_path, monkeypatch):
    plain = timm_model("dinov2")
    state = {"backbone.model.blocks.0.attn.q.lora_A.weight": torch.randn(2, 48)}
    state["backbone.model.blocks.0.attn.q.lora_B.weight"] = torch.randn(48, 2)
    save_file(plain.state_dict(), tmp_path / "base.safetensors")
    torch.save(state, tmp_path / "best.pth")
    target = tmp_path / "soma.safetensors"
    run(tmp_path / "best.pth", target, "--base", tmp_path / "base.safetensors", "--layout", "soma")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options | SMALL))
    vit = create_timm_vit("vit_small_patch14_dinov2", str(target), 16, (1024, 1024))
    change = state["backbone.model.blocks.0.attn.q.lora_B.weight"] @ next(iter(state.values()))
    expected = plain.blocks[0].attn.qkv.weight.clone()
    expected[:48] += change
    assert torch.allclose(vit.blocks[0].attn.qkv.weight, expected, atol=1e-6)


def reins_names(adapted):
    """A checkpoint as of Rein's authors, with the links to a segmentation head."""
    names = {"token_to_feature": "mlp_token2feat", "refine": "mlp_delta_f"}
    state = {f"backbone.reins.{names[name.split('.')[0]]}.{name.split('.')[1]}": tensor
             for name, tensor in adapted.rein.state_dict().items() if "." in name}  # fmt: skip
    state["backbone.reins.scale"] = adapted.rein.scale.detach().clone()
    for part in "ab":
        tokens = [getattr(block, f"tokens_{part}").detach() for block in adapted.blocks]
        state[f"backbone.reins.learnable_tokens_{part}"] = torch.stack(tokens)
    return state | {"backbone.reins.transform.weight": torch.randn(8, 48), "backbone.reins.merge.bias": torch.zeros(8)}


def test_reins_checkpoint_becomes_an_adapter_that_computes_the_same(tmp_path):
    plain = timm_model("dinov2")
    save_file(plain.state_dict(), tmp_path / "base.safetensors")
    adapted = timm.create_model(MODELS["dinov2"][0], **SMALL, img_size=56).eval()
    adapted.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for name in adapt(adapted, ReinConfig(tokens=6, rank=3)):
            adapted.get_parameter(name).add_(0.1 * torch.randn_like(adapted.get_parameter(name)))
    torch.save({"state_dict": reins_names(adapted)}, tmp_path / "rein.pth")
    target = tmp_path / "rein.safetensors"
    run(tmp_path / "rein.pth", target, "--base", tmp_path / "base.safetensors")
    x = torch.randn(2, 3, 56, 56)
    before = features(plain, x)
    assert load_adapter(plain, target)
    assert largest_error(features(plain, x), features(adapted, x)) < 1e-5
    assert largest_error(features(plain, x), before) > 0.1


# What cannot be converted


@pytest.mark.parametrize(
    "state, options, message",
    [
        (
            {"conv1.weight": torch.zeros(1)},
            {},
            r"not one of \['dinov2_hf', .*1 weights .*'conv1.weight'.*no conver",
        ),
        ({"mask_token": torch.zeros(1)}, {"layout": "dinov3_hf"}, "layout is 'dinov3_hf', .* 'dinov2_meta'"),
        ({"mask_token": torch.zeros(1)}, {}, r"not those of a dinov2: there is no \['cls_token', .*'mask_token'"),
        ({"backbone.reins.scale": torch.zeros(1)}, {}, "'rein' .* no pretrained weights: give them with --base"),
        ({"backbone.reins.learnable_tokens": torch.zeros(1)}, {"base": {}}, "tokens of full rank"),
        (
            {f"backbone.reins.learnable_tokens_{part}": torch.zeros(3, 6, 6) for part in "ab"},
            {"base": {"blocks.0.norm1.bias": torch.zeros(1), "cls_token": torch.zeros(1, 1, 6)}},
            "for 3 blocks of width 6, and the base has 1 blocks of width 6",
        ),
        (
            {f"backbone.model.blocks.0.mlp.fc1.lora_{x}.weight": torch.zeros(1, 1) for x in "AB"},
            {"base": {"reg_token": torch.zeros(1)}},
            "not a DINOv2 without registers",
        ),
    ],
)
def test_what_cannot_be_converted_is_an_error_with_the_names_or_the_remedy(state, options, message):
    with pytest.raises(ValueError, match=message):
        convert(state, **options)


def test_missing_and_foreign_weights_are_an_error_that_names_them():
    state = metas_names("dinov2", timm_model("dinov2"))
    lacking = {key: tensor for key, tensor in state.items() if key != "blocks.1.norm1.bias"}
    with pytest.raises(ValueError, match=r"not those of a dinov2: 1 are missing.*blocks\.1\.norm1\.bias"):
        convert(lacking)
    with pytest.raises(ValueError, match="1 are missing, left over .*'stranger'"):
        convert({**state, "stranger": torch.zeros(1)})


def test_files_that_are_no_weights_are_refused_without_running_their_code(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.pth"):
        run(tmp_path / "nowhere.pth", tmp_path / "out.safetensors")
    torch.save({"model": Path("code")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth holds more than weights"):
        run(tmp_path / "code.pth", tmp_path / "out.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"half\.safetensors is damaged"):
        run(tmp_path / "half.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
