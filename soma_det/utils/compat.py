"""Lets Detectron2 import without its compiled extension.

Its Python sources are enough for what this project uses: box NMS and ROIAlign come from torchvision. :func:`apply` puts
right what stands between those sources and an import; an official, compiled Detectron2 is used as it is.
"""

import contextlib
import functools
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from typing import NoReturn

import torch

INSTALL_COMMAND = (
    "site=$(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))') && "
    "python -m pip install --no-deps --only-binary=:all: --python-version 3.10 --implementation cp --abi none "
    '--platform any --target "$site" --require-hashes -r requirements/detectron2.txt && '
    'rm -f "$site"/detectron2/_C*.so'  # compiled for one Python and one torch
)
INSTALL_HINT = (
    "Detectron2 is not installed in this environment. Either install the official build for your torch and CUDA "
    "(https://detectron2.readthedocs.io/tutorials/install.html), or, without a compiler, run in the root of the "
    f"soma_det repository:\n    {INSTALL_COMMAND}\nsoma_det.adapters works without Detectron2."
)

ROTATED_OPS = {
    "detectron2::nms_rotated": "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
    "detectron2::box_iou_rotated": "(Tensor boxes1, Tensor boxes2) -> Tensor",
}

DEPRECATIONS = (  # Detectron2's own use of torch, once for each run; nothing that a user could act on
    r"`torch\.jit\.script` is deprecated",
    r"torch\.meshgrid: in an upcoming release",
    r"`torch\.cuda\.amp\.(autocast|GradScaler)",
    r"torch\.cuda\.amp\.GradScaler is enabled, but CUDA is not",  # of a trainer that soma_det.engine.amp replaces
)

logger = logging.getLogger(__name__)


def apply() -> None:
    """Make ``import detectron2`` work here; must run before any of its submodules is imported.

    Raises:
        ImportError: Detectron2 is not installed. The message holds the command that installs it.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(INSTALL_HINT)
    _stub_compiled_extension()
    for message in DEPRECATIONS:
        warnings.filterwarnings("ignore", message=message)


@contextlib.contextmanager
def ddp_on(device: str) -> Iterator[None]:
    """Inside the block, DefaultTrainer can wrap a model on the CPU in DistributedDataParallel.

    Detectron2's create_ddp_model always passes ``device_ids``, which torch refuses for modules on the CPU.
    """
    from detectron2.engine import defaults

    create = defaults.create_ddp_model
    if device == "cpu":
        defaults.create_ddp_model = functools.partial(create, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = create


def _stub_compiled_extension() -> None:
    import detectron2

    try:
        import detectron2._C

        return
    except ImportError as error:
        # Missing it is expected; that it is there and does not load, the user should know.
        level = logging.DEBUG if isinstance(error, ModuleNotFoundError) else logging.WARNING
        logger.log(level, "Detectron2 has no compiled ops here (%s); NMS and ROIAlign come from torchvision.", error)
    stub = _MissingExtension("detectron2._C")
    sys.modules["detectron2._C"] = stub
    detectron2._C = stub
    # detectron2.layers looks these up when it is imported and would fail if they did not exist.
    for name, signature in ROTATED_OPS.items():
        if not hasattr(torch.ops.detectron2, name.split("::")[1]):
            torch.library.define(name, signature)
            torch.library.impl(name, "CompositeExplicitAutograd", functools.partial(_refuse, name))


class _MissingExtension(types.ModuleType):
    """Stands in for ``detectron2._C``; any op asked of it is an error that names the op."""

    def get_compiler_version(self) -> str:
        """For the report on the environment that Detectron2 logs at the start."""
        return "none, its Python sources are used alone"

    get_cuda_version = get_compiler_version

    def has_cuda(self) -> bool:
        """Of the extension, not of torch."""
        return False

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what the import system and inspect look up
            raise AttributeError(name)
        _refuse(f"detectron2._C.{name}")


def _refuse(op: str, *args: object) -> NoReturn:
    raise RuntimeError(
        f"{op} needs Detectron2's compiled extension, which is not installed here. "
        "Install Detectron2 from source to use it: https://detectron2.readthedocs.io/tutorials/install.html"
    )
