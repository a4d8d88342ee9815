"""Writes files so that a reader never meets half of one."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UnwrittenFileError(OSError):
    """A file could not be written, for example to a full disk; the message names it and says what to do."""

    def __init__(self, path: str | os.PathLike, why: object):
        remedy = "Make room there and run the command again, a training with --resume; earlier files are intact."
        super().__init__(f"{path} could not be written: {why}. {remedy}")


@contextmanager
def naming_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Raise an UnwrittenFileError in place of the system's error for a full disk, which does not name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UnwrittenFileError(path, error.strerror) from error


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
        with naming_full_disk(path):
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
