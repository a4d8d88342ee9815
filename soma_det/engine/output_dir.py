"""What a training run may do with the folder it is told to write to."""

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from soma_det.config.defaults import flatten

logger = logging.getLogger(__name__)
LOCK_FILE = ".training.lock"


class LockedFolderError(ValueError):
    """Another training is writing to the folder."""


def check_output_dir(cfg: CfgNode, resume: bool) -> None:
    """Refuse a folder that holds another run, before anything in it is overwritten.

    Raises:
        ValueError: a new training would mix with the checkpoints of an earlier one, or the training to resume had
            another model.
    """
    folder = cfg.OUTPUT_DIR
    if not os.path.isfile(os.path.join(folder, "last_checkpoint")):
        return
    if not resume:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds the checkpoints of another run: continue it with --resume, or choose another "
            "folder (OUTPUT_DIR path on the command line)."
        )
    saved = os.path.join(folder, "config.yaml")
    if not os.path.isfile(saved):
        return
    with open(saved) as file:
        before = flatten(yaml.safe_load(file)["MODEL"])
    now = flatten(yaml.safe_load(cfg.dump())["MODEL"])
    # Left out: keys that only one of two versions has, the device, and weights, all of which the checkpoint brings.
    common = now.keys() & before.keys() - {"WEIGHTS", "VIT.WEIGHTS", "DEVICE"}
    different = (key for key in sorted(common) if now[key] != before[key])
    changed = [f"MODEL.{key} ({before[key]} before, {now[key]} now)" for key in different]
    if changed:
        raise ValueError(
            f"--resume: {', '.join(changed)} differ from {saved}, with which the checkpoints were made. "
            "Resume with that config, or train into another OUTPUT_DIR."
        )


def check_writable(folder: str) -> None:
    """Make an output folder where there is none; raise a ValueError where it cannot be written to."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): choose another output folder.") from error


@contextlib.contextmanager
def locked_output_dir(folder: str) -> Iterator[None]:
    """Keep other trainings on this machine out of a folder; the lock goes with the process, however it ends.

    Raises:
        LockedFolderError: another training is writing there.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOCK_FILE), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedFolderError(
                f"Another training is writing to OUTPUT_DIR {folder}: wait for it, or choose another folder."
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("OUTPUT_DIR %s cannot be locked (%s): let no other training write to it.", folder, error)
        if (metrics := Path(folder, "metrics.json")).is_file():  # a full disk may have cut its last line short
            os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
        yield
