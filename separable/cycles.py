"""The design that takes the fewest cycles on an array."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ..compiler.network import compile_network
from ..estimate.network import estimate
from ..frontend.graph import Arrange, Conv2d, Graph, Input, Node, Output, ReLU
from ..golden.config import HardwareConfig
from ..golden.network import QuantizedNetwork
from ..quant.convert import QuantConfig, quantize
from .design import Design, Pair, Stage, best_design, counted, designs

__all__ = ["OTHERS", "Fastest", "design_cycles", "design_network", "fastest_design", "least_cycles"]

OTHERS = ("before", "after")
"""layers of the network that a design is timed in"""
STRIDE = 64
"""of the layer after the stages, at most; the accelerator has strides up to 127"""


@dataclass(frozen=True)
class Fastest:
    """The design of the fewest cycles of those that were enumerated.

    Parameters
    ----------
    design, cycles : the design and what it takes for one image
    enumerated : designs that were compared
    timed : those of them that were compiled; the others' least cycles were too many
    """

    design: Design
    cycles: int
    enumerated: int
    timed: int


def _order(stage: Stage) -> NDArray[np.int64]:
    """Of every channel after the shuffle, where it was."""
    return np.arange(stage.out_channels).reshape(stage.shuffle, -1).T.ravel()


def _sizes(design: Design, size: tuple[int, int]) -> Iterator[tuple[Stage, tuple[int, int]]]:
    """The stages and the (H, W) of their results."""
    height, width = size
    for stage in design.stages:
        height, width = -(-height // stage.stride[0]), -(-width // stage.stride[1])
        yield stage, (height, width)


def _graph(design: Design, size: tuple[int, int]) -> Graph:
    """The stages with a layer before, so that they read what a layer stores, and one after."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    def zeros(channels: int) -> NDArray[np.float32]:
        return np.zeros(channels, np.float32)

    channels = design.in_channels
    nodes: list[Node] = [
        Input("input", (), (1, *size)),
        Conv2d("before", ("input",), weight(channels, 1, 1, 1), zeros(channels)),
        ReLU("read", ("before",)),
    ]
    for number, (stage, result) in enumerate(_sizes(design, size)):
        kh, kw = stage.kernel
        padding = ((kh - 1) // 2, kh // 2, (kw - 1) // 2, kw // 2)
        channels = stage.out_channels
        kernel = weight(channels, stage.depth, kh, kw)
        nodes.append(
            Conv2d(
                f"stage{number}", (nodes[-1].name,), kernel, zeros(channels), stage.stride, padding,
                groups=stage.groups,
            )
        )  # fmt: skip
        if stage.shuffle > 1:
            nodes.append(
                Arrange(
                    f"shuffle{number}", (nodes[-1].name,), np.zeros(channels, np.int64),
                    _order(stage), ((0, 0),), ((1, 1),), result,
                )
            )  # fmt: skip
    nodes.append(ReLU("made", (nodes[-1].name,)))
    # Of few pixels: the last layer of a network stores raw numbers.
    *_, (_, (height, width)) = _sizes(design, size)
    apart = min(height, STRIDE), min(width, STRIDE)
    last = Conv2d("after", ("made",), weight(1, channels, 1, 1), zeros(1), apart)
    return Graph((*nodes, last, Output("output", ("after",))))


def design_network(
    design: Design, config: HardwareConfig, size: tuple[int, int]
) -> tuple[QuantizedNetwork, NDArray[np.float32]]:
    """The network that :func:`design_cycles` compiles, and an image (1, 1, H, W) for it.

    Raises ``ValueError`` if it cannot be quantized for `config`.
    """
    images = np.random.default_rng(0).normal(size=(1, 1, *size)).astype(np.float32)
    options = QuantConfig(config.weight_bits, config.act_bits, config.rows, config.scale, "l2")
    return quantize(_graph(design, size), images, options), images


def design_cycles(
    design: Design,
    config: HardwareConfig,
    size: tuple[int, int],
    *,
    latency: int = 20,
    gap: int = 0,
) -> int:
    """The cycles that `config` takes for the stages on one input of `size` (H, W).

    They are the stages' shares (:func:`~shiftcore.estimate.accelerator.predict_layers`) in a
    network that has a layer before and a layer after them; the shuffles and the gathering of their
    channels are included. The stages are linear, a ReLU follows the last.

    Parameters
    ----------
    latency, gap : of the memory, see :func:`~shiftcore.estimate.accelerator.predict`

    Raises ``ValueError`` if they cannot run there, with what to change.
    """
    network, _ = design_network(design, config, size)
    program = compile_network(network, config)
    found = estimate(program, network.macs(), latency=latency, gap=gap)
    return sum(share.cycles for name, share in found.layers.items() if name not in OTHERS)


def _column_tiles(channels: int, config: HardwareConfig) -> list[slice]:
    """The filters that the columns hold at a time, cut as the blocks of the result."""
    spec = config.requantizer
    span = config.rows * spec.blocks_per_beat
    tiles = []
    for first in range(0, channels, span):
        end = min(first + span, channels)
        tiles += [
            slice(start, min(start + config.cols, end)) for start in range(first, end, config.cols)
        ]
    return tiles


def least_cycles(design: Design, config: HardwareConfig, size: tuple[int, int]) -> int:
    """Cycles that the stages cannot go below: the array takes one pixel a cycle.

    A column tile takes every pixel once for each kernel position and each block of the channels
    that its filters see, which are in no fewer blocks than they fill. Shuffled channels that a
    kernel of several taps reads are gathered first, from all the blocks that they are in.
    """
    total, before = 0, None
    read = size
    for stage, (height, width) in _sizes(design, size):
        taps = stage.kernel[0] * stage.kernel[1]
        if (
            before is not None
            and before.shuffle > 1
            and taps > 1
            and 1 < stage.groups < stage.in_channels
        ):
            sources = _order(before) // config.rows
            tiles = _column_tiles(stage.in_channels, config)
            total += sum(len(np.unique(sources[tile])) for tile in tiles) * read[0] * read[1]
        filters = stage.out_channels // stage.groups
        for tile in _column_tiles(stage.out_channels, config):
            groups = (tile.stop - 1) // filters - tile.start // filters + 1
            total += -(-groups * stage.depth // config.rows) * taps * height * width
        before, read = stage, (height, width)
    return total


def fastest_design(
    config: HardwareConfig,
    in_channels: int,
    out_channels: int | None = None,
    kernel: Pair = 3,
    stride: Pair = 1,
    *,
    size: tuple[int, int],
    stages: int | Iterable[int] = (1, 2, 3),
    most_parameters: int | None = None,
    latency: int = 20,
    gap: int = 0,
) -> Fastest:
    """The design of the fewest cycles on `config`, and of these the one of the fewest parameters.

    It is exact for what is enumerated: all of :func:`~.design.designs` of these numbers of `stages`
    that have at most `most_parameters`, by default those of the depthwise separable convolution, or
    of the cheapest such design if that has more; and the cheapest design of any number of stages.
    They are compiled in the order of :func:`least_cycles`, until no other can be faster.

    Parameters
    ----------
    size : (H, W) of the input
    latency, gap : of the memory, see :func:`~shiftcore.estimate.accelerator.predict`

    Raises ``ValueError`` if there is no such design.
    """
    out_channels = in_channels if out_channels is None else out_channels
    stages = stages if isinstance(stages, int) else tuple(stages)
    request = in_channels, out_channels, kernel, stride
    most = most_parameters
    if most is None:
        made = Design.depthwise(*request), best_design(*request, stages=stages)
        most = max(design.parameters for design in made)
    found = designs(*request, stages=stages)
    candidates = list(takewhile(lambda design: design.parameters <= most, found))
    if not candidates:
        raise ValueError(f"no design of {counted(stages)} has at most {most} parameters")
    if (any_number := best_design(*request)) not in candidates:
        candidates.append(any_number)
    ranked = sorted(
        (least_cycles(design, config, size), design.parameters, order)
        for order, design in enumerate(candidates)
    )
    best: tuple[int, int, int] | None = None
    timed = 0
    for least, parameters, order in ranked:
        if best is not None and (least, parameters, order) > best:
            break
        cycles = design_cycles(candidates[order], config, size, latency=latency, gap=gap)
        timed += 1
        best = min(best or (cycles, parameters, order), (cycles, parameters, order))
    assert best is not None
    return Fastest(candidates[best[2]], best[0], len(candidates), timed)
