#!/usr/bin/env python
"""Train and evaluate a detector: see --help, or run

python tools/train_net.py --config-file configs/demo.yaml
"""

import os

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
import torch
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from soma_det.adapters import describe_adapters
from soma_det.config import check_device, setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.engine import Trainer, load_model
from soma_det.engine.distributed import init_torchrun_process_group, started_by_torchrun
from soma_det.engine.output_dir import check_output_dir
from soma_det.modeling.backbone.build import check_pretrained

EXAMPLES = """
Train, then evaluate every split of the config:
    python tools/train_net.py --config-file configs/demo.yaml

Go on after an interruption:
    python tools/train_net.py --config-file configs/demo.yaml --resume

Evaluate a checkpoint:
    python tools/train_net.py --config-file configs/demo.yaml --eval-only MODEL.WEIGHTS output/demo/model_final.pth \\
        OUTPUT_DIR output/demo_eval

Change settings, on 8 GPUs:
    python tools/train_net.py --config-file configs/diverse_weather/faster_rcnn_dinov2_b.yaml --num-gpus 8 \\
        SOLVER.IMS_PER_BATCH 16 OUTPUT_DIR output/b16

Several processes without GPUs:
    torchrun --nproc-per-node 2 tools/train_net.py --config-file configs/demo.yaml

The keys are listed in soma_det/config.py and in the README. Detectron2's own keys of the model, the schedule and the
evaluation work too; its augmentation (INPUT.MIN_SIZE_TRAIN, INPUT.CROP) and SGD have their place taken by INPUT.AUGMENTATION and AdamW.

How the ViT is adapted, MODEL.ADAPTER.NAME (docs/adapters.md):
"""


IBN_NET = """
The classic baseline has no ViT: MODEL.BACKBONE.NAME build_ibn_resnet_fpn_backbone, a ResNet with instance and batch
normalization (IBN-Net); see configs/adapters/ibn_resnet.yaml.
"""


def setup(args):
    """The config of the command line, its output folder and its data sets, ready to use.

    Wrong keys, folders and data are found here, before anything is built or overwritten.
    """
    cfg = setup_cfg(args.config_file, args.opts)
    check_device(cfg)
    choose_device(cfg, args.num_gpus)
    if started_by_torchrun():
        init_torchrun_process_group(cfg.MODEL.DEVICE)
    if not args.eval_only:
        check_output_dir(cfg, args.resume)
    register_from_config(cfg)
    check_data_exists([*cfg.DATASETS.TEST, *([] if args.eval_only else cfg.DATASETS.TRAIN)])
    check_pretrained(cfg)
    comm.synchronize()  # all have read what the first process now writes
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="soma_det", abbrev_name="soma")
    return cfg


def choose_device(cfg, num_gpus):
    """Make a GPU that MODEL.DEVICE names by its index the current one; a ValueError where several processes have to share it."""
    device = torch.device(cfg.MODEL.DEVICE)
    several = num_gpus > 1 or started_by_torchrun()
    if num_gpus > 1 and device.type == "cpu":
        raise ValueError(
            f"--num-gpus {num_gpus} with MODEL.DEVICE cpu: add MODEL.DEVICE cuda, or start processes on CPUs by torchrun."
        )
    if device.type == "cpu" or device.index is None:
        return
    if several:
        raise ValueError(
            f"MODEL.DEVICE {device} is one GPU for several processes: set it to cuda, and choose GPUs by CUDA_VISIBLE_DEVICES."
        )
    torch.cuda.set_device(device)  # what Detectron2 and torch measure is the current one's


def main(args):
    """Train or evaluate, in each process of this run."""
    try:
        cfg = setup(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"train_net.py: {error}") from error
    if args.eval_only:
        return Trainer.test(cfg, load_model(cfg))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def parse_args(argv=None):
    """Detectron2's arguments; a config file is required."""
    parser = default_argument_parser(epilog=f"Examples:\n{EXAMPLES}{describe_adapters()}\n{IBN_NET}")
    parser.description = "Train a detector on its source domain and evaluate it in every weather."
    args = parser.parse_args(argv)
    if not args.config_file:
        parser.error("--config-file is required, for example --config-file configs/demo.yaml")
    if not os.path.isfile(args.config_file):
        parser.error(f"there is no config file {args.config_file}")
    return args


if __name__ == "__main__":
    args = parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
