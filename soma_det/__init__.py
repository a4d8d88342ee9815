"""SoMA fine-tuning of Vision Transformer detectors for weather they have not seen, as a Detectron2 project."""

from soma_det import compat

compat.apply()

__version__ = "0.1.0"
