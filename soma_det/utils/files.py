"""Writes files so that a reader never meets half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error.

    Missing parent folders are made. The temporary name keeps the suffix, from which image and video writers tell the
    format. After an error the temporary file is removed and an older file at ``path`` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.umask(mask := os.umask(0))  # the only portable way to read the mask is to set it
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def leaves_folder(name: str) -> bool:
    """Whether a file name that came with a data set would leave the folder it is relative to, by its letters alone.

    Links inside the folder are the user's own and are followed.
    """
    parts = name.replace("\\", "/").split("/")
    return not name or parts[0] == "" or parts[0].endswith(":") or ".." in parts or "\0" in name


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())
