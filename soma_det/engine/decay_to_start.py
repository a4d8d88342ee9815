"""Weight decay towards the weights that training started from.

Source: Li, Grandvalet and Davoine, Explicit inductive bias for transfer learning with convolutional networks (L2-SP),
ICML 2018, arXiv 1802.01483; decoupled from the gradients, as in AdamW.
"""

from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from soma_det.engine.hooks import unwrap_ddp


class DecayToStart(HookBase):
    """Pulls the trained weights of the optimizer's backbone groups towards their first values, at every step.

    Each step subtracts ``learning rate * strength * (weight - first weight)`` before the optimizer's own update. The
    factors of a low-rank change are pulled as they are, not their product. Give these groups no weight decay of their
    own. Checkpoints hold the first values, so that a resumed training is pulled to the same ones.

    Raises:
        ValueError: the strength is negative.
    """

    def __init__(self, strength: float):
        if strength < 0:
            raise ValueError(f"SOLVER.BACKBONE_DECAY_TO_START is {strength}: give 0 or more.")
        self.strength = strength
        self.start: dict[str, Tensor] = {}
        self.handle: RemovableHandle | None = None

    def before_train(self):
        if not self.start:
            self.start = {name: p.detach().clone() for name, p in self._weights().items()}
        self.handle = self.trainer.optimizer.register_step_pre_hook(self._pull)

    def after_train(self):
        if self.handle:
            self.handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The first values; Detectron2 saves it with each checkpoint."""
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the first values of the training that is resumed."""
        self.start = dict(state["start"])

    def _groups(self) -> list[dict[str, Any]]:
        return [g for g in self.trainer.optimizer.param_groups if str(g.get("name")).startswith("backbone")]

    def _weights(self) -> dict[str, Tensor]:
        own = {id(parameter) for group in self._groups() for parameter in group["params"]}
        return {name: p for name, p in unwrap_ddp(self.trainer.model).named_parameters() if id(p) in own}

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, *args: Any) -> None:
        rates = {id(parameter): group["lr"] for group in self._groups() for parameter in group["params"]}
        for name, weight in self._weights().items():
            weight.lerp_(self.start[name].to(weight.device), rates[id(weight)] * self.strength)
