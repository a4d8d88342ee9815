"""Loaders for training and evaluation. The stream of training images depends on nothing but the seed.

Every image of the training stream has a position: iteration k with batches of B images in all processes together takes
the positions k B to (k + 1) B - 1. Seed and position alone say which image that is and how it is augmented, so a run
goes on exactly where it stopped, with any number of worker processes.
"""

import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import get_detection_dataset_dicts, trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from soma_det.data.dataset_mapper import WeatherMapper
from soma_det.data.datasets.register import check_data_exists
from soma_det.utils.images import UnreadableImageError
from soma_det.utils.machine import use_one_core

logger = logging.getLogger(__name__)

MAX_UNREADABLE_IN_A_ROW = 20
Mapper = Callable[[dict], dict]


def build_train_loader(cfg: CfgNode, mapper: Mapper | None = None) -> "TrainLoader":
    """The training stream of DATASETS.TRAIN, in batches of SOLVER.IMS_PER_BATCH images over all processes.

    Args:
        mapper: in place of the recipe's :class:`~soma_det.data.dataset_mapper.WeatherMapper`.

    Raises:
        FileNotFoundError: a data set of DATASETS.TRAIN, or one of DATASETS.TEST, is not on disk.
        ValueError: DATASETS.TRAIN is empty, the processes cannot share a batch equally, or a setting of INPUT is wrong.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name at least one data set to train on.")
    check_data_exists([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if cfg.SEED < 0:
        logger.info(f"SEED is negative: drew {seed}. To resume or repeat this run exactly, set SEED to {seed}.")
    return TrainLoader(
        records,
        mapper or WeatherMapper(cfg, is_train=True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Every image of a data set once, shared by the processes; an unreadable one is an error.

    Batches have up to TEST.BATCH_SIZE images of one size: no image is padded to another's, which could change results.
    """
    records = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    sizes = [(record.get("height"), record.get("width")) for record in records]
    return DataLoader(
        MapDataset(DatasetFromList(records, copy=False), WeatherMapper(cfg, is_train=False)),
        batch_sampler=equal_size_batches(InferenceSampler(len(records)), sizes, cfg.TEST.BATCH_SIZE),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


def equal_size_batches(indices: Iterable[int], sizes: Sequence[tuple], limit: int) -> list[list[int]]:
    """Cut a sequence of indices into batches of at most ``limit`` images of equal size; the order stays.

    ``sizes`` are (height, width), pixels, of each image; (None, None), unknown, makes a batch of its own.
    """
    batches: list[list[int]] = []
    for index in indices:
        last = batches[-1] if batches else []
        if 0 < len(last) < limit and None not in sizes[index] and sizes[index] == sizes[last[0]]:
            last.append(index)
        else:
            batches.append([index])
    return batches


class TrainLoader:
    """Endless batches, each a list of mapped images, starting at iteration ``start_iteration``.

    Nothing is read before the first batch is asked for: Detectron2's trainer makes its iterator before it knows at
    which iteration a resumed training goes on. Set ``start_iteration`` in between.

    Args:
        mapper: turns a record (Detectron2 standard dict) into a model's input; an UnreadableImageError leaves it out.
        total_batch_size: images in an iteration, shared equally by all processes.
        seed: not negative, and the same in all processes.
    """

    def __init__(self, records: list[dict], mapper: Mapper, *, total_batch_size: int, seed: int, num_workers: int = 0):
        world_size = comm.get_world_size()
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ValueError(f"SOLVER.IMS_PER_BATCH is {total_batch_size}: set a multiple of {world_size} (processes).")
        self.total_batch_size, self.seed, self.num_workers = total_batch_size, seed, num_workers
        self.start_iteration = 0  # iterations done before
        self.skipped = 0  # unreadable images that this process has met
        # DatasetFromList keeps the records serialized, so that workers share their memory.
        self.dataset = _StreamDataset(DatasetFromList(records, copy=False), mapper, seed)

    def __iter__(self) -> Iterator[list[dict]]:
        world_size = comm.get_world_size()
        start = self.start_iteration * self.total_batch_size + comm.get_rank()
        sampler = PositionSampler(len(self.dataset), self.seed, start=start, step=world_size)
        # Not Detectron2's build_batch_data_loader, which has a worker_init_fn of its own.
        batches = DataLoader(
            self.dataset,
            batch_sampler=BatchSampler(sampler, self.total_batch_size // world_size, drop_last=True),
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=use_one_core,
            generator=torch.Generator(),  # or it would draw from, and so move on, the model's random numbers
        )
        for batch in batches:
            for message in (message for sample in batch for message in sample.pop("skipped_files")):
                self.skipped += 1
                logger.warning(f"{message}. Took the next image instead; {self.skipped} left out so far.")
            yield batch


class PositionSampler(Sampler):
    """Endless (position, index) pairs for the positions start, start + step, start + 2 step, ...

    Position p is in epoch p // size, in which every index comes once, in an order that follows from seed and epoch.
    """

    def __init__(self, size: int, seed: int, *, start: int = 0, step: int = 1):
        self.size, self.seed, self.start, self.step = size, seed, start, step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        ordered = -1  # the epoch that `order` is of
        for position in itertools.count(self.start, self.step):
            epoch, place = divmod(position, self.size)
            if epoch != ordered:
                generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
                ordered, order = epoch, torch.randperm(self.size, generator=generator).tolist()
            yield position, order[place]


class _StreamDataset(Dataset):
    """Maps (position, index) to an augmented image; the next readable one replaces an unreadable one."""

    def __init__(self, records: DatasetFromList, mapper: Mapper, seed: int):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        skipped: list[str] = []
        while len(skipped) < MAX_UNREADABLE_IN_A_ROW:
            try:
                with _seeded(_mix(self.seed, position)):
                    sample = self.mapper(self.records[(index + len(skipped)) % len(self)])
                return {**sample, "skipped_files": skipped}
            except UnreadableImageError as error:
                skipped.append(str(error))
        raise UnreadableImageError(f"{len(skipped)} images in a row are unreadable. The first: {skipped[0]}")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, random, numpy and torch (CPU) draw from ``seed``; afterwards, as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _mix(seed: int, number: int) -> int:
    """A 32-bit seed from a run's seed and an epoch or position: neighbors give unrelated random numbers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
