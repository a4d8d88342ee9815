#!/usr/bin/env python3
"""Make SynthDrive: procedural driving scenes in five kinds of weather, as VOC devkits.

Examples, from the root of the repository:

    python projects/SynthDrive/make_synthdrive.py --output datasets/synthdrive --train 600 --test 60
    python projects/SynthDrive/make_synthdrive.py --output output/small --train 40 --test 10 \\
        --contact-sheet output/small.png
    python projects/SynthDrive/make_synthdrive.py --output datasets/synthdrive_all --train 500 \\
        --train-domains daytime_clear night_rainy

Whether this machine gives the bytes that are recorded, file by file, of the first command's set or a smaller one:

    python projects/SynthDrive/make_synthdrive.py --output datasets/synthdrive --check

Writes <output>/<domain>/VOC2007/{Annotations,ImageSets/Main,JPEGImages}. The same command again goes on after an
interruption, and does nothing if the set is complete.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import BoxMode
from tqdm import tqdm

import soma_det  # noqa: F401  (makes detectron2 importable)
from synthdrive import CLASSES, DOMAINS, digests, generate, make_image

CELL = 640  # pixels, width of an image on the contact sheet
DIGESTS = Path(__file__).with_name("digests.json")  # of the set that the demo trains on


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("datasets/synthdrive"), help="folder of the set (default: %(default)s)"
    )
    parser.add_argument(
        "--train",
        type=int,
        default=600,
        metavar="N",
        help="training images per training domain (default: %(default)s)",
    )
    parser.add_argument(
        "--test", type=int, default=60, metavar="N", help="test images per domain (default: %(default)s)"
    )
    parser.add_argument(
        "--train-domains",
        nargs="+",
        choices=DOMAINS,
        default=["daytime_clear"],
        help="domains with a training split (default: daytime_clear)",
    )
    parser.add_argument(
        "--size", type=image_size, default=(480, 270), metavar="WxH", help="size in pixels (default: 480x270)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes; they do not change the images (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace another SynthDrive in the output folder")
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="PATH",
        help="also write an image with samples of every domain and their boxes",
    )
    parser.add_argument(
        "--check",
        type=Path,
        nargs="?",
        const=DIGESTS,
        metavar="FILE",
        help="then name every file that is not as recorded in FILE, and end with 1 if there is one (default: what is "
        "recorded of seed 0 and 480x270)",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="then write a json FILE for --check, such as on another machine"
    )
    return parser.parse_args(arguments)


def image_size(text: str) -> tuple[int, int]:
    """'480x270' to (480, 270)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 480x270") from error
    return width, height


def contact_sheet(seed: int, split: str, height: int, width: int, rows: int = 3) -> np.ndarray:
    """The first images of every domain with their boxes, one column per domain: (H, W, 3) uint8 RGB."""
    from soma_det.utils import contact_sheet as sheet  # takes seconds to import, and only this option needs it
    from soma_det.utils import visualizer

    def sample(domain: str, index: int) -> np.ndarray:
        image, scene = make_image(seed, domain, split, index, height, width)
        boxes = zip(scene.boxes.tolist(), scene.labels.tolist())
        annotations = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label} for b, label in boxes]
        return visualizer.draw_ground_truth(image, {"annotations": annotations}, CLASSES, width=CELL)

    columns = {domain.replace("_", " "): [sample(domain, index) for index in range(rows)] for domain in DOMAINS}
    return sheet.contact_sheet(columns, CELL, CLASSES)


def write_contact_sheet(path: Path, seed: int, split: str, height: int, width: int) -> None:
    """Write the contact sheet to an image file. Raises an OSError if that fails."""
    if not cv2.haveImageWriter(str(path)):
        raise OSError(f"OpenCV cannot write {path}: use an ending such as .png or .jpg.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), contact_sheet(seed, split, height, width)[..., ::-1]):
        raise OSError(f"OpenCV could not write {path}: check the free space and the permissions of the folder.")


def check(root: Path, recorded: Path) -> bool:
    """Print every file that is not as recorded, and a summary; whether there is none."""
    lines = list(digests.differences(root, recorded))
    print(*lines, sep="\n", end="\n" if lines else "")
    if lines:
        before = json.loads(recorded.read_text(encoding="utf-8"))["made_with"]
        print(f"{len(lines)} files are not as in {recorded}, recorded with {before}; here with {digests.made_with()}")
    else:
        print(f"{root}: every file is as in {recorded}")
    return not lines


def main(arguments: list[str] | None = None) -> int:
    """Make the set that the command line describes."""
    args = parse_arguments(arguments)
    width, height = args.size
    counts = {domain: (args.train if domain in args.train_domains else 0, args.test) for domain in DOMAINS}
    total = sum(map(sum, counts.values()))
    start, done = time.perf_counter(), 0
    try:
        with tqdm(total=total, unit="image") as bar:
            for done in generate(args.output, counts, args.seed, height, width, args.workers, args.overwrite):
                bar.update(done - bar.n)
        seconds = time.perf_counter() - start
        speed = f"{done} images in {seconds:.1f} s ({done / seconds:.1f} per second)"
        print(f"{args.output}: {speed if done else 'already complete'}")
        if args.contact_sheet is not None:
            write_contact_sheet(args.contact_sheet, args.seed, "test" if args.test else "train", height, width)
            print(f"{args.contact_sheet}: samples with boxes")
        if args.record is not None:
            digests.record(args.output, args.record)
            print(f"{args.record}: digests for --check")
        if args.check is not None and not check(args.output, args.check):
            return 1
    except (ValueError, OSError) as error:
        print(f"make_synthdrive.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
