"""Methods of Hugging Face's peft, on timm's layers.

peft takes a linear layer as one weight: a fused qkv is adapted, and decomposed, as a whole and not by thirds. All run at
a scale of 1 (lora_alpha = rank), as SoMA. peft is an optional dependency and imported only when one of them is chosen.

Sources: LoRA arXiv 2106.09685, DoRA arXiv 2402.09353, PiSSA arXiv 2404.02948, OLoRA arXiv 2406.01775,
MiCA arXiv 2604.01694.
"""

from functools import partial
from typing import Sequence

from torch import nn

from soma_det.adapters.registry import Adapter, register_adapter
from soma_det.adapters.selection import (
    ATTENTION_AND_MLP,
    check_rank,
    parameter_names,
    replace_module,
    require_called,
    select_linears,
)

A, B, MAGNITUDE = "lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"


def inject_peft(
    vit: nn.Module,
    blocks: Sequence[int],
    rank: int = 16,
    targets: Sequence[str] = ATTENTION_AND_MLP,
    train_bias: bool = True,
    decompose: bool = True,
    *,
    method: str,
    trained: Sequence[str],
    **settings,
) -> list[str]:
    """Wrap linear layers of a ViT in peft's, in place, and return the names of what trains.

    Args:
        decompose: False leaves out the decompositions of PiSSA, OLoRA and MiCA, for a checkpoint to fill them in.
        method: its name here, for messages.
        trained: what trains of each wrapped layer.
        settings: of peft's LoraConfig, which make the method.

    Raises:
        ValueError: a wrong rank, block or target, or a layer that peft cannot wrap; the model is left as it was.
        ImportError: peft is not installed.
    """
    layers = select_linears(vit, blocks, targets)
    require_called(vit, layers, f"peft's {method}")
    for name in layers:
        check_rank(rank, vit.get_submodule(name).weight.shape)
    peft = _import_peft(method)
    if not decompose:
        settings.pop("init_lora_weights", None)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, **settings)
    peft.inject_adapter_in_model(config, vit)
    biases = [f"{layer}.base_layer" for layer in layers] if train_bias else []
    return parameter_names(vit, layers, trained, bias=False) + parameter_names(vit, biases, (), bias=True)


def merge_peft(vit: nn.Module) -> list[str]:
    """Put plain layers in the place of peft's; the outputs stay the same to rounding."""
    from peft.tuners.lora import LoraLayer

    layers = [name for name, module in vit.named_modules() if isinstance(module, LoraLayer)]
    for name in layers:
        layer = vit.get_submodule(name)
        layer.merge(safe_merge=True)
        replace_module(vit, name, layer.get_base_layer())
    return layers


def _import_peft(method: str):
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            f"MODEL.ADAPTER.NAME {method!r} is taken from Hugging Face's peft: pip install peft, or choose 'lora'."
        ) from error
    return peft


def _register(name: str, summary: str, trained: Sequence[str], **settings) -> None:
    inject = partial(inject_peft, method=name, trained=trained, **settings)
    options = ("blocks", "rank", "targets", "train_bias", "decompose")
    register_adapter(Adapter(name, f"{summary}; needs peft", inject, options, merge=merge_peft))


_register("peft_lora", "a low-rank change beside each weight, fused qkv as one", (A, B))
_register("dora", "a low-rank change of direction and a magnitude (DoRA)", (A, B, MAGNITUDE), use_dora=True)
_register("pissa", "the largest singular components (PiSSA)", (A, B), init_lora_weights="pissa")
_register("olora", "a low-rank part from a QR decomposition (OLoRA)", (A, B), init_lora_weights="olora")
_register("mica", "the inputs of the smallest left singular vectors (MiCA)", (A,), init_lora_weights="mica")
