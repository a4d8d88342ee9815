#!/usr/bin/env python
"""Train and evaluate a detector: see --help, or run

python tools/train_net.py --config-file configs/demo.yaml
"""
# ruff: noqa: I001

import os
from contextlib import nullcontext

# OpenMP's threads wait busily for each other: beside one busy core a step takes 1.5 times as long. Waiting without
# spinning costs a tenth on an idle machine (projects/Benchmarks/README.md).
# OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
import torch
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from soma_det.adapters import describe_adapters
from soma_det.checkpoint.detection_checkpoint import DamagedCheckpointError
from soma_det.config import check_device, setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.engine import Trainer, load_model
from soma_det.engine.distributed import init_launched_process_group, started_by_launcher
from soma_det.engine.divergence import NonFiniteLossError
from soma_det.engine.output_dir import LockedFolderError, check_output_dir, check_writable, locked_output_dir
from soma_det.modeling.backbone.build import check_pretrained
from soma_det.uda.config import trains_on_target
from soma_det.utils.files import UnwrittenFileError, naming_full_disk

DESCRIPTION = "Train a detector on its source domain and evaluate it in every weather."

EXAMPLES = """
Examples:

Train, then evaluate every split of the config:
    python tools/train_net.py --config-file configs/demo.yaml

Adapt the ViT by another method, into a folder of its own:
    python tools/train_net.py --config-file configs/demo.yaml MODEL.ADAPTER.NAME lora OUTPUT_DIR output/lora

Continue after an interruption:
    python tools/train_net.py --config-file configs/demo.yaml --resume

Evaluate a checkpoint:
    python tools/train_net.py --config-file configs/demo.yaml --eval-only MODEL.WEIGHTS output/demo/model_final.pth \\
        OUTPUT_DIR output/demo_eval

Change settings, on 8 GPUs:
    python tools/train_net.py --config-file configs/diverse_weather/faster_rcnn_dinov2_b.yaml --num-gpus 8 \\
        SOLVER.IMS_PER_BATCH 16 OUTPUT_DIR output/b16

Two processes on a machine without GPUs (or by torchrun --nproc-per-node 2):
    python tools/train_net.py --config-file configs/demo.yaml --num-gpus 2 MODEL.DEVICE cpu

The keys are listed in soma_det/config and in the README. Detectron2's own keys of the model, the schedule and the
evaluation work too; INPUT.AUGMENTATION replaces its augmentation (INPUT.MIN_SIZE_TRAIN, INPUT.CROP), and AdamW its SGD.

How the ViT is adapted, MODEL.ADAPTER.NAME (docs/adapters.md):
{adapters}

The classic baseline has no ViT: MODEL.BACKBONE.NAME build_ibn_resnet_fpn_backbone is a ResNet with instance and batch
normalization (IBN-Net); see projects/AdapterComparison/configs/ibn_resnet.yaml.
"""


def parse_args(argv=None):
    """Detectron2's arguments; a config file is required."""
    epilog = EXAMPLES.format(adapters=describe_adapters())
    return parse_command("train_net.py", DESCRIPTION, epilog, "configs/demo.yaml", argv)


def parse_command(program, description, epilog, example, argv=None):
    """Detectron2's arguments and ``program``, the command's name for its messages."""
    parser = default_argument_parser(epilog=epilog)
    parser.description = description
    args = parser.parse_args(argv)
    if not args.config_file:
        parser.error(f"--config-file is required, for example --config-file {example}")
    if not os.path.isfile(args.config_file):
        parser.error(f"there is no config file {args.config_file}")
    args.program = program
    return args


def check_processes(cfg, num_gpus):
    """Raise a ValueError where the processes cannot have the device that MODEL.DEVICE names."""
    check_device(cfg)
    device, gpus = torch.device(cfg.MODEL.DEVICE), torch.cuda.device_count()
    if num_gpus > 1 and device.type == "cpu" and torch.cuda.is_available():
        raise ValueError(
            f"--num-gpus {num_gpus} with MODEL.DEVICE cpu: this machine has a GPU, for which Detectron2 would set the "
            "processes up. Hide it (CUDA_VISIBLE_DEVICES= in front of the command), or use torchrun."
        )
    if device.type == "cuda" and num_gpus > gpus:
        raise ValueError(f"--num-gpus is {num_gpus}, and there are {gpus} GPUs.")
    if device.index is not None and (num_gpus > 1 or started_by_launcher()):
        raise ValueError(
            f"MODEL.DEVICE {device} is one GPU for several processes: set it to cuda, and choose GPUs by "
            "CUDA_VISIBLE_DEVICES."
        )


def prepare_process(cfg, num_gpus):
    """Join the other processes of this run, and share the machine with them."""
    if started_by_launcher():
        init_launched_process_group(cfg.MODEL.DEVICE)
    if torch.device(cfg.MODEL.DEVICE).index is not None:
        torch.cuda.set_device(cfg.MODEL.DEVICE)  # what Detectron2 and torch measure is the current one's
    if cfg.MODEL.DEVICE == "cpu" and num_gpus > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_gpus))


def check_training(cfg):
    """Raise a ValueError for a config that this command would train otherwise than it says."""
    if trains_on_target(cfg):
        raise ValueError("UDA.TEACHER or UDA.ALIGN is set: train with tools/adapt_domain.py.")


def setup(args, prepare=()):
    """The config of the command line, its output folder and its data sets, ready to use.

    Wrong keys, folders and data are found here, before anything is built or overwritten. ``prepare`` are functions of
    the config, called before a training when the data sets are registered.
    """
    cfg = setup_cfg(args.config_file, args.opts)
    check_processes(cfg, args.num_gpus)
    prepare_process(cfg, args.num_gpus)
    if not args.eval_only:
        check_output_dir(cfg, args.resume)
    register_from_config(cfg)
    for function in () if args.eval_only else prepare:
        function(cfg)
    check_data_exists([*cfg.DATASETS.TEST, *([] if args.eval_only else cfg.DATASETS.TRAIN)])
    check_pretrained(cfg)
    check_writable(cfg.OUTPUT_DIR)
    comm.synchronize()  # all have read what the first process now writes
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="soma_det", abbrev_name="soma")
    return cfg


def train(cfg, resume, trainer_class=Trainer):
    """Train, while no other training may write to the folder."""
    with locked_output_dir(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=resume)
        return trainer.train()


def main(args, trainer_class=Trainer, prepare=(check_training,)):
    """Train or evaluate, in each process of this run."""
    try:
        cfg = setup(args, prepare)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{args.program}: {error}") from error
    try:
        with naming_full_disk(cfg.OUTPUT_DIR):
            return Trainer.test(cfg, load_model(cfg)) if args.eval_only else train(cfg, args.resume, trainer_class)
    except (LockedFolderError, NonFiniteLossError, DamagedCheckpointError, UnwrittenFileError) as error:
        raise SystemExit(f"{args.program}: {error}") from error


def start(args, *how):
    """Run :func:`main` in as many processes as --num-gpus says, with ``how`` as its further arguments."""
    try:
        check_processes(setup_cfg(args.config_file, args.opts), args.num_gpus)
    except (ValueError, OSError) as error:  # said once, and before there are processes
        raise SystemExit(f"{args.program}: {error}") from error
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args, *how))


if __name__ == "__main__":
    start(parse_args())
