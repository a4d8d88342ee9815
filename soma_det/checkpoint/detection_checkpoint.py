"""Checkpoints that survive interruption and refuse weights of another kind."""

import logging
import os

from detectron2.checkpoint import DetectionCheckpointer

logger = logging.getLogger(__name__)

ADAPTED_SUFFIX = ".residual"  # the name of what SoMA leaves frozen of a weight
PARTIAL_SUFFIX = ".partial"


class AtomicCheckpointer(DetectionCheckpointer):
    """Writes each checkpoint beside its place and moves it there when it is complete.

    A checkpoint has to fit the ViT it is loaded into: dense weights in adapted layers would count the trained
    components twice, and the reverse would drop them.
    """

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth into the output folder.

        Raises:
            OSError: it could not be written, for example because the disk is full; earlier ones are untouched.
        """
        try:
            super().save(name + PARTIAL_SUFFIX, **kwargs)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            partial = os.path.join(self.save_dir, f"{name}{PARTIAL_SUFFIX}.pth")
            if os.path.exists(partial):
                os.remove(partial)
            raise OSError(
                f"The checkpoint {name}.pth could not be written to {self.save_dir}: {error}. Make room there and "
                "continue with --resume; the checkpoints written before are intact."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Called when the file is complete: move it to its name, then point ``last_checkpoint`` at it."""
        final = last_filename_basename.replace(PARTIAL_SUFFIX, "")
        os.replace(os.path.join(self.save_dir, last_filename_basename), os.path.join(self.save_dir, final))
        tag = os.path.join(self.save_dir, "last_checkpoint")
        with open(tag + PARTIAL_SUFFIX, "w") as file:
            file.write(final)
        os.replace(tag + PARTIAL_SUFFIX, tag)

    def load(self, path: str, *args, **kwargs) -> dict:
        """As Detectron2's, with an error instead of a warning where the checkpoint is of another kind of model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the checkpoint's ViT is adapted and the model's is not, or the reverse, or is adapted otherwise; or weights are missing.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(f"There is no checkpoint {path}: correct MODEL.WEIGHTS, or leave out --resume.")
        return super().load(path, *args, **kwargs)

    def _load_model(self, checkpoint: dict):
        self._require_same_kind(set(checkpoint["model"]))
        incompatible = super()._load_model(checkpoint)
        unequal = [*incompatible.missing_keys, *incompatible.unexpected_keys]
        problems = [key for key in unequal if key.startswith("backbone.net.")]
        problems += [name for name, *_ in incompatible.incorrect_shapes]
        if problems:
            raise ValueError(
                f"The checkpoint is of another model: {len(problems)} weights are missing, left over or of another "
                f"shape, such as {problems[:3]}. Use the config it was trained with (config.yaml in its folder); to "
                "train for other classes, start from MODEL.VIT.WEIGHTS."
            )
        return incompatible

    def _require_same_kind(self, names: set[str]) -> None:
        model_names = set(self.model.state_dict())
        in_model = sorted(name for name in model_names if name.endswith(ADAPTED_SUFFIX))
        in_checkpoint = sorted(name for name in names if name.endswith(ADAPTED_SUFFIX))
        if in_model and not in_checkpoint:
            raise ValueError(
                f"These are dense weights, and the model is adapted ({in_model[0]}): loaded after the decomposition they "
                "would count the trained components twice. Give them as MODEL.VIT.WEIGHTS, which is loaded before it."
            )
        if in_checkpoint and not in_model:
            raise ValueError(
                f"The checkpoint is of an adapted model ({in_checkpoint[0]}), and this model is not adapted. "
                "Set MODEL.ADAPTER as in the config.yaml beside the checkpoint."
            )
