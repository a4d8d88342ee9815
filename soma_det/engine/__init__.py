from soma_det.engine.trainer import Trainer, load_model

__all__ = ["Trainer", "load_model"]
