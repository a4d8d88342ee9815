import logging
import os
import signal

import pytest

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # before torch is imported: beside other work, spinning threads stall
import torch

import soma_det  # noqa: F401  (first: makes Detectron2 importable)


def pytest_configure(config):
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts a job in the background without it
    for name in ("soma_det", "detectron2"):  # a tool that ran in this process has set up its own log
        logger = logging.getLogger(name)
        logger.propagate, logger.handlers = True, []
