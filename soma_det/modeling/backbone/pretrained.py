"""Files of pretrained ViT weights: what does not load completely is an error."""

import os
import sys

from timm.models import load_checkpoint
from torch import nn

from soma_det.utils.vit_weights import IMG_SIZE, read_metadata

# First words of parameter names behind the features: files hold the classifier, which is not built, or another pooling.
HEADS = ("head", "head_dist", "classifier", "fc_norm", "attn_pool")


def check_weights(name: str, weights: str) -> None:
    """Raise a FileNotFoundError where ``weights``, see create_timm_vit, is a file that does not exist."""
    if weights not in ("", "timm") and not os.path.isfile(weights):
        raise FileNotFoundError(
            f"MODEL.VIT.WEIGHTS names {weights!r}, which does not exist. Give a .safetensors or .pth file of {name}, "
            "'timm' to download it, or '' for random weights."
        )


def own_img_size(name: str, weights: str) -> list[int] | None:
    """[H, W] in pixels that a file's position embeddings are for; None where it does not say."""
    if not weights.endswith(".safetensors"):
        return None
    try:
        return read_metadata(weights).get(IMG_SIZE)
    except ValueError as error:
        raise RuntimeError(_does_not_fit(name, weights, error)) from error


def load_weights(model: nn.Module, name: str, path: str) -> None:
    """Load a file into a timm model without classifier. timm reads half precision, too, and training checkpoints.

    Raises:
        RuntimeError: the file cannot be read, lacks weights, or has some of another model.
    """
    # timm's translation for this class of models: names of other sources, sizes of patches and images.
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        missing, unexpected = load_checkpoint(model, path, strict=False, filter_fn=translate) or ((), ())
    except Exception as error:  # timm's filters and torch each raise their own kinds
        raise RuntimeError(_does_not_fit(name, path, error)) from error
    missing = [key for key in missing if key.split(".")[0] not in HEADS]
    unexpected = [key for key in unexpected if key.split(".")[0] not in (*HEADS, "norm")]
    for keys, problem in ((missing, "weights are missing"), (unexpected, "of its weights have no place")):
        if keys:
            raise RuntimeError(_does_not_fit(name, path, f"{len(keys)} {problem}, such as {keys[:3]}"))


def _does_not_fit(name: str, path: str, reason: object) -> str:
    return f"{path} does not hold the weights of {name}: {reason}"
