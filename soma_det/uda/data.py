"""Source and target images of a step. Of the target, two views that differ in gray levels alone, and no labels."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T

from soma_det.data.build import TrainLoader, build_train_loader
from soma_det.data.dataset_mapper import WeatherMapper
from soma_det.detector import images_in
from soma_det.uda.augmentation import strong_source, strong_target
from soma_det.uda.config import trains_on_target

KEPT = ("file_name", "image_id", "height", "width")  # of a target's record
Label = Callable[[list[dict]], None]


class StrongMapper(WeatherMapper):
    """The recipe's mapper with the strong view's changes after it."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """As the recipe's."""
        settings = super().from_config(cfg, is_train)
        return {**settings, "augmentations": [*settings["augmentations"], *strong_source(cfg)]}


class TargetMapper(WeatherMapper):
    """Maps a record to one with ``weak_image``, cut, flipped and padded, and ``image``, its strong view.

    Both are (3, H, W), of the same pixels. A record's ``annotations`` are those of a frozen teacher.
    """

    def __init__(self, cfg: CfgNode):
        self.strong = T.AugmentationList(strong_target(cfg))
        cfg = cfg.clone()
        cfg.defrost()
        augmentation = cfg.INPUT.AUGMENTATION
        augmentation.PHOTOMETRIC, augmentation.WEATHER.PROBABILITY, augmentation.FOURIER.PROBABILITY = False, 0.0, 0.0
        super().__init__(cfg, is_train=True)

    def __call__(self, dataset_dict: dict) -> dict:
        """As the recipe's, twice."""
        record = super().__call__(dataset_dict)
        augmented = T.AugInput(np.ascontiguousarray(record["image"].permute(1, 2, 0).numpy()))
        self.strong(augmented)
        strong = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {**record, "weak_image": record["image"], "image": strong}


class PairedLoader:
    """Batches of source images and, after them, target images; see :class:`~soma_det.data.build.TrainLoader`.

    Attributes:
        label: called with the target's part of each batch before it is handed out.
    """

    def __init__(self, source: TrainLoader, target: TrainLoader):
        self.source, self.target = source, target
        self.label: Label | None = None

    @property
    def seed(self) -> int:
        """That of the run."""
        return self.source.seed

    @property
    def start_iteration(self) -> int:
        """Iterations done before, of both parts."""
        return self.source.start_iteration

    @start_iteration.setter
    def start_iteration(self, iteration: int) -> None:
        self.source.start_iteration = self.target.start_iteration = iteration

    def __iter__(self) -> Iterator[list[dict]]:
        for source, target in zip(self.source, self.target):
            if self.label:
                self.label(target)
            yield source + target


def register_targets(cfg: CfgNode) -> None:
    """Register those of UDA.TARGET that are folders of images; the others have to be registered.

    Raises:
        ValueError: an entry is neither a data set nor a folder.
        FileNotFoundError: there is no image in a folder.
    """
    for name in cfg.UDA.TARGET:
        if name in DatasetCatalog.list():
            continue
        if not os.path.isdir(name):
            known = [entry for entry in DatasetCatalog.list() if entry.startswith(cfg.DATASETS.WEATHER.PREFIX)]
            raise ValueError(f"UDA.TARGET has {name!r}, which is neither a folder nor a data set; known are {known}.")
        records = [{"file_name": str(path), "image_id": path.name} for path in images_in(Path(name))]
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(thing_classes=list(cfg.DATASETS.WEATHER.CLASSES), domain=Path(name).name)


def build_uda_train_loader(
    cfg: CfgNode, annotations: Mapping[str, Sequence[list[dict]]] | None = None
) -> TrainLoader | PairedLoader:
    """The stream of source images with strong augmentation and, where a training uses them, of target images.

    Args:
        annotations: target data set -> of each image, a frozen teacher's boxes as annotations in Detectron2's format.
    """
    source = build_train_loader(cfg, StrongMapper(cfg, is_train=True))
    if not trains_on_target(cfg):
        return source
    records = [
        record
        for domain, name in enumerate(cfg.UDA.TARGET, 1)
        for record in target_records(name, domain, (annotations or {}).get(name))
    ]
    target = TrainLoader(
        records,
        TargetMapper(cfg),
        total_batch_size=cfg.UDA.IMS_PER_BATCH_TARGET or cfg.SOLVER.IMS_PER_BATCH,
        seed=source.seed + 1,  # positions would otherwise be cut and flipped as the source's
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return PairedLoader(source, target)


def target_records(name: str, domain: int, annotations: Sequence[list[dict]] | None = None) -> list[dict]:
    """The images of a target data set, all of them, without what is labelled in them.

    Args:
        domain: its number, from 1; the source is 0.
        annotations: of each image, to take instead.
    """
    records = [{key: record[key] for key in KEPT if key in record} for record in DatasetCatalog.get(name)]
    if not records:
        raise ValueError(f"UDA.TARGET has {name!r}, which has no images.")
    own = [{} for _ in records] if annotations is None else [{"annotations": boxes} for boxes in annotations]
    return [{**record, **labels, "domain": domain} for record, labels in zip(records, own, strict=True)]
