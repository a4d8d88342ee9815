"""Data sets, augmentations and loaders."""

from soma_det.data.datasets.register import (
    check_data_exists,
    register_coco_json,
    register_from_config,
    register_prepared,
    register_weather_datasets,
)

__all__ = [
    "check_data_exists",
    "register_coco_json",
    "register_from_config",
    "register_prepared",
    "register_weather_datasets",
]
