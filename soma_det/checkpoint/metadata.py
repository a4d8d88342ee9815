"""What a checkpoint says about the model that it holds."""

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from soma_det.version import __version__

KEY = "soma_det"  # of a checkpoint, beside "model" and "trainer"


def describe_model(cfg: CfgNode) -> dict:
    """The version, the adapter and the classes of a training, as plain types, which torch.load takes for safe.

    Returns:
        {"version": "0.2.0", "adapter": MODEL.ADAPTER as a dict, "classes": ["bus", ...]}
    """
    classes = [MetadataCatalog.get(name).get("thing_classes", []) for name in cfg.DATASETS.TRAIN]
    return {
        "version": __version__,
        "adapter": yaml.safe_load(cfg.MODEL.ADAPTER.dump()),
        "classes": list(classes[0]) if classes else [],
    }


def describe_checkpoint(metadata: dict | None) -> str:
    """A sentence for error messages; metadata are None in checkpoints of version 0.1 and of others."""
    if not metadata:
        return ""
    version, adapter = metadata["version"], metadata["adapter"]["NAME"]
    classes = ", ".join(metadata["classes"])
    return f" It was trained by soma_det {version} with MODEL.ADAPTER.NAME {adapter} for the classes {classes}."
