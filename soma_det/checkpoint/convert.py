"""Names of the weights in checkpoints of version 0.1, in today's names."""

import logging

from torch import Tensor

logger = logging.getLogger(__name__)

VIT, PYRAMID = "backbone.vit.", "backbone.pyramid."
# The simple pyramid's layers before each level's lateral convolutions, which were a sequence of their own.
LAYERS_BEFORE = {"2": 4, "3": 1, "4": 0, "5": 1}


def convert_old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a detector under today's names; one that has them already comes back as it is."""
    if not any(name.startswith(VIT) for name in state):
        return state
    logger.info("The checkpoint is of soma_det 0.1: its weights get today's names.")
    is_simple = f"{PYRAMID}p2.4.0.weight" in state
    prefixes = {VIT: "backbone.net.", **(_simple_prefixes() if is_simple else {PYRAMID: "backbone."})}
    return {_rename(name, prefixes): tensor for name, tensor in state.items()}


def _simple_prefixes() -> dict[str, str]:
    """Old prefix -> new one; norms stood beside the lateral convolutions and are inside them now."""
    prefixes = {}
    for level, first in LAYERS_BEFORE.items():
        old, new = f"{PYRAMID}p{level}.", f"backbone.simfp_{level}."
        lateral = f"{old}{first}." if first else old
        for layer, place in enumerate((f"{first}.", f"{first}.norm.", f"{first + 1}.", f"{first + 1}.norm.")):
            prefixes[f"{lateral}{layer}."] = new + place
        prefixes[old] = new  # after the longer ones, which go first
    return prefixes


def _rename(name: str, prefixes: dict[str, str]) -> str:
    old = next((old for old in prefixes if name.startswith(old)), "")
    return prefixes.get(old, "") + name.removeprefix(old)
