#!/usr/bin/env python
"""Adapt a detector to a weather by images without labels: see --help, or run

python tools/adapt_domain.py --config-file configs/uda/self_training.yaml
"""
# ruff: noqa: I001

import os

# Before torch is imported, for the reason that tools/train_net.py gives.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
from train_net import parse_command, start

from soma_det.uda.config import check_uda
from soma_det.uda.data import register_targets
from soma_det.uda.trainer import UdaTrainer

DESCRIPTION = """Train a detector on annotated images of one domain and on images of others without annotations.

This is domain adaptation, not generalization: the target's weather is seen. Reports name it the target and leave it out
of the mean of unseen weather. docs/domain_adaptation.md has the methods and what they gave."""

EXAMPLES = """
Examples:

First a detector of the source alone, with the strong augmentation that the adaptation will have:
    python tools/adapt_domain.py --config-file configs/uda/source.yaml

From it, learn from unlabelled images of a rainy night:
    python tools/adapt_domain.py --config-file configs/uda/self_training.yaml

From images in a folder of your own:
    python tools/adapt_domain.py --config-file configs/uda/self_training.yaml UDA.TARGET '["footage/night"]' \\
        OUTPUT_DIR output/my_night

Align features by a discriminator instead, or besides:
    python tools/adapt_domain.py --config-file configs/uda/alignment.yaml

Continue after an interruption:
    python tools/adapt_domain.py --config-file configs/uda/self_training.yaml --resume

What could be reached with labels, the oracle: the target's images among the annotated ones.
    python tools/adapt_domain.py --config-file configs/uda/source.yaml OUTPUT_DIR output/uda_oracle \\
        DATASETS.TRAIN '("synthdrive_daytime_clear_train", "synthdrive_night_rainy_train")'

Evaluate, draw, export and use what comes out like any other run: its config.yaml is one of tools/train_net.py's.
"""


def parse_args(argv=None):
    """Detectron2's arguments; a config file is required."""
    return parse_command("adapt_domain.py", DESCRIPTION, EXAMPLES, "configs/uda/self_training.yaml", argv)


def check_start(cfg):
    """Raise a FileNotFoundError where the detector to start from is not there."""
    if cfg.MODEL.WEIGHTS and not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(f"There is no MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: train it first, see --help.")


if __name__ == "__main__":
    start(parse_args(), UdaTrainer, (check_uda, check_start, register_targets))
