"""MODEL.ADAPTER as one of the typed configs of soma_det.adapters."""

from dataclasses import fields

from detectron2.config import CfgNode as CN

from soma_det.adapters import ADAPTERS, AdapterConfig, describe_adapters
from soma_det.config.defaults import default_cfg, flatten

# Meta architectures that add the losses of adapters to the detector's.
WITH_AUXILIARY_LOSSES = ("AdaptedRCNN", "AdaptedRetinaNet")


def adapter_config(cfg: CN) -> AdapterConfig:
    """The method of MODEL.ADAPTER.NAME with its settings; random choices follow SEED.

    Raises:
        ValueError: there is no such method, or a setting is wrong.
    """
    node = cfg.MODEL.ADAPTER
    if node.NAME not in ADAPTERS:
        raise ValueError(f"Unknown adapter {node.NAME!r}: set MODEL.ADAPTER.NAME to one of\n{describe_adapters()}")
    method = ADAPTERS[node.NAME]
    values = {key.lower(): value for key, value in {**node, **node.get(node.NAME.upper(), {})}.items()}
    values["seed"] = max(cfg.SEED, 0)
    return method(**{field.name: values[field.name] for field in fields(method)})


def check_adapter(cfg: CN) -> None:
    """Raise a ValueError where MODEL.ADAPTER is wrong, or sets an option that the chosen method does not have."""
    config = adapter_config(cfg)
    before, own = flatten(default_cfg().MODEL.ADAPTER), config.name.upper()
    options = [field.name.upper() for field in fields(config)]
    allowed = {"NAME", *options, *(f"{own}.{option}" for option in options)}
    allowed |= {"BLOCKS"} if config.takes_blocks else set()
    allowed |= {"TARGETS"} if config.takes_targets else set()
    for key, value in flatten(cfg.MODEL.ADAPTER).items():
        if value != before[key] and key not in allowed:
            has = sorted(allowed & before.keys() - {"NAME"}) or "no options"
            raise ValueError(
                f"MODEL.ADAPTER.{key} is {value!r}, which the method {config.name!r} does not have (it has {has}): "
                f"leave it at {before[key]!r}, or choose another MODEL.ADAPTER.NAME."
            )
    if config.auxiliary_loss and cfg.MODEL.META_ARCHITECTURE not in WITH_AUXILIARY_LOSSES:
        raise ValueError(
            f"MODEL.ADAPTER.NAME {config.name!r} has a loss of its own, which MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE!r} would leave out: set it to one of {WITH_AUXILIARY_LOSSES}."
        )
