"""Averages of the trained weights over iterations, which are evaluated and saved in place of the last ones.

Sources: exponential averages, Tarvainen and Valpola, Mean teachers, arXiv 1703.01780; equal averages, Izmailov et al.,
Averaging Weights Leads to Wider Optima and Better Generalization, arXiv 1803.05407.
"""

import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from soma_det.engine.hooks import unwrap_ddp

logger = logging.getLogger(__name__)


class WeightAveraging(HookBase):
    """Averages what trains, and puts the average into the model after the last iteration.

    Register it before the hook that writes checkpoints, so that model_final.pth holds the average; checkpoints before
    it hold the weights of their iteration, and beside them the average so far, from which a resumed training goes on.
    Factors of a low-rank change are averaged as they are, not as their product.

    Args:
        method: "ema", exponential with ``decay``, or "swa", equal weights.
        decay: of "ema", in iterations: the weight of the past at each one; it rises to this from 0.
        start: the share of all iterations after which averaging starts.
    """

    def __init__(self, method: str, decay: float = 0.99, start: float = 0.0):
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.WEIGHT_AVERAGE.DECAY is {decay}: give a number between 0 and 1.")
        if not 0 <= start < 1:
            raise ValueError(f"SOLVER.WEIGHT_AVERAGE.START is {start}: give a share of the iterations below 1.")
        self.method, self.decay, self.start = method, decay, start
        self.averages: dict[str, Tensor] = {}
        self.count = 0

    def after_step(self):
        if self.trainer.iter < round(self.start * self.trainer.max_iter):
            return
        trained = {n: p.detach() for n, p in unwrap_ddp(self.trainer.model).named_parameters() if p.requires_grad}
        if not self.averages:
            self.averages = {name: tensor.clone() for name, tensor in trained.items()}
        else:
            averages = [self.averages[name].to(tensor.device) for name, tensor in trained.items()]
            self._average()(averages, list(trained.values()), torch.tensor(self.count))
            self.averages = dict(zip(trained, averages))
        self.count += 1
        if self.trainer.iter + 1 == self.trainer.max_iter:
            for name, tensor in trained.items():
                tensor.copy_(self.averages[name])
            logger.info("The model holds the average (%s) of its weights in %d iterations.", self.method, self.count)

    def state_dict(self) -> dict[str, Any]:
        """The averages so far; Detectron2 saves it with each checkpoint."""
        return {"averages": self.averages, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved averages."""
        self.averages, self.count = dict(state["averages"]), state["count"]

    def _average(self) -> Any:
        if self.method == "swa":
            return get_swa_multi_avg_fn()
        # Young averages would hold on to the first weights: 1/2, 2/3, 3/4, ... of the past until the decay is reached.
        return get_ema_multi_avg_fn(min(self.decay, self.count / (self.count + 1)))
