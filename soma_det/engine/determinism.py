"""Trainings that give the same weights, to the bit, from the same seed on the same machine."""

import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # of cuBLAS, which reads it when it is first used
SETTINGS = (":4096:8", ":16:8")  # those with which its results are reproducible, by NVIDIA's documentation


def set_determinism(enabled: bool) -> None:
    """Turn torch's deterministic algorithms on for this process, or off; cuDNN then chooses none by timing.

    Raises:
        ValueError: the environment holds a setting of cuBLAS with which it is not deterministic.
    """
    if enabled:
        setting = os.environ.setdefault(WORKSPACE, SETTINGS[0])
        if setting not in SETTINGS:
            raise ValueError(f"SOLVER.DETERMINISTIC needs {WORKSPACE} to be one of {SETTINGS}; it is {setting!r}.")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
