"""The trainer of domain adaptation: this project's, with target images, a teacher and discriminators."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn

from soma_det.data.build import TrainLoader
from soma_det.engine import Trainer
from soma_det.engine.averaging import WeightAveraging
from soma_det.engine.hooks import unwrap_ddp
from soma_det.uda.config import ADAPTIVE, check_uda, trains_on_target
from soma_det.uda.data import PairedLoader, build_uda_train_loader
from soma_det.uda.hooks import PseudoLabelWatch, ReversalSchedule
from soma_det.uda.meta_arch import Adaptive
from soma_det.uda.pseudo_labels import make_pseudo_labels
from soma_det.uda.teacher import Teacher, Weights


class UdaTrainer(Trainer):
    """Trains on annotated source images and on target images without annotations, as UDA.* says."""

    def __init__(self, cfg: CfgNode):
        check_uda(cfg)
        self.teacher: Teacher | None = None
        super().__init__(cfg)
        if self.teacher is not None:
            self.teacher.dtype = self.dtype
            self.data_loader.label = self.teacher.label

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The config's detector, able to learn from target images; runs keep the config's own name for it."""
        if not trains_on_target(cfg):
            return super().build_model(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.META_ARCHITECTURE = ADAPTIVE[cfg.MODEL.META_ARCHITECTURE]
        return super().build_model(cfg)

    @staticmethod
    def build_train_loader(cfg: CfgNode) -> TrainLoader | PairedLoader:  # type: ignore[override]
        """Source and target images; a frozen teacher labels the latter here, unless it has before."""
        return build_uda_train_loader(cfg, make_pseudo_labels(cfg) if cfg.UDA.TEACHER == "frozen" else None)

    def build_hooks(self) -> list[HookBase]:
        """This project's hooks, and those of the teacher and the discriminators before them."""
        built, model, uda = super().build_hooks(), unwrap_ddp(self.model), self.cfg.UDA
        own: list[HookBase] = []
        if not isinstance(model, Adaptive):  # the source alone
            return built
        if uda.TEACHER in ("ema", "self"):
            averages = [_averages(hook) for hook in built if isinstance(hook, WeightAveraging)]
            self.teacher = Teacher(model, averages[0] if uda.TEACHER == "ema" else dict)
            own.append(PseudoLabelWatch(self.teacher))
        if model.alignment is not None:
            own.append(ReversalSchedule(model.alignment, uda.ALIGN.REVERSAL, uda.ALIGN.SCHEDULE, uda.ALIGN.GAMMA))
        return own + built


def _averages(averaging: WeightAveraging) -> Weights:
    def weights() -> Mapping[str, Tensor]:
        return averaging.averages  # none before the first step, in which the teacher is the student

    return weights
