"""The model card of a run: what people put beside weights that they hand on, as the Hugging Face hub lays it out."""

import os
from collections.abc import Mapping
from pathlib import Path

import timm
import yaml
from detectron2.config import CfgNode

from soma_det.config.adapter import adapter_config
from soma_det.config.checks import has_vit
from soma_det.evaluation.results import NOTES, TABLES_FILE, format_table
from soma_det.evaluation.summary import WeatherSummary
from soma_det.utils.files import write_text

CARD_FILE = "model_card.md"
UNKNOWN = "other"  # the hub's word for a license that it does not list


def write_model_card(cfg: CfgNode, summary: WeatherSummary, versions: Mapping[str, str]) -> Path:
    """Write model_card.md into OUTPUT_DIR, from the config and the scores alone.

    Args:
        versions: package -> version, of those that the run used.
    """
    path = Path(cfg.OUTPUT_DIR, CARD_FILE)
    name = Path(os.path.abspath(cfg.OUTPUT_DIR)).name
    header = yaml.safe_dump(_header(cfg), sort_keys=False)
    parts = [f"---\n{header}---", f"# {name}: object detection in unseen weather", _intended(summary)]
    parts += ["## Scores", format_table(summary, "github").replace("## ", "### "), NOTES.strip()]
    parts += ["## Training", _training(cfg), "## Base weights", _base(cfg)]
    parts += ["## Use", _use(), "## Versions", "\n".join(f"- {key}: {value}" for key, value in versions.items())]
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def base_license(cfg: CfgNode) -> str:
    """The license of the pretrained ViT's weights as timm states it, "other" where it does not."""
    pretrained = (
        timm.get_pretrained_cfg(cfg.MODEL.VIT.NAME) if has_vit(cfg) and cfg.MODEL.VIT.WEIGHTS == "timm" else None
    )
    return (pretrained and pretrained.license) or UNKNOWN


def _header(cfg: CfgNode) -> dict:
    header: dict = {"library_name": "soma_det", "pipeline_tag": "object-detection", "license": base_license(cfg)}
    if has_vit(cfg):
        header["base_model"] = f"timm/{cfg.MODEL.VIT.NAME}"
    return header | {"tags": ["object-detection", "domain-generalization", "detectron2", cfg.MODEL.ADAPTER.NAME]}


def _intended(summary: WeatherSummary) -> str:
    source = summary.labels.get(summary.source, summary.source or "its training data")
    targets = ", ".join(summary.labels[name] for name in summary.targets)
    seen = f"{source} and unlabelled images of {targets}" if targets else f"{source} alone"
    return (
        f"A detector trained on {seen} and tested in every weather below. The other weathers were not seen in "
        "training, and no checkpoint was chosen by their scores. It has not been tested for driving: do not let it "
        "decide about safety."
    )


def _training(cfg: CfgNode) -> str:
    solver = cfg.SOLVER
    facts = {
        "training sets": ", ".join(cfg.DATASETS.TRAIN),
        "detector": cfg.MODEL.META_ARCHITECTURE,
        "backbone": cfg.MODEL.VIT.NAME if has_vit(cfg) else cfg.MODEL.BACKBONE.NAME,
        "adapter": repr(adapter_config(cfg)) if has_vit(cfg) else "none",
        "frozen blocks": cfg.MODEL.VIT.FROZEN_BLOCKS,
        "iterations": f"{solver.MAX_ITER:,} of {solver.IMS_PER_BATCH} images",
        "learning rate": f"{solver.BASE_LR}, of the ViT times {solver.BACKBONE_LR_MULTIPLIER}",
        "crop": "{} x {} pixels".format(*cfg.INPUT.AUGMENTATION.CROP_SIZE),
        "seed": cfg.SEED,
    }
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    return "\n".join([*lines, f"\nEvery setting is in config.yaml; the scores are also in {TABLES_FILE}."])


def _base(cfg: CfgNode) -> str:
    if not has_vit(cfg) or not cfg.MODEL.VIT.WEIGHTS:
        return "Trained from random weights."
    known = base_license(cfg)
    if known == UNKNOWN:
        return (
            f"The ViT started from a file of weights, {Path(cfg.MODEL.VIT.WEIGHTS).name}, whose license is not known "
            "here. Its terms hold for this model: state them before you hand it on."
        )
    return f"The ViT started from {cfg.MODEL.VIT.NAME} of timm, license {known}. Its terms hold for this model too."


def _use() -> str:
    return (
        "    from soma_det import Detector\n\n"
        '    detector = Detector("FOLDER")          # with config.yaml and model_final.pth or detector.safetensors\n'
        '    result = detector("street.jpg")\n'
        "    result.boxes, result.scores, result.class_names"
    )
