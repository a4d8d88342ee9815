"""SoMA fine-tuning of Vision Transformer detectors for weather they have not seen, as a Detectron2 project."""

from soma_det import compat

compat.apply()  # before anything imports Detectron2's submodules

from soma_det import modeling  # noqa: E402, F401  (fills Detectron2's registries)
from soma_det.config import add_soma_config  # noqa: E402
from soma_det.engine import Trainer  # noqa: E402

__all__ = ["Trainer", "add_soma_config"]
__version__ = "0.1.0"
