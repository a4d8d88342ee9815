"""Losses that are not finite: which, where, on which images; and, on request, a training that goes on without them."""

import logging
import math
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError):
    """A loss is infinite or not a number; nothing of the step has reached the weights."""


class LossGuard(HookBase):
    """Looks at the losses of each step before the backward pass, on all ranks alike.

    Raises:
        NonFiniteLossError: a loss is not finite; the message names the iteration, the losses and the images.
    """

    def __init__(self) -> None:
        self.handle: RemovableHandle | None = None

    def before_train(self):
        self.handle = self.trainer.model.register_forward_hook(self._check)

    def after_train(self):
        if self.handle:
            self.handle.remove()

    def _check(self, model: nn.Module, inputs: tuple, losses: Any) -> None:
        if not model.training:
            return
        values = {name: loss.item() for name, loss in losses.items()}
        bad = not all(map(math.isfinite, values.values()))
        if not any(comm.all_gather(bad)):
            return
        images = [entry.get("file_name", "?") for entry in inputs[0]]
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        where = "" if bad else " (finite here, not so in another process)"
        raise NonFiniteLossError(
            f"The loss is not finite at iteration {self.trainer.iter}{where}: {parts}. Images: {', '.join(images)}. "
            "The weights are those of the step before. Lower SOLVER.BASE_LR, look at these images and their boxes, or "
            "set SOLVER.SKIP_NON_FINITE to go on without up to so many steps."
        )


class SkipNonFinite:
    """Counts the steps that are left out because their loss is not finite.

    Args:
        limit: of steps to leave out; the next one stops the training.
    """

    def __init__(self, limit: int):
        if limit < 0:
            raise ValueError(f"SOLVER.SKIP_NON_FINITE is {limit}: give a number of steps, 0 for none.")
        self.limit, self.skipped = limit, 0

    def leave_out(self, error: NonFiniteLossError) -> None:
        """Note one more step; raises the error where the limit is reached."""
        if self.skipped >= self.limit:
            raise error
        self.skipped += 1
        logger.warning("Left out step %d of at most %d: %s", self.skipped, self.limit, error)
