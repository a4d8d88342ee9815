"""What two runs' results have otherwise, to the bit."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

PARTIAL = ("*.partial.pth", ".*-????????*")  # of soma_det's checkpointer, and of soma_det.utils.files
# What measures the machine and the day.
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds", "date", "seconds", "seconds_per_iteration"}
TIMES |= {"peak_memory_mb"}


def differences(whole: Path, killed: Path, patterns: Sequence[str]) -> Iterator[str]:
    """What the results of a killed run have otherwise, a line each."""
    found = [{str(p.relative_to(folder)) for x in patterns for p in folder.glob(x)} for folder in (whole, killed)]
    partial = {name for name in found[0] | found[1] if any(Path(name).match(pattern) for pattern in PARTIAL)}
    for name in sorted((found[0] ^ found[1]) - partial):
        yield f"{name} is only in {whole if name in found[0] else killed}"
    for name in sorted(found[0] & found[1] - partial):
        yield from unequal(name, *(read(folder, name) for folder in (whole, killed)))


def read(folder: Path, name: str) -> object:
    """The content of a result file, without the folder's name.

    Of metrics.json: "iteration: name" -> all values logged, each once.
    """
    path = folder / name
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)
    text = path.read_text().replace(str(folder), "")
    if path.name != "metrics.json":
        return json.loads(text)
    values: dict[str, set] = {}
    for line in map(json.loads, text.splitlines()):
        for name in line.keys() - TIMES:
            values.setdefault(f"{line['iteration']}: {name}", set()).add(repr(line[name]))
    return values


def unequal(name: str, one: object, other: object) -> Iterator[str]:
    """The places at which two nested values differ, to the bit; times are left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if key in TIMES:
                continue
            if key not in one or key not in other:
                yield f"{name}: {key} is in one of them alone"
            else:
                yield from unequal(f"{name}: {key}", one[key], other[key])
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other)):
            yield from unequal(f"{name}[{index}]", *pair)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or to_bytes(one) != to_bytes(other):
            yield f"{name}: the tensors differ"
    elif repr(one) != repr(other):  # NaN is NaN, and 0 is not -0
        yield f"{name}: {one!r} and {other!r}"


def to_bytes(tensor: torch.Tensor) -> bytes:
    """The bits of a tensor."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
