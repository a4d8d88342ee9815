"""Process groups for torchrun, on GPUs or on CPUs; Detectron2's own launcher needs GPUs."""

import os

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm


def started_by_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return dist.is_torchelastic_launched()


def init_torchrun_process_group(device: str) -> None:
    """Join the processes that torchrun started: nccl for ``device`` cuda, gloo for cpu."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The first process alone scores the detections of all, for longer than torch waits by default.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    per_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(per_machine)
        return
    for first in range(0, dist.get_world_size(), per_machine):  # Detectron2 0.4 leaves this to its launcher
        ranks = list(range(first, first + per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group
