"""Runs a quantized network on the simulated engine, layer by layer, and compares with golden."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..compiler.lower import LayerProgram, check, lower
from ..golden.bfp import BlockTensor
from ..golden.compare import bits
from ..golden.config import HardwareConfig
from ..golden.layers import Layer
from ..golden.network import INPUT, QuantizedNetwork, Tensor
from ..golden.passes import Drain
from .harness import EngineRun, run_engine
from .runner import Simulator

__all__ = ["LayerRun", "Mismatch", "run_layer", "run_network"]


@dataclass(frozen=True)
class Mismatch:
    """The first number in which hardware and golden model differ."""

    layer: str
    image: int
    index: tuple[int, ...]
    expected: float
    found: float


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One layer of all images on the simulated engine.

    Parameters
    ----------
    layer : the layer
    programs : its passes and drains, one program per image, run back to back
    tensors : what the hardware stored, one per image
    accumulators : numbers compared before requantization
    stored : codes and exponents, or raw results, compared
    mismatches : how many of both differ from the golden model
    first : where, None without a mismatch
    cycles : from the end of the image before to the end of each image
    """

    layer: Layer
    programs: tuple[LayerProgram, ...]
    tensors: tuple[Tensor, ...]
    accumulators: int
    stored: int
    mismatches: int
    first: Mismatch | None
    cycles: tuple[int, ...]

    @property
    def total_cycles(self) -> int:
        return sum(self.cycles)


class _Comparison:
    def __init__(self, layer: str):
        self.layer = layer
        self.compared = self.mismatches = 0
        self.first: Mismatch | None = None

    def numbers(self, image: int, expected: NDArray, found: NDArray) -> None:
        self.compared += expected.size
        differ = bits(expected) != bits(found)
        self.mismatches += int(differ.sum())
        if differ.any() and self.first is None:
            index = tuple(int(i[0]) for i in np.nonzero(differ))
            self.first = Mismatch(
                self.layer, image, index, float(expected[index]), float(found[index])
            )

    def tensors(self, image: int, expected: Tensor, found: Tensor) -> None:
        if isinstance(expected, BlockTensor):
            assert isinstance(found, BlockTensor)
            self.numbers(image, expected.codes, found.codes)
            self.numbers(image, expected.exponents, found.exponents)
        else:
            assert isinstance(found, np.ndarray)
            self.numbers(image, expected, found)


def _execute(
    programs: Sequence[LayerProgram], config: HardwareConfig, simulator: Simulator
) -> tuple[EngineRun, list[Tensor]]:
    work = [item for program in programs for item in program.work]
    run = run_engine(work, config, simulator=simulator)
    results, tensors = iter(run.results), []
    for program in programs:
        drains = sum(isinstance(item, Drain) for item in program.work)
        tensors.append(program.collect([next(results) for _ in range(drains)]))
    return run, tensors


def _image_cycles(programs: Sequence[LayerProgram], run: EngineRun) -> tuple[int, ...]:
    spec = programs[0].config.requantizer
    raw = programs[0].layer.output is None
    rows = [
        sum(len(item.addresses) for item in program.work if isinstance(item, Drain))
        for program in programs
    ]
    transfers = np.cumsum(rows) if raw else np.cumsum(rows) // spec.beats_per_block
    ends = run.cycles["o_raw" if raw else "o_block"][transfers - 1] + 1
    return tuple(np.diff(ends, prepend=0).tolist())


def run_layer(
    layer: Layer,
    sources: Sequence[dict[str, BlockTensor]],
    config: HardwareConfig,
    simulator: Simulator = "verilator",
) -> LayerRun:
    """Run `layer` for every image and compare each number with the golden model.

    A layer that stores codes runs twice: as it is, and once more with its accumulators drained raw,
    which shows what the requantizer gets.

    Parameters
    ----------
    sources : for each image the stored tensors that the layer reads
    """
    comparison = _Comparison(layer.name)
    programs = [lower(layer, tensors, config) for tensors in sources]
    run, found = _execute(programs, config, simulator)
    accumulated = [layer.accumulate(tensors) for tensors in sources]
    for image, acc in enumerate(accumulated):
        comparison.tensors(image, layer.finish(acc), found[image])
    stored = 0 if layer.output is None else comparison.compared
    if layer.output is not None:
        raw = [lower(replace(layer, output=None), tensors, config) for tensors in sources]
        _, rows = _execute(raw, config, simulator)
        for image, acc in enumerate(accumulated):
            comparison.tensors(image, acc, rows[image])
    return LayerRun(
        layer, tuple(programs), tuple(found), comparison.compared - stored, stored,
        comparison.mismatches, comparison.first, _image_cycles(programs, run),
    )  # fmt: skip


def run_network(
    network: QuantizedNetwork,
    config: HardwareConfig,
    images: NDArray[np.float32],
    simulator: Simulator = "verilator",
) -> list[LayerRun]:
    """Run every layer for `images` (N, C, H, W), each on what the hardware stored before.

    Raises ``ValueError`` if `config` cannot run `network`.
    """
    check(network, config)
    stored = [{INPUT: network.encode_input(images[k : k + 1])} for k in range(len(images))]
    runs = []
    for layer in network.layers:
        run = run_layer(layer, stored, config, simulator)
        for tensors, result in zip(stored, run.tensors, strict=True):
            if isinstance(result, BlockTensor):
                tensors[layer.name] = result
        runs.append(run)
    return runs
