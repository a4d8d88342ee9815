"""What a training run may do with the folder it is told to write to."""

import os

import yaml
from detectron2.config import CfgNode


def check_output_dir(cfg: CfgNode, resume: bool) -> None:
    """Refuse a folder that holds another run, before anything in it is overwritten.

    Raises:
        ValueError: a new training would mix with the checkpoints of an earlier one, or the training to resume had
            another model.
    """
    folder = cfg.OUTPUT_DIR
    if not os.path.isfile(os.path.join(folder, "last_checkpoint")):
        return
    if not resume:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds the checkpoints of another run: continue it with --resume, or choose another "
            "folder (OUTPUT_DIR path on the command line)."
        )
    saved = os.path.join(folder, "config.yaml")
    if os.path.isfile(saved):
        _require_same_model(cfg, saved)


def _require_same_model(cfg: CfgNode, saved: str) -> None:
    with open(saved) as file:
        before = yaml.safe_load(file)["MODEL"]
    now = yaml.safe_load(cfg.dump())["MODEL"]
    for model in (before, now):
        model.get("ADAPTER", {}).get("SOMA", {}).pop("CACHE", None)  # where decompositions are kept changes no result
    free = {"WEIGHTS", "DEVICE"}
    changed = [key for key in now if key not in free and now[key] != before.get(key)]
    if changed:
        raise ValueError(
            f"--resume: MODEL.{', MODEL.'.join(changed)} differ from {saved}, with which the checkpoints were made. "
            "Resume with that config, or train into another OUTPUT_DIR."
        )
