"""Hooks of domain adaptation: how strongly features are aligned, and a watch over a teacher's labels."""

import logging
from collections import Counter, deque
from typing import Any

from detectron2.engine import HookBase

from soma_det.uda.alignment import DomainAlignment, dann_reversal
from soma_det.uda.teacher import Teacher

logger = logging.getLogger(__name__)


class ReversalSchedule(HookBase):
    """Sets the factor of the reversed gradient before each step, and logs it.

    Args:
        cap: the factor that the schedule leads to.
        schedule: "dann", see :func:`~soma_det.uda.alignment.dann_reversal`, or "constant".
    """

    def __init__(self, alignment: DomainAlignment, cap: float, schedule: str, gamma: float):
        self.alignment, self.cap, self.schedule, self.gamma = alignment, cap, schedule, gamma

    def before_step(self):
        progress = self.trainer.iter / self.trainer.max_iter
        share = dann_reversal(progress, self.gamma) if self.schedule == "dann" else 1.0
        self.alignment.reversal = self.cap * share
        self.trainer.storage.put_scalar("alignment/reversal", self.alignment.reversal, smoothing_hint=False)


class PseudoLabelWatch(HookBase):
    """Logs how many boxes a teacher labels, how confident it is and the share of its most frequent class.

    Warns when labels die out or take over, compared with the first ``WINDOW`` iterations.
    """

    WINDOW = 50  # iterations

    def __init__(self, teacher: Teacher):
        self.teacher = teacher
        self.first: float | None = None
        self.recent: deque[float] = deque(maxlen=self.WINDOW)
        self.warned = False

    def after_step(self):
        if not self.teacher.boxes:
            return
        put, boxes = self.trainer.storage.put_scalar, self.teacher.boxes
        self.recent.append(sum(boxes) / len(boxes))
        put("pseudo_labels/boxes", self.recent[-1])
        if self.teacher.scores:
            put("pseudo_labels/confidence", sum(self.teacher.scores) / len(self.teacher.scores))
            most = Counter(self.teacher.classes).most_common(1)[0][1]
            put("pseudo_labels/most_frequent_class", most / len(self.teacher.classes))
        if len(self.recent) == self.WINDOW:
            self._compare(sum(self.recent) / self.WINDOW)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with."""
        return {"first": self.first, "recent": list(self.recent), "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved figures."""
        self.first, self.warned = state["first"], state["warned"]
        self.recent.extend(state["recent"])

    def _compare(self, now: float) -> None:
        if self.first is None:
            self.first = now
        elif not self.warned and not self.first / 4 <= now <= 4 * self.first:
            self.warned = True
            logger.warning(
                "The teacher labels %.2f boxes in an image, at first %.2f: training is probably collapsing. Lower "
                "UDA.LABELS.WEIGHT or SOLVER.BASE_LR, raise UDA.LABELS.THRESHOLD, or take another UDA.TEACHER.",
                now,
                self.first,
            )
