"""Every config key of this project in one place, with its default."""

from collections.abc import Mapping

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from soma_det.uda.config import add_uda_config

DOMAINS = ("daytime_clear", "night_sunny", "dusk_rainy", "night_rainy", "daytime_foggy")
CLASSES = ("bus", "bike", "car", "motor", "person", "rider", "truck")


def default_cfg() -> CN:
    """Detectron2's config with this project's keys, all at their defaults."""
    cfg = get_cfg()
    add_soma_config(cfg)
    return cfg


def flatten(node: Mapping, prefix: str = "") -> dict[str, object]:
    """{"ADAPTER.RANK": 16, ...} of a config or a part of it."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def add_soma_config(cfg: CN) -> None:
    """Add this project's keys, with their defaults, to a Detectron2 config."""
    for add in (_add_model, _add_data, _add_solver, _add_test, add_uda_config):
        add(cfg)


def _add_model(cfg: CN) -> None:
    vit = cfg.MODEL.VIT = CN()
    vit.NAME = "vit_small_patch14_dinov2.lvd142m"  # docs/backbones.md lists the families
    # "" for random weights, "timm" for timm's hub, or a file (.safetensors, .pth) with the model's own weights.
    # Not read when MODEL.WEIGHTS names a checkpoint of this project, which holds the ViT too.
    # They also decide MODEL.PIXEL_MEAN and PIXEL_STD (config/pixels.py): leave those two out of config files.
    vit.WEIGHTS = "timm"
    vit.PATCH_SIZE = 16  # pixels, or 8; pretrained patch embeddings are resampled to it (timm's pseudo-inverse)
    vit.IMG_SIZE = [1024, 1024]  # (H, W), pixels: the usual input, for which position embeddings are resampled once
    vit.OUT_BLOCKS = [-1]  # one block: simple feature pyramid (ViTDet); four: one block for each level p2..p5 (as SoMA)
    vit.FROZEN_BLOCKS = 4  # leading blocks that stay as pretrained
    vit.DROP_PATH = 0.0  # rate of the last block; falls linearly to 0 at the first
    vit.ACTIVATION_CHECKPOINTING = False  # less memory for one more forward pass through the blocks

    # FINEST_LEVEL: 2 for p2 (stride 4 pixels), or 3, which saves time and loses small objects; from one block alone.
    cfg.MODEL.PYRAMID = CN({"OUT_CHANNELS": 256, "FINEST_LEVEL": 2})

    cfg.MODEL.ROI_HEADS.BACKGROUND_PRIOR = 0.0  # the background's probability before training; 0: that of any class

    detr = cfg.MODEL.DETR = CN()  # of MODEL.META_ARCHITECTURE AdaptedLwDETR
    detr.NUM_CLASSES = 7
    detr.IN_FEATURES = ["p3", "p4", "p5"]
    detr.NUM_QUERIES = 300
    detr.DECODER_LAYERS = 3
    detr.GROUPS = 13  # of queries, in training alone; each finds every object

    adapter = cfg.MODEL.ADAPTER = CN()
    adapter.NAME = "soma"  # the method; tools/train_net.py --help lists all, docs/adapters.md describes them
    adapter.BLOCKS = []  # indices; empty: every block that is not frozen ("moa": every other one)
    # Regular expressions of the linear layers in a block; empty: attention and MLP ("moa": query, key and value).
    adapter.TARGETS = []
    adapter.RANK = 16
    adapter.TRAIN_BIAS = True  # of the adapted layers
    adapter.SOMA = CN()
    adapter.SOMA.COMPONENTS = "minor"  # "minor" (SoMA), or the paper's ablations "major", "random"
    # "decompose_first", for ablation: decompose random weights, then load the pretrained ones over the residual.
    adapter.SOMA.ORDER = "load_first"
    adapter.OSF = CN({"KEPT": 0.5})  # share of the singular components of each weight that stays frozen
    adapter.MOA = CN()
    adapter.MOA.EXPERTS = "kronecker"  # or "lora"
    adapter.MOA.RANKS = [1, 2, 4, 8]  # one expert for each
    adapter.REIN = CN({"TOKENS": 100})  # for each block; their rank is RANK
    adapter.VPT = CN({"TOKENS": 50})  # for each block
    adapter.ADAPTFORMER = CN({"WIDTH": 64})  # features of the bottleneck


def _add_data(cfg: CN) -> None:
    weather = cfg.DATASETS.WEATHER = CN()
    weather.PREFIX = "diverse_weather"  # data sets are named <prefix>_<domain>_<list>
    weather.ROOT = ""  # folder of the domains; empty: diverseWeather in $DETECTRON2_DATASETS, or in datasets
    weather.DOMAINS = list(DOMAINS)
    weather.CLASSES = list(CLASSES)
    # Further data sets: [[name, json file, folder of images], ...], with the domain as an optional fourth.
    cfg.DATASETS.COCO_JSON = []
    cfg.DATASETS.SOURCE_TEST = ""  # the member of DATASETS.TEST that is the source domain; all others are unseen

    # Pad test images with gray 114, at the right and the bottom, to at least INPUT.AUGMENTATION.CROP_SIZE: the ViT then
    # sees the grid of patches that it was trained on, as in the authors' code. False: only to multiples of 32 pixels.
    cfg.INPUT.PAD_TO_CROP = False
    augmentation = cfg.INPUT.AUGMENTATION = CN()
    augmentation.SCALE_RANGE = [0.1, 2.0]  # random resize, relative to CROP_SIZE
    augmentation.CROP_SIZE = [1024, 1024]  # (H, W), pixels; smaller images are padded
    augmentation.PHOTOMETRIC = True  # random brightness, contrast, saturation, hue and order of the channels
    # Beyond the authors' recipe, for shares of the images: fog, rain and night with a guessed depth; and Fourier
    # amplitudes mixed with those of another training image, at most by STRENGTH.
    domains = [domain for domain in DOMAINS if domain != "daytime_clear"]
    augmentation.WEATHER = CN({"PROBABILITY": 0.0, "DOMAINS": domains})
    augmentation.FOURIER = CN({"PROBABILITY": 0.0, "STRENGTH": 0.5})


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.BETAS = [0.9, 0.999]  # of AdamW
    cfg.SOLVER.BACKBONE_LR_MULTIPLIER = 0.5  # of the ViT, against SOLVER.BASE_LR
    cfg.SOLVER.BACKBONE_WEIGHT_DECAY_MULTIPLIER = 0.2  # of the ViT, against SOLVER.WEIGHT_DECAY

    cfg.SOLVER.WEIGHT_DECAY_ANNEALING = CN({"ENABLED": True, "FINAL": 1e-5})  # weight decay of the last iteration
    cfg.SOLVER.AMP.DTYPE = "float16"  # or "bfloat16", which CPUs have too; with SOLVER.AMP.ENABLED, TEST.AMP.ENABLED
    # "auto": bfloat16 where the CPU has AMX or AVX512-BF16, also without SOLVER.AMP.ENABLED; or "off".
    cfg.SOLVER.AMP.CPU = "auto"

    # The average of the trained weights over iterations in place of the last ones: "ema", "swa" or "none". DECAY is of
    # "ema"; START, a share of the iterations, is where averaging starts.
    cfg.SOLVER.WEIGHT_AVERAGE = CN({"METHOD": "none", "DECAY": 0.99, "START": 0.0})

    # How strongly the ViT's trained weights are pulled back to where they started: a weight decay towards there, in
    # place of the one towards 0. 0: not at all.
    cfg.SOLVER.BACKBONE_DECAY_TO_START = 0.0

    # Torch's deterministic algorithms: the same seed gives the same weights, to the bit, on the same machine. Slower on
    # GPUs; an operation that has no such algorithm there is an error.
    cfg.SOLVER.DETERMINISTIC = False

    cfg.SOLVER.SKIP_NON_FINITE = 0  # steps whose loss is not finite that are left out before the training stops
    cfg.SOLVER.CHECKPOINTS_KEPT = 0  # the newest ones of SOLVER.CHECKPOINT_PERIOD; 0: all

    freezing = cfg.SOLVER.FREEZING = CN()
    freezing.MODULES = []  # regular expressions of module names to freeze besides the ViT's leading blocks
    freezing.UNTIL = 0  # iteration at which they thaw; 0: never


def _add_test(cfg: CN) -> None:
    cfg.TEST.BATCH_SIZE = 1  # images of one size that a process evaluates at a time
    cfg.TEST.KEEP_BEST = False  # model_best.pth: the best on DATASETS.SOURCE_TEST; with TEST.EVAL_PERIOD
    cfg.TEST.COMPILE = False  # torch.compile the blocks of the ViT; needs a C++ compiler
    cfg.TEST.AMP = CN({"ENABLED": False})  # evaluate the backbone in SOLVER.AMP.DTYPE
