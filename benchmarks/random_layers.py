"""Random layers and memories for the prediction of cycles, each made from a seed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict, predict_layers
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.program import Program
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.probe import count_differences
from shiftcore.sim.system import SimulatedSystem

__all__ = ["BUILDS", "KINDS", "MEMORY_BYTES", "Case", "Result", "draw_case", "measure"]

# More, fewer and as many columns as rows, every kind of bus, FIFOs of two short bursts and longer.
BUILDS = (
    HardwareConfig(16, 4, buffer_depth=4096),
    HardwareConfig(4, 4, accumulator_depth=64, buffer_depth=256),
    HardwareConfig(
        *(8, 3), accumulator_depth=64, buffer_depth=256, bus_bits=32, queue_depth=2, burst_beats=4,
        weight_fifo=8, load_fifo=8, store_fifo=8, clamp=False, outstanding=2,
    ),
    HardwareConfig(
        *(2, 9, 8, 8, "fp32"), accumulator_depth=96, buffer_depth=512, bus_bits=128, queue_depth=3,
        burst_beats=8, weight_fifo=16, load_fifo=33, store_fifo=17, outstanding=3,
    ),
    HardwareConfig(
        *(7, 2, 8, 8, "fp16"), accumulator_depth=64, buffer_depth=256, bus_bits=256, burst_beats=3,
        weight_fifo=6, load_fifo=6, store_fifo=6, outstanding=32,
    ),
    HardwareConfig(8, 8, 3, 5, accumulator_depth=256, buffer_depth=1024, burst_beats=32),
    HardwareConfig(
        *(3, 5, 2, 3, "e8m0"), accumulator_depth=200, buffer_depth=512, bus_bits=32, outstanding=4,
        address_bits=20,
    ),
    HardwareConfig(5, 1, 4, 8, accumulator_depth=128, buffer_depth=512, weight_fifo=40),
    HardwareConfig(
        *(6, 4), accumulator="fixed32", accumulator_depth=128, buffer_depth=512, address_bits=40,
        multiplier="ecp5-carry", scale_multiplier="ecp5-dsp", pipeline="ecp5-fast",
    ),
    HardwareConfig(4, 3, accumulator_depth=64, buffer_depth=256, pipeline="short"),
    HardwareConfig(
        *(4, 4, 2, 2, "e8m0"), accumulator="fixed20", accumulator_depth=64, bus_bits=32,
        scale_multiplier="lut", pipeline="short", buffer_depth=256, control="serial",
        burst_beats=8, outstanding=4, address_bits=20,
    ),
    HardwareConfig(6, 4, accumulator_depth=64, buffer_depth=256, control="serial"),
)  # fmt: skip
"""Each is compiled once, for all of its layers and memories."""

MEMORY_BYTES = 1 << 19
LONGEST = {"queued": 20_000, "serial": 100_000}
"""cycles of a run; without counters that are read layer by layer, a case has few runs"""
TRIES = 400
"""networks that may be too large or too slow for a build before one is not"""
PATIENCE = 5
"""tries after which the largest image is a pixel smaller, down to 4 by 4, and with it the channels;
networks that were too slow after which the memory's latency is a tenth less"""

Draw = Callable[[int, int], int]
"""a whole number from the first to the second one"""


class Block(nn.Module):
    """One layer of a kind, or the few that make it, behind a convolution that stores its input.

    A result is no codes, so only hardware with `clamp` gives one that went through a ReLU.
    """

    def __init__(
        self, kind: str, channels: int, inner: int, draw: Draw, size: tuple[int, int], clamp: bool
    ):
        super().__init__()
        self.kind = kind
        self.last = nn.ReLU() if clamp else nn.Identity()
        self.first = nn.Conv2d(channels, inner, (odd := 2 * draw(0, 1) + 1), 1, odd // 2)
        self.size = size
        if kind in ("convolution", "grouped", "depthwise"):
            self.layer = self._convolution(kind, inner, draw)
        elif kind in ("residual", "projection", "concat"):
            stride = 1 if kind == "residual" else draw(1, 2)
            filters = inner if kind == "residual" else draw(1, 20)
            other = filters if kind == "projection" else draw(1, 20)
            self.layer = nn.Conv2d(inner, filters, 3, stride, 1)
            self.other = nn.Conv2d(inner, other, 1, stride)
        elif kind in ("max pool", "average pool"):
            kernel = (draw(2, min(3, size[0])), draw(2, min(3, size[1])))
            stride, padding = (draw(1, 2), draw(1, 2)), (draw(0, 1), draw(0, 1))
            pool = nn.MaxPool2d if kind == "max pool" else nn.AvgPool2d
            self.layer = pool(kernel, stride, padding)
        elif kind == "linear":
            self.layer = nn.Linear(inner * size[0] * size[1], draw(1, 40))
        elif kind == "shuffle":
            self.layer = nn.ChannelShuffle(2)

    def _convolution(self, kind: str, inner: int, draw: Draw) -> nn.Conv2d:
        groups = {"convolution": 1, "grouped": 2, "depthwise": inner}[kind]
        filters = draw(1, 40) if kind == "convolution" else groups * draw(1, 3)
        kernel = [min(draw(1, 5), extent) for extent in self.size]
        reach = zip(kernel, self.size, strict=True)
        dilation = [draw(1, 2) if 2 * k - 1 <= extent else 1 for k, extent in reach]
        padding = [draw(0, (k - 1) * d) for k, d in zip(kernel, dilation, strict=True)]
        stride = (draw(1, 3), draw(1, 3))
        return nn.Conv2d(
            inner, filters, (kernel[0], kernel[1]), stride, (padding[0], padding[1]),
            (dilation[0], dilation[1]), groups, bool(draw(0, 1)),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        if self.kind == "residual":
            return self.last(self.layer(x) + x)
        if self.kind == "projection":
            return self.last(self.layer(x) + self.other(x))
        if self.kind == "concat":
            return torch.cat([torch.relu(self.layer(x)), self.other(x)], 1)
        if self.kind == "global average":
            return x.mean((2, 3))
        if self.kind == "global maximum":
            return x.amax((2, 3))
        return self.layer(x.flatten(1) if self.kind == "linear" else x)


KINDS = (
    "convolution", "grouped", "depthwise", "residual", "projection", "max pool", "average pool",
    "global average", "global maximum", "linear", "concat", "shuffle",
)  # fmt: skip


class Case(NamedTuple):
    """A layer on one of :data:`BUILDS`, and a memory for it."""

    seed: int
    build: int
    kind: str
    program: Program
    latency: int
    gap: int


class Result(NamedTuple):
    """What a run of a case was compared in.

    Parameters
    ----------
    layers : of its program
    cycles : of the run, as predicted
    errors : the largest difference of each counter, see
        :func:`~shiftcore.sim.probe.count_differences`
    """

    case: Case
    layers: int
    cycles: int
    errors: dict[str, int]


def draw_case(seed: int, build: int) -> Case:
    """The case of a seed: kinds by turns, all else random."""
    rng = np.random.default_rng([seed, build])
    config, kind = BUILDS[build], KINDS[seed % len(KINDS)]
    longest = LONGEST[config.control]

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    latency = draw(0, 40) if draw(0, 1) else draw(41, 400)
    gap = 0 if draw(0, 2) == 0 else draw(1, 9)
    quantization = QuantConfig(
        config.weight_bits, config.act_bits, config.rows, config.scale, "l2",
        accumulator=config.accumulator,
    )  # fmt: skip
    slow = 0
    for attempt in range(TRIES):
        most = max(4, 14 - attempt // PATIENCE)
        channels, inner = draw(1, 6), 2 * draw(1, min(12, most))
        size = (draw(2, most), draw(2, most))
        torch.manual_seed(seed)
        model = Block(kind, channels, inner, draw, size, config.clamp).eval()
        images = rng.normal(size=(2, channels, *size)).astype(np.float32)
        try:
            network = quantize(model, images, quantization)
            if sum(network.macs().values()) > longest * config.rows * config.cols:
                continue  # cannot be that fast, and takes long to compile
            program = compile_network(network, config)
        except ValueError:
            continue  # too large for these memories
        if predict(program, latency=latency, gap=gap).cycles <= longest:
            return Case(seed, build, kind, program, latency, gap)
        slow += 1
        if slow % PATIENCE == 0:
            latency -= latency // 10
    raise ValueError(f"build {build}, seed {seed}: none of {TRIES} networks ({kind}) fits")


def measure(case: Case) -> Result:
    """Run a case on the simulated RTL, and compare every counter."""
    program, latency, gap = case.program, case.latency, case.gap
    whole = predict(program, latency=latency, gap=gap)
    shares = predict_layers(program, latency=latency, gap=gap)
    with SimulatedSystem(program.config, MEMORY_BYTES, latency=latency, gap=gap) as system:
        errors = count_differences(program, system, whole, shares)
    return Result(case, len(shares), whole.cycles, errors)
