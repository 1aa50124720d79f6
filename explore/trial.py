"""One trial: a function of plain data, the same on every machine that sees the files.

Torch and Amaranth are only loaded where they are used: most trials need neither.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..compiler.network import compile_network
from ..estimate.network import estimate
from ..golden.config import HardwareConfig
from ..golden.network import QuantizedNetwork
from .resources import Area

if TYPE_CHECKING:
    from ..quant.convert import QuantConfig

__all__ = [
    "Figures",
    "File",
    "ResourceModel",
    "Task",
    "evaluate",
    "image_cycles",
    "quantized",
]

ResourceModel = Callable[[HardwareConfig, str], Area]
"""Estimates a configuration on a target; a function of a module, so that it can be sent."""


@dataclass(frozen=True)
class File:
    """A file by its path and the hash of its content, which must not change."""

    path: Path
    digest: str

    @classmethod
    def of(cls, path: Path) -> "File":
        return cls(path.resolve(), hashlib.sha256(path.read_bytes()).hexdigest())

    def check(self) -> Path:
        """Its path. Raises ``ValueError`` if it is another file now."""
        if File.of(self.path) != self:
            raise ValueError(f"{self.path} has changed since the study began")
        return self.path


@dataclass(frozen=True)
class Task:
    """All that a trial needs.

    Parameters
    ----------
    values : of every key of the configuration
    target : a device or a family
    network : quantized already, or a model (``.pt2``)
    calibration : images of a model, else None
    cache : folder of networks that are quantized for trials
    resources : what estimates them
    clock : MHz of the board, or None
    latency, gap : of the memory, in cycles
    """

    values: Mapping[str, Any]
    target: str
    network: File
    calibration: File | None
    cache: Path
    resources: ResourceModel
    clock: float | None = None
    latency: int = 20
    gap: int = 0


@dataclass(frozen=True)
class Figures:
    """What is estimated of a configuration.

    Parameters
    ----------
    images_per_s : at `fmax_mhz`, or at the clock of the board where that is slower
    cycles : of one image, exact
    sqnr_db : of the network's scores, against the float network, on images that had no part in its
        quantization; None of a network that came quantized
    lut, ff, dsp, bram : units of the target
    fmax_mhz : the fastest clock; None where it is not estimated
    """

    images_per_s: float
    cycles: int
    sqnr_db: float | None
    lut: int
    ff: int
    dsp: int
    bram: int
    fmax_mhz: float | None


@lru_cache(maxsize=1)
def _model(network: File, calibration: File) -> tuple[Any, NDArray[np.float32]]:
    from ..quant.convert import as_graph
    from ..quant.data import load_images

    images = load_images(calibration.check())[0]
    return as_graph(network.check(), images), images


@cache
def _load(path: Path) -> QuantizedNetwork:
    return QuantizedNetwork.load(path)


@cache
def _stored(network: File) -> QuantizedNetwork:
    return QuantizedNetwork.load(network.check())


def quantized(
    network: File, calibration: File, config: "QuantConfig"
) -> tuple[QuantizedNetwork, float]:
    """A model, quantized, and the SQNR of its scores in dB; one image in ``HELD_OUT`` is left out
    of the quantization and measures it."""
    from ..quant.convert import quantize
    from ..quant.lower import lower
    from ..quant.search import HELD_OUT, measure

    graph, images = _model(network, calibration)
    held_out = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    if not held_out.any():
        raise ValueError(f"at least {HELD_OUT} images are needed, not {len(images)}")
    found = quantize(graph, images[~held_out], config)
    loss = measure(found, lower(graph), images[held_out]).loss
    return found, -10 * math.log10(max(loss, 1e-30))


def _network(task: Task) -> tuple[QuantizedNetwork, float | None]:
    """The network for the task's b, m, B and scales, by plain L2; kept in the cache. Two workers
    may make the same one at the same time: they leave the same file."""
    if task.calibration is None:
        return _stored(task.network), None
    bits, act_bits, block, scale, accumulator = (
        task.values[key] for key in ("weight_bits", "act_bits", "rows", "scale", "accumulator")
    )
    kept = task.cache / f"b{bits}-m{act_bits}-B{block}-{scale}-{accumulator}.safetensors"
    known = kept.with_suffix(".json")  # written last
    if not known.exists():
        from ..quant.convert import QuantConfig

        config = QuantConfig(bits, act_bits, block, scale, method="l2", accumulator=accumulator)
        network, sqnr = quantized(task.network, task.calibration, config)
        part = kept.with_name(f"{kept.name}.{socket.gethostname()}-{os.getpid()}.part")
        network.save(part)
        part.replace(kept)
        part.write_text(json.dumps({"sqnr_db": sqnr}) + "\n", encoding="utf-8")
        part.replace(known)
    return _load(kept), json.loads(known.read_text(encoding="utf-8"))["sqnr_db"]


def image_cycles(network: QuantizedNetwork, config: HardwareConfig, latency: int, gap: int) -> int:
    """The cycles of one image. Raises ``ValueError`` if `config` cannot run the network."""
    program = compile_network(network, config)
    return estimate(program, network.macs(), latency=latency, gap=gap).total.cycles


def evaluate(task: Task) -> dict[str, Any]:
    """The :class:`Figures` of a task by name, or why there are none: ``{"reason": ...}``."""
    try:
        config = HardwareConfig(**task.values)
        area = task.resources(config, task.target)
        network, sqnr = _network(task)
        cycles = image_cycles(network, config, task.latency, task.gap)
    except ValueError as error:
        return {"reason": " ".join(str(error).split())}
    clock = min(each for each in (area.fmax_mhz, task.clock) if each is not None)
    return asdict(
        Figures(
            clock * 1e6 / cycles, cycles, sqnr,
            area.lut, area.ff, area.dsp, area.bram, area.fmax_mhz,
        )
    )  # fmt: skip
