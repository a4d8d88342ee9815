"""Detectron2's DefaultTrainer with the SoMA recipe, weather evaluation and exact resume."""

import datetime
import logging
import os
import types
import weakref
from collections import OrderedDict
from contextlib import nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import Backbone, build_model
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from soma_det.config import check_device
from soma_det.data.build import build_test_loader, build_train_loader
from soma_det.engine import hooks
from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer
from soma_det.engine.inference import in_full_precision, prepared_for_inference
from soma_det.solver.build import build_adamw
from soma_det.utils import compat
from soma_det.version import __version__
from soma_det.evaluation import build_evaluator, report
from soma_det.modeling.freezing import freeze, match_modules
from soma_det.modeling.backbone.timm_vit import count_parameters

VIT_BACKBONE = "build_soma_vit_backbone"

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """The standard trainer: AdamW groups, annealed weight decay and layer freezing come in as hooks."""

    def __init__(self, cfg: CfgNode):
        amp_on_cpu = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu"
        # Detectron2's AMPTrainer is for CUDA alone. bfloat16 has no need of what it adds, the scaling of the loss.
        with compat.ddp_on(cfg.MODEL.DEVICE):
            super().__init__(_without_amp(cfg) if amp_on_cpu else cfg)
        if amp_on_cpu:
            _train_in(self.model, "cpu", torch.bfloat16)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The config's model, with SOLVER.FREEZING.MODULES frozen where that is for good."""
        model = build_model(cfg)
        if cfg.SOLVER.FREEZING.UNTIL == 0:
            freeze(match_modules(model, cfg.SOLVER.FREEZING.MODULES).values())
        if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE != "cpu":
            _train_in(model, "cuda", getattr(torch, cfg.SOLVER.AMP.DTYPE))
        logger.info(
            "Model: %d of %d parameters train", count_parameters(model, trainable=True), count_parameters(model)
        )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """AdamW with the groups of :func:`~soma_det.solver.build.build_adamw`."""
        return build_adamw(
            model,
            lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            betas=cfg.SOLVER.BETAS,
            backbone_lr_multiplier=cfg.SOLVER.BACKBONE_LR_MULTIPLIER,
            backbone_weight_decay_multiplier=cfg.SOLVER.BACKBONE_WEIGHT_DECAY_MULTIPLIER,
            norm_weight_decay=cfg.SOLVER.WEIGHT_DECAY_NORM,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        return build_evaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, and before them this project's, which set up each step."""
        # DefaultTrainer has just made its own checkpointer, and the hooks built next will hold on to it.
        self.checkpointer = AtomicCheckpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return _recipe_hooks(self.cfg, self.data_loader.seed) + super().build_hooks() + [hooks.SaveOnInterrupt()]

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; a resumed training also goes on in the data where it stopped."""
        super().resume_or_load(resume=resume)
        self.data_loader.start_iteration = self.start_iter

    def state_dict(self) -> dict:
        """With the optimizer's state, which Detectron2 0.4 leaves out."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """As Detectron2's, with the optimizer's state, also of a training that did not scale its loss."""
        if hasattr(self._trainer, "grad_scaler"):
            state_dict["_trainer"].setdefault("grad_scaler", self._trainer.grad_scaler.state_dict())
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """Evaluate every test set, then write and log the summary across weathers.

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
        report(results, cfg.DATASETS.SOURCE_TEST, cfg.OUTPUT_DIR, _describe_run(cfg))
        return results


def _describe_run(cfg: CfgNode) -> dict[str, str | int]:
    is_vit = cfg.MODEL.BACKBONE.NAME == VIT_BACKBONE
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


def _recipe_hooks(cfg: CfgNode, seed: int) -> list[HookBase]:
    recipe = [hooks.SeedEachIteration(seed)]
    if cfg.MODEL.VIT.FROZEN_BLOCKS and cfg.MODEL.BACKBONE.NAME == VIT_BACKBONE:
        blocks = "|".join(f"blocks\\.{index}" for index in range(cfg.MODEL.VIT.FROZEN_BLOCKS))
        recipe.append(hooks.LayerFreezing([rf"backbone\.net\.model\.(patch_embed|{blocks})"]))
    if cfg.SOLVER.FREEZING.MODULES:
        recipe.append(hooks.LayerFreezing(cfg.SOLVER.FREEZING.MODULES, cfg.SOLVER.FREEZING.UNTIL))
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        recipe.append(hooks.GradientClipping(cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE))
    if cfg.SOLVER.WEIGHT_DECAY_ANNEALING.ENABLED:
        recipe.append(hooks.WeightDecayAnnealing(cfg.SOLVER.WEIGHT_DECAY_ANNEALING.FINAL))
    return recipe


def _without_amp(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = False
    cfg.freeze()
    return cfg


def _train_in(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Run the model's training forward pass under autocast to this dtype, and hand on the backbone's features in fp32.

    Detectron2 0.4 knows fp16 only; inside its own autocast, this inner one decides.
    """

    def autocast_forward(self: nn.Module, *args, **kwargs):
        with torch.autocast(device, dtype=dtype) if self.training else nullcontext():
            return type(self).forward(self, *args, **kwargs)

    model.forward = types.MethodType(autocast_forward, model)  # a bound method: a deep copy of the model gets its own
    for backbone in [module for module in model.modules() if isinstance(module, Backbone)][:1]:  # the outermost
        backbone.register_forward_hook(lambda _module, _inputs, features: in_full_precision(features))


def load_model(cfg: CfgNode) -> nn.Module:
    """The config's model with the checkpoint MODEL.WEIGHTS, in evaluation mode.

    Raises:
        ValueError: MODEL.WEIGHTS is empty, or of another kind of model.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a checkpoint, such as output/model_final.pth.")
    check_device(cfg)
    model = Trainer.build_model(cfg)
    AtomicCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()
