"""The keys UDA.* of domain adaptation, all off by default, and what contradicts what among them."""

from detectron2.config import CfgNode as CN

TEACHERS = ("none", "ema", "self", "frozen")
LABELS = ("soft", "hard")
SCHEDULES = ("dann", "constant")
# What adapts a meta architecture of this project, see soma_det.uda.meta_arch.
ADAPTIVE = {"AdaptedRCNN": "AdaptiveRCNN", "AdaptedRetinaNet": "AdaptiveRetinaNet"}


def add_uda_config(cfg: CN) -> None:
    """Add the keys of domain adaptation, with their defaults, to a Detectron2 config."""
    uda = cfg.UDA = CN()
    # Data sets of the target domains, or folders of images. Their labels, where there are any, are not read.
    uda.TARGET = []
    uda.IMS_PER_BATCH_TARGET = 0  # target images of a step; 0: as many as SOLVER.IMS_PER_BATCH
    # Who labels the target's images. "ema": the average of the weights (SOLVER.WEIGHT_AVERAGE ema); "self": the model
    # that trains; "frozen": the model of MODEL.WEIGHTS, once, on disk; "none": nobody.
    uda.TEACHER = "none"
    # KIND: "soft", the teacher's distributions are learned, or "hard", its boxes are. THRESHOLD: confidence of a box
    # that counts; soft labels use boxes to choose anchors and regions alone. BOXES: learn from hard boxes' places too.
    uda.LABELS = CN({"KIND": "soft", "THRESHOLD": 0.8, "WEIGHT": 1.0, "BOXES": True, "TEMPERATURE": 1.0})
    # The strong view, beyond INPUT.AUGMENTATION: GRAY, BLUR are shares of the images, source and target; ERASE is the
    # share of source images with a rectangle of noise. MASK: share of the squares of MASK_BLOCK pixels that target
    # images lose (MIC).
    uda.STRONG = CN({"GRAY": 0.2, "BLUR": 0.5, "ERASE": 0.0, "MASK": 0.5, "MASK_BLOCK": 32})
    align = uda.ALIGN = CN()  # adversarial alignment
    align.LEVELS = []  # of the pyramid, such as ["p3"]; one discriminator for each
    align.INSTANCE = False  # one more, of the regions' features; R-CNN alone
    align.WEIGHT = 0.1  # of each discriminator's loss
    align.REVERSAL = 1.0  # the features' share of the reversed gradient, at the end of the schedule
    align.SCHEDULE = "dann"  # rises from 0 as in Ganin et al., or "constant"
    align.GAMMA = 10.0  # how fast it rises


def trains_on_target(cfg: CN) -> bool:
    """Whether a training looks at images of UDA.TARGET."""
    return cfg.UDA.TEACHER != "none" or aligns(cfg)


def aligns(cfg: CN) -> bool:
    """Whether there is a discriminator."""
    return bool(cfg.UDA.ALIGN.LEVELS) or cfg.UDA.ALIGN.INSTANCE


def check_uda(cfg: CN) -> None:
    """Raise a ValueError for settings of UDA that contradict each other or the model."""
    uda = cfg.UDA
    choices = {"TEACHER": TEACHERS, "LABELS.KIND": LABELS, "ALIGN.SCHEDULE": SCHEDULES}
    values = {"TEACHER": uda.TEACHER, "LABELS.KIND": uda.LABELS.KIND, "ALIGN.SCHEDULE": uda.ALIGN.SCHEDULE}
    for key, allowed in choices.items():
        if values[key] not in allowed:
            raise ValueError(f"UDA.{key} is {values[key]!r}: choose {' or '.join(map(repr, allowed))}.")
    _check_strong(uda.STRONG)
    if trains_on_target(cfg):
        _check_training(cfg)


def _check_strong(strong: CN) -> None:
    for key in ("GRAY", "BLUR", "ERASE", "MASK"):
        if not 0 <= strong[key] <= 1:
            raise ValueError(f"UDA.STRONG.{key} is {strong[key]}: give a share from 0 to 1.")
    if strong.MASK_BLOCK < 1:
        raise ValueError(f"UDA.STRONG.MASK_BLOCK is {strong.MASK_BLOCK}: give a number of pixels.")


def _check_training(cfg: CN) -> None:
    uda, architecture = cfg.UDA, cfg.MODEL.META_ARCHITECTURE
    if architecture not in ADAPTIVE:
        raise ValueError(f"UDA adapts {' and '.join(ADAPTIVE)}: MODEL.META_ARCHITECTURE is {architecture!r}.")
    if cfg.MODEL.MASK_ON:
        raise ValueError("UDA has no labels for masks: set MODEL.MASK_ON to False.")
    if not uda.TARGET:
        raise ValueError("UDA.TARGET is empty: name a data set, or a folder of images, of the target domain.")
    if uda.TEACHER == "ema" and cfg.SOLVER.WEIGHT_AVERAGE.METHOD != "ema":
        raise ValueError('UDA.TEACHER "ema" is the average of the weights: set SOLVER.WEIGHT_AVERAGE.METHOD to "ema".')
    if uda.TEACHER == "frozen" and uda.LABELS.KIND != "hard":
        raise ValueError('UDA.TEACHER "frozen" keeps boxes on disk: set UDA.LABELS.KIND to "hard".')
    if uda.TEACHER != "none" and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "A teacher needs a detector to start from: set MODEL.WEIGHTS to a checkpoint trained on the source, such "
            "as output/uda_source/model_final.pth (docs/domain_adaptation.md)."
        )
    _check_heads(cfg)


def _check_heads(cfg: CN) -> None:
    """Soft labels and instance alignment look into the heads of Faster R-CNN."""
    faster = cfg.MODEL.META_ARCHITECTURE == "AdaptedRCNN" and cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    if cfg.UDA.TEACHER != "none" and cfg.UDA.LABELS.KIND == "soft" and not faster:
        raise ValueError('Soft labels are for Faster R-CNN alone: set UDA.LABELS.KIND to "hard".')
    if cfg.UDA.ALIGN.INSTANCE and not faster:
        raise ValueError("UDA.ALIGN.INSTANCE is for Faster R-CNN alone: set it to False, and align UDA.ALIGN.LEVELS.")
