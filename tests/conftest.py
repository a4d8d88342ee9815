import pytest
import torch

import soma_det  # noqa: F401  (first: makes Detectron2 importable)


def pytest_configure(config):
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)
