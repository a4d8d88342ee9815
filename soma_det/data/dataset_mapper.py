"""Turns a record of a data set into a model's input."""

import copy
from importlib.util import find_spec

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size

from soma_det.data.transforms.augmentation import build_test_augmentation, build_train_augmentation
from soma_det.data.transforms.fourier import FourierMixing
from soma_det.data.transforms.simulated_weather import SimulatedWeather
from soma_det.utils.images import read_image


class WeatherMapper(DatasetMapper):
    """Detectron2's mapper with the recipe's augmentations; every unreadable image raises the same error.

    Maps a record in Detectron2's standard format to a dict with image (3, H, W), file_name, image_id, height and width
    (pixels, of the file), and in training instances with gt_boxes (N, 4) in pixels of ``image``, gt_classes (N,) and,
    with MODEL.MASK_ON, gt_masks.
    Gray levels are uint8, or float32 after photometric distortion. Boxes that the crop cuts away are gone; N can be 0.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """The keyword arguments that the config stands for."""
        settings, recipe, flip = cfg.INPUT, cfg.INPUT.AUGMENTATION, cfg.INPUT.RANDOM_FLIP
        if not is_train:
            augmentations = build_test_augmentation(min_size=settings.MIN_SIZE_TEST, max_size=settings.MAX_SIZE_TEST)
        elif flip not in ("horizontal", "none"):
            raise ValueError(f'INPUT.RANDOM_FLIP is {flip!r}: choose "horizontal" or "none".')
        else:
            augmentations = build_train_augmentation(
                scale_range=recipe.SCALE_RANGE,
                crop_size=recipe.CROP_SIZE,
                photometric=recipe.PHOTOMETRIC,
                flip=flip == "horizontal",
                first=_simulated_weather(cfg),
                cropped=_fourier_mixing(cfg),
            )
        if is_train and cfg.MODEL.MASK_ON and settings.MASK_FORMAT == "polygon" and find_spec("shapely") is None:
            raise ImportError("MODEL.MASK_ON with polygons needs shapely: pip install 'soma_det[masks]'.")
        masks = dict(use_instance_mask=cfg.MODEL.MASK_ON, instance_mask_format=settings.MASK_FORMAT)
        return dict(is_train=is_train, augmentations=augmentations, image_format=settings.FORMAT, **masks)

    def __call__(self, dataset_dict: dict) -> dict:
        """As Detectron2's, without semantic masks and proposals; reads images as Detector does.

        Raises:
            UnreadableImageError: the image cannot be read.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_image(record["file_name"], self.image_format)
        check_image_size(record, image)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        record["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, augmented.image.shape[:2])
        return record


def _simulated_weather(cfg: CfgNode) -> list[SimulatedWeather]:
    weather = cfg.INPUT.AUGMENTATION.WEATHER
    if weather.PROBABILITY and cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"INPUT.AUGMENTATION.WEATHER needs INPUT.FORMAT RGB, which is {cfg.INPUT.FORMAT}.")
    return [SimulatedWeather(weather.PROBABILITY, weather.DOMAINS)] if weather.PROBABILITY else []


def _fourier_mixing(cfg: CfgNode) -> list[FourierMixing]:
    fourier = cfg.INPUT.AUGMENTATION.FOURIER
    if not fourier.PROBABILITY:
        return []
    files = [record["file_name"] for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    return [FourierMixing(fourier.PROBABILITY, fourier.STRENGTH, files, cfg.INPUT.FORMAT)]
