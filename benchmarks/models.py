"""The networks that the benchmarks run, and the images that come with them."""

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shiftcore.examples.digits import data, model
from shiftcore.examples.zoo.blocks import calibrated
from shiftcore.examples.zoo.catalogue import CATALOGUE
from shiftcore.examples.zoo.cifar import cifar10, raw_cifar10
from shiftcore.examples.zoo.resnet8 import resnet8
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import QuantizedNetwork

__all__ = [
    "DATA",
    "GAP",
    "LATENCY",
    "TRAINED",
    "Model",
    "data_folder",
    "float_classes",
    "hardware",
    "load",
]

LATENCY, GAP = 20, 0
"""of the simulated memory: cycles to the first beat, and between beats"""
DATA = "SHIFTCORE_DATA"
"""environment variable that names the folder of CIFAR-10 and the weights trained on it"""
CALIBRATION, CIFAR_TEST = 256, 10_000
BATCH = 100
SIZE = 224
"""of the images of networks without training"""


class Model(NamedTuple):
    """A network in evaluation mode, and images (N, C, H, W) to calibrate it on.

    ``test`` are images and labels that it was not trained on; None without training.
    """

    network: nn.Module
    calibration: NDArray[np.float32]
    test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None


def hardware(network: QuantizedNetwork) -> HardwareConfig:
    """``examples/array16.toml``, with ``clamp = true`` where a layer of `network` needs it."""
    with as_file(files("shiftcore.examples") / "array16.toml") as path:
        config = HardwareConfig.load(path)
    limited = any(layer.limits is not None for layer in network.layers)
    return replace(config, clamp=config.clamp or limited)


def float_classes(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes (N,) that a network in evaluation mode finds for images (N, C, H, W) in float32."""
    with torch.inference_mode():
        parts = torch.from_numpy(images).split(BATCH)
        return np.concatenate([model(part).argmax(1).numpy() for part in parts])


def data_folder(name: str) -> Path:
    """The folder that :data:`DATA` names; without it, an error that says that `name` needs it."""
    if not os.environ.get(DATA):
        raise click.ClickException(f"{name} needs {DATA}, a folder with its weights and CIFAR-10")
    return Path(os.environ[DATA])


def _digits() -> Model:
    training, held_out = data.load()
    return Model(model.load(), training.x[:CALIBRATION], (held_out.x, held_out.y))


def _resnet8() -> Model:
    folder = data_folder("resnet8")
    calibration, _ = raw_cifar10(folder, CALIBRATION, "train-20k")
    return Model(resnet8(folder), calibration, raw_cifar10(folder, CIFAR_TEST))


def _resnet20() -> Model:
    folder = data_folder("resnet20")
    calibration, _ = cifar10(folder, CALIBRATION, "train-20k")
    return Model(resnet20(folder), calibration, cifar10(folder, CIFAR_TEST))


TRAINED: dict[str, Callable[[], Model]] = {
    "digits": _digits,
    "resnet8": _resnet8,
    "resnet20": _resnet20,
}
"""Trained networks; all but the first need the folder that :data:`DATA` names."""


def load(name: str) -> Model:
    """A network of :data:`TRAINED`, or one of the catalogue at full size with random weights.

    Raises ``click.ClickException`` if there is none of that name, or if it needs data.
    """
    if name in TRAINED:
        return TRAINED[name]()
    if name not in CATALOGUE:
        known = ", ".join([*TRAINED, *CATALOGUE])
        raise click.ClickException(f"there is no network {name!r}; known are {known}")
    torch.manual_seed(0)
    network = calibrated(CATALOGUE[name].full(), SIZE)
    images = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE))
    return Model(network, images.astype(np.float32))
