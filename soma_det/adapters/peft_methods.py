"""Methods of Hugging Face's peft, on timm's layers.

peft takes a linear layer as one weight: a fused qkv is adapted, and decomposed, as a whole and not by thirds. All run
at a scale of 1 (lora_alpha = rank), as SoMA. peft is an optional dependency and imported only when one of
them is chosen.

Sources: LoRA arXiv 2106.09685, DoRA arXiv 2402.09353, PiSSA arXiv 2404.02948, OLoRA arXiv 2406.01775,
MiCA arXiv 2604.01694.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from soma_det.adapters.base import AdapterLayer, Blocks, LowRankConfig, LowRankForm, register
from soma_det.adapters.selection import (
    ATTENTION_AND_MLP,
    check_rank,
    get_linear,
    parameter_names,
    require_called,
    select_linears,
)

A, B, MAGNITUDE = "lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"


@dataclass(frozen=True)
class PeftConfig(LowRankConfig):
    """What the methods of peft share; a fused qkv counts as one weight.

    Attributes:
        trained: names of what trains of each layer.
        settings: of peft's LoraConfig, which make the method.
    """

    trained: ClassVar[tuple[str, ...]] = (A, B)
    settings: ClassVar[dict[str, object]] = {}

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        """As :meth:`AdapterConfig.inject`; an ImportError where peft is not installed."""
        layers = select_linears(model, blocks, targets or ATTENTION_AND_MLP)
        require_called(model, layers, f"peft's {self.name}")
        for name in layers:
            check_rank(self.rank, get_linear(model, name).weight.shape)
        peft = _import_peft(self.name)
        # Without initialization the decompositions are left out, for a checkpoint to fill in.
        settings = {k: v for k, v in self.settings.items() if initialize or k != "init_lora_weights"}
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=layers, **settings)
        peft.inject_adapter_in_model(config, model)
        biases = [f"{layer}.base_layer" for layer in layers] if self.train_bias else []
        return parameter_names(model, layers, self.trained, bias=False) + parameter_names(model, biases, (), bias=True)


@register
@dataclass(frozen=True)
class PeftLoraConfig(PeftConfig):
    """peft's LoRA."""

    name = "peft_lora"
    summary = "a low-rank change beside each weight, fused qkv as one; needs peft"


@register
@dataclass(frozen=True)
class DoraConfig(PeftConfig):
    """peft's DoRA."""

    name = "dora"
    summary = "a low-rank change of direction and a magnitude (DoRA); needs peft"
    trained = (A, B, MAGNITUDE)
    settings: ClassVar[dict[str, object]] = {"use_dora": True}


@register
@dataclass(frozen=True)
class PissaConfig(PeftConfig):
    """peft's PiSSA."""

    name = "pissa"
    summary = "the largest singular components (PiSSA); needs peft"
    settings: ClassVar[dict[str, object]] = {"init_lora_weights": "pissa"}


@register
@dataclass(frozen=True)
class OloraConfig(PeftConfig):
    """peft's OLoRA."""

    name = "olora"
    summary = "a low-rank part from a QR decomposition (OLoRA); needs peft"
    settings: ClassVar[dict[str, object]] = {"init_lora_weights": "olora"}


@register
@dataclass(frozen=True)
class MicaConfig(PeftConfig):
    """peft's MiCA."""

    name = "mica"
    summary = "the inputs of the smallest left singular vectors (MiCA); needs peft"
    trained = (A,)
    settings: ClassVar[dict[str, object]] = {"init_lora_weights": "mica"}


class PeftLayer(AdapterLayer):
    """One of peft's layers, seen as an adapter layer; it is not itself part of the model."""

    layer: Any  # peft is not typed

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer
        base = layer.get_base_layer()
        # The methods differ in their start alone, and are LoRA by now, but for DoRA.
        method = DoraConfig if self._is_dora() else PeftLoraConfig
        self.config = method(layer.r["default"], base.bias is not None and base.bias.requires_grad)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by its name within peft's layer."""
        return {name: parameter for name, parameter in self.layer.named_parameters() if parameter.requires_grad}

    def merged(self) -> nn.Module:
        """A plain linear layer that shares the bias; peft's own is left as it was."""
        bias = self.layer.get_base_layer().bias
        layer = copy.deepcopy(self.layer, {id(bias): bias})
        layer.merge(safe_merge=True)
        return layer.get_base_layer()

    def low_rank_form(self) -> LowRankForm | None:
        """None for DoRA, which also scales."""
        if self._is_dora():
            return None
        residual = self.layer.get_base_layer().weight
        a, b = (getattr(self.layer, name)["default"].weight for name in ("lora_A", "lora_B"))
        return LowRankForm(residual.detach(), a.detach()[None], b.detach()[None] * self.layer.scaling["default"])

    def _is_dora(self) -> bool:
        return bool(len(self.layer.lora_magnitude_vector))


def is_peft_layer(module: nn.Module) -> bool:
    """Whether this is one of peft's LoRA layers; peft is not imported for the question."""
    lora = sys.modules.get("peft.tuners.lora")
    return lora is not None and isinstance(module, lora.LoraLayer)


def _import_peft(method: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            f"MODEL.ADAPTER.NAME {method!r} is taken from Hugging Face's peft: pip install peft, or choose 'lora'."
        ) from error
    return peft
