"""Hooks for Detectron2's trainers: annealed weight decay, frozen layers, and what an exact resume needs."""

import logging
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.common.history_buffer import HistoryBuffer
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from soma_det.modeling.freezing import fingerprint, match_modules

logger = logging.getLogger(__name__)


def unwrap_ddp(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


class WeightDecayAnnealing(HookBase):
    """Lowers the weight decay of every group of the optimizer along a half cosine, and logs it.

    It falls from the group's own to ``final``; zero stays zero. The group's own is kept in the optimizer's state as
    ``initial_weight_decay``: a resumed training goes on along its curve, whatever SOLVER.WEIGHT_DECAY says by then.

    Source: arXiv 2412.04077, section 3.3.
    """

    def __init__(self, final: float = 1e-5):
        if final < 0:
            raise ValueError(f"SOLVER.WEIGHT_DECAY_ANNEALING.FINAL is {final}: give 0 or more.")
        self.final = final

    def before_train(self):
        for group in self.trainer.optimizer.param_groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])

    def before_step(self):
        progress = self.trainer.iter / self.trainer.max_iter
        for index, group in enumerate(self.trainer.optimizer.param_groups):
            initial, name = group["initial_weight_decay"], group.get("name", index)
            group["weight_decay"] = CosineParamScheduler(initial, self.final if initial else 0.0)(progress)
            self.trainer.storage.put_scalar(f"weight_decay/{name}", group["weight_decay"], smoothing_hint=False)


class LayerFreezing(HookBase):
    r"""Keeps listed modules frozen and in evaluation mode, for good or until an iteration.

    Their gradients are dropped before the optimizer's step, so that neither momentum nor weight decay touches them and
    clipping ignores them; DistributedDataParallel does not allow ``requires_grad`` to change. To save the gradients'
    computation too, freeze the modules when the model is built, as this project's trainer does. Modules that are frozen
    for good are verified to be bit-equal at the end.

    Args:
        modules: regular expressions of whole module names. Name modules that hold weights, such as
            ``proposal_generator\.rpn_head``: one that computes losses does not do so in evaluation mode.
        until: the iteration from which they train; 0 for never.
    """

    def __init__(self, modules: Sequence[str], until: int = 0):
        if until < 0:
            raise ValueError(f"SOLVER.FREEZING.UNTIL is {until}: give the iteration of the thaw, or 0 for never.")
        self.patterns, self.until = list(modules), until
        # Detectron2 calls after_train even where a before_train has failed.
        self.modules: dict[str, nn.Module] = {}
        self.fingerprints: dict[str, str] = {}
        self.handle: RemovableHandle | None = None

    def before_train(self):
        self.modules = match_modules(unwrap_ddp(self.trainer.model), self.patterns)
        self.handle = self.trainer.optimizer.register_step_pre_hook(self._drop_gradients)
        if not self.until:
            self.fingerprints = {name: fingerprint(module) for name, module in self.modules.items()}
        logger.info("Frozen %s: %s", f"until {self.until}" if self.until else "for good", ", ".join(self.modules))

    def before_step(self):
        frozen = self._is_frozen()
        for module in self.modules.values():
            if frozen == module.training:
                module.train(not frozen)

    def after_train(self):
        if self.handle:
            self.handle.remove()
        changed = [name for name, before in self.fingerprints.items() if fingerprint(self.modules[name]) != before]
        if changed:
            raise RuntimeError(f"Frozen modules have changed during training: {changed}.")
        if self.fingerprints:
            logger.info("Frozen modules are bit-equal to before.")

    def _is_frozen(self) -> bool:
        return not self.until or self.trainer.iter < self.until

    def _drop_gradients(self, *args: Any) -> None:
        for module in self.modules.values() if self._is_frozen() else ():
            module.zero_grad(set_to_none=True)


class GradientClipping(HookBase):
    """Scales the gradients of the whole model to at most one norm before the optimizer's step, and logs the norm.

    Detectron2's own clips each parameter by itself. Register this hook after :class:`LayerFreezing`, so that dropped
    gradients do not count. Loss scaling is undone before.
    """

    def __init__(self, max_norm: float, norm_type: float = 2.0):
        if max_norm <= 0:
            raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {max_norm}: give a norm above 0.")
        self.max_norm, self.norm_type = max_norm, norm_type
        self.norm: Tensor | None = None
        self.handle: RemovableHandle | None = None

    def before_train(self):
        self.handle = self.trainer.optimizer.register_step_pre_hook(self._clip)

    def after_step(self):
        if self.norm is not None:
            self.trainer.storage.put_scalar("gradient_norm", self.norm.item())
            self.norm = None  # the next step may be one that loss scaling skips

    def after_train(self):
        if self.handle:
            self.handle.remove()

    def _clip(self, optimizer: Optimizer, *args: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.norm = nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)


class SeedEachIteration(HookBase):
    """Makes the model's random choices follow from seed, iteration and rank: a resumed training repeats them."""

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self):
        torch.manual_seed((self.seed * 1_000_003 + self.trainer.iter) * 1_009 + comm.get_rank())


class BoundedHistories(HookBase):
    """Keeps the latest values of each metric alone, of which Detectron2 keeps up to a million.

    Register it before hooks that put metrics. What is logged stays the same: no median is of more values than this.
    """

    LENGTH = 1000  # values of a metric; Detectron2's estimate of the remaining time takes the median of so many

    def before_train(self):
        bound_histories(self.trainer.storage, self.LENGTH)


def bound_histories(storage: EventStorage, length: int) -> None:
    """Let metrics that are not in the storage yet keep their latest ``length`` values."""
    cast(defaultdict, storage.histories()).default_factory = partial(HistoryBuffer, length)


class RecentMetrics(HookBase):
    """Saves the latest values of each metric with a checkpoint: a resumed training logs the same medians."""

    PERIOD = 20  # iterations, after which Detectron2's writers log, and of which they take the medians

    def __init__(self):
        self.saved: dict[str, tuple[bool, list[tuple[float, int]]]] = {}

    def before_train(self):
        start, storage = self.trainer.start_iter, self.trainer.storage
        unwritten = (
            start - start % self.PERIOD if start < self.trainer.max_iter else start
        )  # the first iteration that is
        for name, (smooth, values) in self.saved.items():
            for value, iteration in values:
                storage.put_scalar(name, value, smoothing_hint=smooth, cur_iter=iteration)
            if values[-1][1] < unwritten:
                del storage.latest()[name]  # or it would be written again

    def state_dict(self) -> dict[str, Any]:
        """Metric -> whether it is logged as a median, and the latest (value, iteration)."""
        if not hasattr(self.trainer, "storage"):  # it has not begun to train
            return self.saved
        hints, histories = self.trainer.storage.smoothing_hints(), self.trainer.storage.histories()
        return {name: (hints[name], history.values()[-self.PERIOD :]) for name, history in histories.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved values."""
        self.saved = state


class SaveOnInterrupt(HookBase):
    """On SIGINT, SIGTERM or SIGUSR1, finishes the iteration, saves a checkpoint and stops, on every rank alike.

    Clusters send the last two before they take a machine back. A second signal stops at once, and so does the first one
    while the trained model is being evaluated.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.received, self.process, self.previous = None, os.getpid(), {}

    def before_train(self):
        in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
        self.previous = {number: signal.signal(number, self._note) for number in self.SIGNALS if in_main_thread}

    def after_step(self):
        if not any(comm.all_gather(self.received is not None)):
            return
        self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}")
        comm.synchronize()  # where one process ends, launchers stop the others, of which the first is still writing
        logger.warning("Interrupted after %d iterations; all is saved, go on with --resume.", self.trainer.iter + 1)
        raise SystemExit(128 + (self.received or signal.SIGTERM))

    def after_train(self):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # a data loader's worker: Ctrl-C reaches it too, and the iteration needs it
            if number == signal.SIGTERM:
                os._exit(0)
            return
        signal.signal(number, self.previous[number])
        if self.trainer.iter >= self.trainer.max_iter:
            logger.warning("Stopping; the trained model is saved, evaluate it with --resume.")
            signal.raise_signal(number)
            return
        logger.warning("Stopping after this iteration; once more to stop at once.")
        self.received = number
