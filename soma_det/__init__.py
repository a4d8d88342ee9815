"""SoMA fine-tuning of Vision Transformer detectors for unseen weather, as a Detectron2 project.

Importing the package makes Detectron2 usable without its compiled extension and fills its registries, so import it
before Detectron2. Without Detectron2 only :mod:`soma_det.adapters` can be used.
"""

from importlib.util import find_spec

from soma_det.version import __version__

__all__ = ["Detector", "Trainer", "__version__", "add_soma_config"]

if find_spec("detectron2") is not None:
    from soma_det.utils import compat

    compat.apply()  # before anything imports Detectron2's submodules

    from soma_det import modeling  # noqa: F401  (fills Detectron2's registries)
    from soma_det.config import add_soma_config
    from soma_det.detector import Detector
    from soma_det.engine import Trainer
else:

    def __getattr__(name: str):
        if name in ("Detector", "Trainer", "add_soma_config"):
            from soma_det.utils.compat import INSTALL_HINT

            raise ImportError(INSTALL_HINT)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
