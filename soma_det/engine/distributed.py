"""Process groups for torchrun, on GPUs or on CPUs; ``--num-gpus`` uses Detectron2's own launcher."""

import os
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm


def started_by_launcher() -> bool:
    """Whether this process is one of torchrun's, or of a launcher that sets the same variables, such as submitit."""
    return os.environ.keys() >= {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def init_launched_process_group(device: str) -> None:
    """Join the processes that torchrun started: nccl for ``device`` cuda, gloo for cpu."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The first process alone scores the detections of all, for longer than torch waits by default.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT, **_store_of_this_start())
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def _store_of_this_start() -> dict[str, Any]:
    """On one machine, arguments for a store whose keys are of this start of the processes alone.

    torchrun lets processes that it starts again use the store of those before them, in which they would find, and wait
    for, the addresses of the dead.
    """
    environment = os.environ
    shared = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or environment["WORLD_SIZE"] != environment["LOCAL_WORLD_SIZE"]:
        return {}
    address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = dist.TCPStore(*address, is_master=False, timeout=DEFAULT_TIMEOUT)
    prefixed = dist.PrefixStore(f"start_{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return {"store": prefixed, "rank": int(environment["RANK"]), "world_size": int(environment["WORLD_SIZE"])}
