"""Detectron2's DefaultTrainer with the SoMA recipe, weather evaluation and exact resume."""

import datetime
import gc
import logging
import os
import re
import weakref
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer, describe_model
from soma_det.checkpoint.exported import is_exported, load_exported, with_plain_vit
from soma_det.config import check_device
from soma_det.config.checks import has_vit
from soma_det.data.build import build_test_loader, build_train_loader
from soma_det.engine import hooks
from soma_det.engine.amp import mixed_precision_trainer, training_dtype
from soma_det.engine.averaging import WeightAveraging
from soma_det.engine.cpu import training_attention
from soma_det.engine.decay_to_start import DecayToStart
from soma_det.engine.determinism import set_determinism
from soma_det.engine.divergence import LossGuard, NonFiniteLossError, SkipNonFinite
from soma_det.engine.inference import prepared_for_inference
from soma_det.engine.kept_checkpoints import BestOnSource, CheckpointPruning
from soma_det.evaluation import build_evaluator, report
from soma_det.evaluation.model_card import write_model_card
from soma_det.evaluation.summary import target_splits
from soma_det.modeling.backbone.timm_vit import count_parameters, find_vits
from soma_det.modeling.freezing import freeze_from_config
from soma_det.solver.build import build_adamw
from soma_det.utils import compat
from soma_det.version import __version__

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """The standard trainer: AdamW groups, annealed weight decay and layer freezing come in as hooks."""

    def __init__(self, cfg: CfgNode):
        self.skipping = SkipNonFinite(cfg.SOLVER.SKIP_NON_FINITE)
        set_determinism(cfg.SOLVER.DETERMINISTIC)
        with compat.ddp_on(cfg.MODEL.DEVICE):
            super().__init__(cfg)
        self.dtype = training_dtype(cfg)
        if self.dtype is not None:
            self._trainer: SimpleTrainer = mixed_precision_trainer(self._trainer, self.dtype, cfg.MODEL.DEVICE)

    def run_step(self) -> None:
        """As Detectron2's; on CPUs attention is computed in the way that trains faster there."""
        with training_attention(self.model, self.dtype) if self.cfg.MODEL.DEVICE == "cpu" else nullcontext():
            try:
                super().run_step()
            except NonFiniteLossError as error:
                self.skipping.leave_out(error)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The config's model, with SOLVER.FREEZING.MODULES frozen where that is for good."""
        model = build_model(cfg)
        freeze_from_config(model, cfg)
        trained, total = count_parameters(model, trainable=True), count_parameters(model)
        logger.info("Model: %d of %d parameters train", trained, total)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """AdamW with the groups of :func:`~soma_det.solver.build.build_adamw`."""
        solver, vit = cfg.SOLVER, next(iter(find_vits(model).values()), None)
        # Weights that are pulled to where they started are not pulled to zero as well.
        decay = 0.0 if solver.BACKBONE_DECAY_TO_START else solver.BACKBONE_WEIGHT_DECAY_MULTIPLIER
        multipliers = solver.BACKBONE_LR_MULTIPLIER, decay
        decays = solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM
        return build_adamw(model, solver.BASE_LR, *decays, betas=solver.BETAS, vit=vit, vit_multipliers=multipliers)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """Detectron2's, which leaves out steps beyond SOLVER.MAX_ITER but fails at one that equals it."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.STEPS = [step for step in cfg.SOLVER.STEPS if step != cfg.SOLVER.MAX_ITER]
        return super().build_lr_scheduler(cfg, optimizer)

    build_train_loader = staticmethod(build_train_loader)
    build_test_loader = staticmethod(build_test_loader)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        return build_evaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, and before them this project's, which set up each step."""
        # DefaultTrainer has just made its own checkpointer, and the hooks built next will hold on to it.
        self.checkpointer = AtomicCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, description=describe_model(self.cfg), trainer=weakref.proxy(self)
        )
        recipe = _recipe_hooks(self.cfg, hooks.unwrap_ddp(self.model), self.data_loader.seed)
        built = recipe + super().build_hooks() + _checkpoint_hooks(self.cfg)
        # Checkpoints after the evaluation, which a resumed training has to repeat where it did not come to its end.
        last = (PeriodicCheckpointer, CheckpointPruning, hooks.SaveOnInterrupt)
        return sorted(built, key=lambda hook: isinstance(hook, last))

    def after_train(self) -> None:
        """As Detectron2's, which counts too far where a resumed training has nothing left to train."""
        self.iter: int = min(self.iter, self.max_iter)
        try:
            super().after_train()
        finally:  # Python's signals come back also where a hook fails, as the last evaluation can
            next(hook for hook in self._hooks if isinstance(hook, hooks.SaveOnInterrupt)).after_train()

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; a resumed training also goes on in the data where it stopped."""
        super().resume_or_load(resume=resume)
        self.data_loader.start_iteration = self.start_iter

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict:
        """Evaluate every test set, then write and log the summary across weathers, and write the model card.

        Adapters that can be merged are, for as long as it takes; the model comes back as it was.

        Returns:
            {data set: {"bbox": COCO metrics, "voc": VOC AP50, ...}}; empty on all but the main process.
        """
        dtype = getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.TEST.AMP.ENABLED else None
        with prepared_for_inference(model, dtype, cfg.TEST.COMPILE) as prepared:
            results = super().test(cfg, prepared, evaluators)
        if not comm.is_main_process() or not cfg.DATASETS.TEST:
            return OrderedDict()
        if len(cfg.DATASETS.TEST) == 1:  # Detectron2 drops the name of a lone test set
            results = OrderedDict({cfg.DATASETS.TEST[0]: results})
        described = _describe_run(cfg)
        targets = target_splits(results, cfg.UDA.TARGET)
        summary = report(results, cfg.DATASETS.SOURCE_TEST, cfg.OUTPUT_DIR, described, targets)
        write_model_card(cfg, summary, {name: str(described[name]) for name in ("soma_det", "torch")})
        gc.collect()  # the charts are cycles of some MiB, which Python would keep through dozens of evaluations
        return results


def _describe_run(cfg: CfgNode) -> dict[str, str | int]:
    is_vit = has_vit(cfg)
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "backbone": cfg.MODEL.VIT.NAME if is_vit else cfg.MODEL.BACKBONE.NAME,
        "adapter": cfg.MODEL.ADAPTER.NAME if is_vit else "none",
        "training sets": ", ".join(cfg.DATASETS.TRAIN),
        "weights": cfg.MODEL.WEIGHTS or f"trained in this run, {cfg.SOLVER.MAX_ITER} iterations",
        "seed": cfg.SEED,
        "soma_det": __version__,
        "torch": torch.__version__,
    }


def _recipe_hooks(cfg: CfgNode, model: nn.Module, seed: int) -> list[HookBase]:
    every = hooks.SeedEachIteration(seed), hooks.BoundedHistories(), hooks.RecentMetrics(), LossGuard()
    recipe: list[HookBase] = list(every)
    solver, frozen = cfg.SOLVER, cfg.MODEL.VIT.FROZEN_BLOCKS
    for name, vit in find_vits(model).items() if frozen else ():
        modules = "|".join(map(re.escape, vit.frozen_modules(frozen)))
        recipe.append(hooks.LayerFreezing([rf"{re.escape(name)}\.model\.({modules})"]))
    if solver.FREEZING.MODULES:
        recipe.append(hooks.LayerFreezing(solver.FREEZING.MODULES, solver.FREEZING.UNTIL))
    if solver.CLIP_GRADIENTS.ENABLED:
        recipe.append(hooks.GradientClipping(solver.CLIP_GRADIENTS.CLIP_VALUE, solver.CLIP_GRADIENTS.NORM_TYPE))
    if solver.WEIGHT_DECAY_ANNEALING.ENABLED:
        recipe.append(hooks.WeightDecayAnnealing(solver.WEIGHT_DECAY_ANNEALING.FINAL))
    if solver.BACKBONE_DECAY_TO_START:
        recipe.append(DecayToStart(solver.BACKBONE_DECAY_TO_START))
    if solver.WEIGHT_AVERAGE.METHOD != "none":
        average = solver.WEIGHT_AVERAGE
        recipe.append(WeightAveraging(average.METHOD, average.DECAY, average.START))
    return recipe


def _checkpoint_hooks(cfg: CfgNode) -> list[HookBase]:
    """What comes after Detectron2's hooks, which write the checkpoints and evaluate."""
    best = [BestOnSource(cfg.TEST.EVAL_PERIOD, f"{cfg.DATASETS.SOURCE_TEST}/voc/AP50")] if cfg.TEST.KEEP_BEST else []
    kept = cfg.SOLVER.CHECKPOINTS_KEPT
    pruning = [CheckpointPruning(kept, cfg.SOLVER.CHECKPOINT_PERIOD)] if kept else []
    return [*best, *pruning, hooks.SaveOnInterrupt()]


def load_model(cfg: CfgNode) -> nn.Module:
    """The config's model with MODEL.WEIGHTS, a checkpoint or an exported detector, in evaluation mode.

    Raises:
        ValueError: MODEL.WEIGHTS is empty, or of another kind of model.
        FileNotFoundError: there is no such file.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a checkpoint, such as output/model_final.pth.")
    check_device(cfg)
    exported = is_exported(cfg.MODEL.WEIGHTS)
    model = Trainer.build_model(with_plain_vit(cfg) if exported else cfg)
    if exported:
        load_exported(model, cfg.MODEL.WEIGHTS)
    else:
        AtomicCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()
