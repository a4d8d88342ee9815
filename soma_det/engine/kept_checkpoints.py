"""Which checkpoints of a training stay on disk."""

import logging
import math
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

PERIODIC = f"model_{7 * '[0-9]'}.pth"


class CheckpointPruning(HookBase):
    """Deletes all but the newest checkpoints of the period; register it after the hook that writes them.

    model_final.pth and model_best.pth stay. What is on disk counts, so a resumed training goes on where it was.
    """

    def __init__(self, keep: int, period: int):
        if keep < 1:
            raise ValueError(f"SOLVER.CHECKPOINTS_KEPT is {keep}: give a number of checkpoints, or 0 for all.")
        self.keep, self.period = keep, period

    def before_train(self):
        if self.trainer.start_iter > 0:  # it may have been killed between a checkpoint and its pruning
            self._prune()

    def after_step(self):
        if (self.trainer.iter + 1) % self.period == 0:
            self._prune()

    def _prune(self) -> None:
        if comm.is_main_process():
            files = sorted(Path(self.trainer.checkpointer.save_dir).glob(PERIODIC))
            for path in files[: -self.keep]:
                path.unlink()


class BestOnSource(HookBase):
    """Keeps the checkpoint with the best score on the source split as model_best.pth, also after a resume.

    Register it after the hook that evaluates. Detectron2's BestCheckpointer forgets the best score when it is resumed.

    Args:
        period: of evaluations, in iterations; the last one counts too.
        metric: its name in the trainer's storage.
    """

    def __init__(self, period: int, metric: str):
        self.period, self.metric = period, metric
        self.best = -math.inf

    def after_step(self):
        following = self.trainer.iter + 1
        if following % self.period == 0 and following < self.trainer.max_iter:
            self._keep_if_best()

    def after_train(self):
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._keep_if_best()

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved best score."""
        self.best = state["best"]

    def _keep_if_best(self) -> None:
        score, iteration = self.trainer.storage.latest()[self.metric]
        if score > self.best:  # never so for NaN
            self.best = score
            self.trainer.checkpointer.save("model_best", iteration=iteration)
            logger.info("model_best.pth: %s is %.1f after iteration %d.", self.metric, score, iteration)
