"""What this process may use of its machine, and what one of many should leave to the others."""

import os
import platform
from pathlib import Path

import cv2
import torch


def count_cores() -> int:
    """CPU cores, as far as the system tells which this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Maker and model of the CPU where the system tells, else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_amx() -> bool:
    """Whether the CPU has instructions for products of matrices in bfloat16 (Intel AMX)."""
    return torch.cpu._is_amx_tile_supported()  # torch has no public name for it


def multiplies_bfloat16() -> bool:
    """Whether the CPU has any instructions for that: AMX, or AVX-512's of newer AMD and Intel CPUs."""
    return has_amx() or torch.cpu._is_avx512_bf16_supported()


def use_one_core(_worker: int = 0) -> None:
    """For a process that is one of many; besides, OpenCV's threads may not survive a fork."""
    cv2.setNumThreads(0)
