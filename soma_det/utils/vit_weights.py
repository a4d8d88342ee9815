"""What a .safetensors file of ViT weights says of itself, in its metadata: JSON lists under these keys."""

import json

from safetensors import SafetensorError, safe_open

# [H, W] in pixels that the position embeddings are for; timm takes them as square where it is missing.
IMG_SIZE = "img_size"
PIXEL_MEAN = "pixel_mean"  # of each channel in RGB, gray levels 0..255: images were normalized by it in the pretraining
PIXEL_STD = "pixel_std"
KEYS = (IMG_SIZE, PIXEL_MEAN, PIXEL_STD)


def read_metadata(path: str) -> dict[str, list]:
    """Those of the keys that the file has.

    Raises:
        ValueError: the file is damaged or not a .safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a .safetensors file: {error}") from error
    return {key: json.loads(metadata[key]) for key in KEYS if key in metadata}
