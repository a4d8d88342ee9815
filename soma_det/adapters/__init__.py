"""Parameter-efficient fine-tuning of vision models, SoMA among other methods; needs torch and timm only."""

from soma_det.adapters.adaptformer import AdaptFormerConfig
from soma_det.adapters.base import ADAPTERS, AdapterConfig, AdapterLayer, describe_adapters
from soma_det.adapters.decomposition import split_components, split_minor_components
from soma_det.adapters.files import load_adapter, save_adapter
from soma_det.adapters.interpolation import interpolate_weights
from soma_det.adapters.lora import LoraConfig, LoraLinear
from soma_det.adapters.moa import MoaConfig
from soma_det.adapters.model import adapt, find_adapter_layers, is_mergeable, merge, pop_auxiliary_losses
from soma_det.adapters.osf import OsfConfig
from soma_det.adapters.peft_export import export_to_peft
from soma_det.adapters.peft_methods import DoraConfig, MicaConfig, OloraConfig, PeftLoraConfig, PissaConfig
from soma_det.adapters.plain import BiasesConfig, FrozenConfig, FullConfig
from soma_det.adapters.rein import ReinConfig
from soma_det.adapters.soma import SomaConfig, SomaLinear
from soma_det.adapters.vpt import VptConfig

__all__ = [
    "ADAPTERS",
    "AdaptFormerConfig",
    "AdapterConfig",
    "AdapterLayer",
    "BiasesConfig",
    "DoraConfig",
    "FrozenConfig",
    "FullConfig",
    "LoraConfig",
    "LoraLinear",
    "MicaConfig",
    "MoaConfig",
    "OloraConfig",
    "OsfConfig",
    "PeftLoraConfig",
    "PissaConfig",
    "ReinConfig",
    "SomaConfig",
    "SomaLinear",
    "VptConfig",
    "adapt",
    "describe_adapters",
    "export_to_peft",
    "find_adapter_layers",
    "interpolate_weights",
    "is_mergeable",
    "load_adapter",
    "merge",
    "pop_auxiliary_losses",
    "save_adapter",
    "split_components",
    "split_minor_components",
]
