"""Mixed precision in training: which dtype a run gets, and the inner trainer that computes in it."""

import time
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn
from torch.optim import Optimizer

from soma_det.utils import machine


def training_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The dtype of the forward pass in training; None for full precision.

    A CPU with instructions for it multiplies matrices faster in bfloat16 than in fp32, so SOLVER.AMP.CPU "auto" uses it
    there even where SOLVER.AMP.ENABLED is off.
    """
    if cfg.SOLVER.AMP.ENABLED:
        return getattr(torch, cfg.SOLVER.AMP.DTYPE)
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.CPU == "auto" and machine.multiplies_bfloat16():
        return torch.bfloat16
    return None


def mixed_precision_trainer(trainer: SimpleTrainer, dtype: torch.dtype, device: str) -> SimpleTrainer:
    """A trainer of the same model, data and optimizer that runs the forward pass in ``dtype``."""
    parts = trainer.model, trainer.data_loader, trainer.optimizer
    if device == "cpu":
        return CPUAMPTrainer(*parts, dtype)
    # Only float16 is so narrow that gradients vanish unless the loss is scaled.
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    return CUDAAMPTrainer(*parts, precision=dtype, grad_scaler=scaler)


class CUDAAMPTrainer(AMPTrainer):
    """Detectron2's, which also goes on from a checkpoint of a run without loss scaling."""

    def load_state_dict(self, state_dict: dict) -> None:
        """As Detectron2's; a missing state of the scaler leaves it at its start."""
        scaler = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scaler})


class CPUAMPTrainer(SimpleTrainer):
    """The forward pass under autocast on the CPU, which Detectron2's AMPTrainer refuses; no loss scaling."""

    def __init__(self, model: nn.Module, data_loader: Any, optimizer: Optimizer, precision: torch.dtype):
        super().__init__(model, data_loader, optimizer)
        self.precision = precision

    def run_step(self) -> None:
        """One step; backward runs outside autocast, in the dtypes of the forward pass."""
        before = time.perf_counter()
        batch = next(self._data_loader_iter)
        waited = time.perf_counter() - before
        with torch.autocast("cpu", self.precision):
            losses = self.model(batch)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, waited)
        self.optimizer.step()
