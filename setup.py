import os
import re

from setuptools import find_packages, setup

HERE = os.path.dirname(os.path.abspath(__file__))


def read(path: str) -> str:
    with open(os.path.join(HERE, path), encoding="utf-8") as file:
        return file.read()


setup(
    name="soma_det",
    version=re.search(r'__version__ = "(.+)"', read("soma_det/__init__.py")).group(1),
    description="SoMA fine-tuning of Vision Transformer detectors for unseen weather, on Detectron2",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["soma_det", "soma_det.*"]),
    package_data={"soma_det": ["weights/*.safetensors"]},
    python_requires=">=3.10",
    # Detectron2 is left out: it is not in the package index under its own name. `make setup` installs it where it is
    # missing, an installed official one is used as it is, and without one soma_det says how to get it.
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "timm>=1.0.20",
        "numpy>=1.26",
        "Pillow>=10",
        "opencv-python>=4.8",
        "matplotlib>=3.8",
        "pycocotools>=2.0.7",
        "faster-coco-eval>=1.6.5",
        "defusedxml>=0.7.1",
        "safetensors>=0.4",
        "tabulate>=0.9",
        "tqdm>=4.66",
        "PyYAML>=6.0",
        "tensorboard>=2.16",
        # what Detectron2 itself needs
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "omegaconf>=2.3",
        "hydra-core>=1.3",
        "cloudpickle>=3.0",
        "termcolor>=2.4",
        "setuptools<81",  # Detectron2's model zoo imports pkg_resources
    ],
    extras_require={"peft": ["peft>=0.21"], "test": ["pytest>=8", "pytest-xdist>=3.5"]},
)
