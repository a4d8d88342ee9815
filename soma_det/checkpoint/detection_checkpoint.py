"""Checkpoints that survive interruption and refuse weights of another kind."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from soma_det.adapters import find_adapter_layers
from soma_det.checkpoint.convert import convert_old_names
from soma_det.checkpoint.exported import is_exported
from soma_det.modeling.backbone.timm_vit import find_vits
from soma_det.utils.files import UnwrittenFileError, write_text
from soma_det.version import __version__

logger = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".partial"
METADATA = "soma_det"  # key of a checkpoint, beside "model" and "trainer"


def describe_model(cfg: CfgNode) -> dict:
    """Version, adapter and classes of a training, as plain types, which torch.load takes for safe."""
    classes = [MetadataCatalog.get(name).get("thing_classes", []) for name in cfg.DATASETS.TRAIN]
    adapter = yaml.safe_load(cfg.MODEL.ADAPTER.dump())
    return {"version": __version__, "adapter": adapter, "classes": list(classes[0]) if classes else []}


class DamagedCheckpointError(ValueError):
    """A file that cannot be read as a checkpoint."""


def load_tensors(path: str | os.PathLike, mmap: bool = False) -> Any:
    """What a checkpoint of torch holds, on the CPU: tensors and plain values alone; nothing in it is executed.

    Args:
        path: the file.
        mmap: read tensors when they are used, not now.

    Raises:
        DamagedCheckpointError: it is cut short, not a checkpoint, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # of a damaged file torch's reader raises almost anything
        raise DamagedCheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values, "
            f"which could execute code ({(str(error) or type(error).__name__).splitlines()[0][:80]})."
        ) from error


class AtomicCheckpointer(DetectionCheckpointer):
    """Writes each checkpoint beside its place and moves it there when it is complete.

    A checkpoint has to fit the ViT it is loaded into: dense weights in adapted layers would count the trained
    components twice, and the reverse would drop them.

    Args:
        model: also one that is wrapped in DistributedDataParallel.
        description: of the model, see :func:`describe_model`; saved with each checkpoint.
        checkpointables: whose state dicts are saved too, by name.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", description: dict | None = None, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.description = description or {}

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth into the output folder.

        Raises:
            UnwrittenFileError: for example because the disk is full; earlier checkpoints are untouched.
        """
        try:
            super().save(name + PARTIAL_SUFFIX, **{METADATA: self.description}, **kwargs)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            Path(self.save_dir, f"{name}{PARTIAL_SUFFIX}.pth").unlink(missing_ok=True)
            raise UnwrittenFileError(Path(self.save_dir, f"{name}.pth"), error) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Called when the file is complete: move it to its name, then point ``last_checkpoint`` at it."""
        final = last_filename_basename.replace(PARTIAL_SUFFIX, "")
        os.replace(os.path.join(self.save_dir, last_filename_basename), os.path.join(self.save_dir, final))
        write_text(os.path.join(self.save_dir, "last_checkpoint"), final)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As fvcore's; resumes from the newest checkpoint that can be read, and warns of those that cannot.

        Raises:
            DamagedCheckpointError: none of them can be.
        """
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=resume)
        candidates = self._newest_first()
        for candidate in candidates:
            try:
                return self.load(candidate)
            except (DamagedCheckpointError, FileNotFoundError) as error:
                logger.warning("Left out a checkpoint: %s", error)
                self._parsed_url_during_load = None  # as before the load, which Detectron2 would take for running
        raise DamagedCheckpointError(
            f"None of the {len(candidates)} checkpoints in {self.save_dir} can be read: train again, into another "
            "OUTPUT_DIR."
        )

    def _newest_first(self) -> list[str]:
        """The checkpoint that last_checkpoint names, then all others by their age."""
        folder = Path(self.save_dir)
        files = [path for path in folder.glob("model_*.pth") if PARTIAL_SUFFIX not in path.name]
        others = sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return list(dict.fromkeys([self.get_checkpoint_file(), *map(str, others)]))

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict:
        """As Detectron2's, with an error instead of a warning where the checkpoint is of another kind of model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file could execute code or is damaged; or weights of a ViT's detector are missing or left
                over in the backbone, or any has another shape.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(f"There is no checkpoint {path}: correct MODEL.WEIGHTS, or leave out --resume.")
        if path and is_exported(path):
            raise ValueError(
                f"{path} is an exported detector, which can be evaluated and not trained on: give a .pth file."
            )
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        # Detectron2 unpickles .pkl and .pyth, which runs whatever code is in them.
        if not filename.endswith((".pth", ".pt")):
            raise ValueError(
                f"{filename} is not a checkpoint that can be read safely: give a .pth file, or one that "
                "tools/export_adapter.py has written. Pickled weights (.pkl) can execute code: "
                "tools/convert_weights.py makes a .pth file of Detectron2's own; a model trained here starts from "
                "MODEL.VIT.WEIGHTS instead."
            )
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        return load_tensors(f)

    def _load_model(self, checkpoint: dict) -> Any:
        checkpoint["model"] = convert_old_names(checkpoint["model"])
        names = set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        problems = [name for name, *_ in incompatible.incorrect_shapes]
        if find_vits(self.model):
            unequal = [*incompatible.missing_keys, *incompatible.unexpected_keys]
            problems += [name for name in unequal if name.startswith("backbone.")]
        if problems:
            raise ValueError(self._explain(problems, names) + _tell_training(checkpoint.get(METADATA)))
        return incompatible

    def _explain(self, problems: list[str], names: set[str]) -> str:
        weights = [f"{name}.weight" for name in find_adapter_layers(self.model)]
        dense = [name for name in weights if name in names.intersection(problems)]
        if dense:
            return (
                f"These are dense weights, and the model is adapted ({dense[0]}): loaded after the decomposition they "
                "would count the trained components twice. Give them as MODEL.VIT.WEIGHTS, which is loaded before it."
            )
        return (
            f"The checkpoint is of another model: {len(problems)} weights are missing, left over or of another "
            f"shape, such as {problems[:3]}. Use the config it was trained with (config.yaml in its folder); to "
            "train for other classes, start from MODEL.VIT.WEIGHTS."
        )


def _tell_training(metadata: dict | None) -> str:
    """A sentence for error messages; checkpoints of version 0.1 and of others have no metadata."""
    if not metadata:
        return ""
    version, adapter, classes = metadata["version"], metadata["adapter"]["NAME"], ", ".join(metadata["classes"])
    return f" It was trained by soma_det {version} with MODEL.ADAPTER.NAME {adapter} for the classes {classes}."
