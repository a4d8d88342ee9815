"""Reads Detectron2's model-zoo .pkl files, which hold numpy arrays, without running anything that they name."""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_MEMO = 1_000_000  # entries; a pickle can ask for memory by a single large index
KINDS = "fiub"  # of numbers: floats, integers, booleans
REMEDY = "Only numpy arrays, dicts, texts and numbers are taken, as in Detectron2's model zoo."


class RefusedPickleError(ValueError):
    """A pickle that is damaged, or that names what it could run."""


class _Dtype:
    """What numpy.dtype stands for in a pickle: the kind of the numbers, with their byte order."""

    def __init__(self, name: Any, *_: Any):
        self.dtype = np.dtype(name if isinstance(name, str) else "O")
        if self.dtype.kind not in KINDS or self.dtype.shape:
            raise RefusedPickleError(f"It holds an array of {name!r}. {REMEDY}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in ("<", ">") else "=")


class _Array:
    """An array of a pickle, as bytes until :meth:`read`: numpy's own __setstate__ trusts what it gets."""

    shape: tuple[int, ...] = ()
    dtype: _Dtype
    fortran = False
    content = b""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.fortran, self.content = state

    def read(self) -> np.ndarray:
        """The array; a RefusedPickleError where its bytes do not fit its shape."""
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        numbers = np.frombuffer(content, self.dtype.dtype)
        if math.prod(self.shape) != numbers.size or any(side < 0 for side in self.shape):
            raise RefusedPickleError(f"It holds {numbers.size} numbers for an array {self.shape}: it is damaged.")
        return numbers.reshape(self.shape, order="F" if self.fortran else "C")


def _scalar(dtype: _Dtype, content: bytes | str) -> int | float | bool:
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype.dtype)[0].item()


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, axes: Any = None) -> _Array:
    if axes is not None:
        raise RefusedPickleError(f"It holds an array with permuted axes. {REMEDY}")
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _latin1(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Callable] = {
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in ("numpy.core", "numpy._core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise RefusedPickleError(f"It names {module}.{name}, which could run code. {REMEDY}")
        return STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickleError(f"It refers to something outside, {str(pid)[:40]!r}. {REMEDY}")


def read_model_zoo(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str | int | float | bool]]:
    """The weights of a .pkl file, and the texts and numbers beside them, such as "__author__".

    Raises:
        FileNotFoundError: there is no such file.
        RefusedPickleError: it is damaged, or holds more than Detectron2's model zoo does.
    """
    content = Path(path).read_bytes()
    try:
        _check_operations(content)
        top = _Restricted(io.BytesIO(content), encoding="latin1").load()
        weights = _find_weights(top)
        tensors = {str(name): torch.from_numpy(_native(array)) for name, array in weights.items()}
    except RefusedPickleError as error:
        raise RefusedPickleError(f"{path} is refused. {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way, and has run nothing but the stand-ins
        raise RefusedPickleError(f"{path} is damaged: {error!r}") from error
    return tensors, {key: value for key, value in top.items() if isinstance(value, (str, int, float, bool))}


def _check_operations(content: bytes) -> None:
    """Read the pickle's operations without carrying them out."""
    for operation, argument, _ in pickletools.genops(content):
        if "PUT" in operation.name and isinstance(argument, int) and argument > MOST_MEMO:
            raise RefusedPickleError("It asks for more memory than its weights need.")
        if operation.name.startswith("EXT"):
            raise RefusedPickleError(f"It uses extensions of pickle. {REMEDY}")


def _find_weights(top: Any) -> Mapping[Any, _Array]:
    if not isinstance(top, dict):
        raise RefusedPickleError(f"It holds a {type(top).__name__}, where a dict is needed. {REMEDY}")
    weights = top.get("model", top.get("blobs", top))
    if not isinstance(weights, dict):
        raise RefusedPickleError(f'Its "model" is not a dict of arrays. {REMEDY}')
    arrays = {name: value for name, value in weights.items() if isinstance(value, _Array)}
    if not arrays:
        raise RefusedPickleError(f"It holds no array. {REMEDY}")
    return arrays


def _native(array: _Array) -> np.ndarray:
    numbers = array.read()
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=True)
