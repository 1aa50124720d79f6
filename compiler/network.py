"""A whole network as a program for the accelerator."""

from dataclasses import dataclass, replace

import numpy as np

from ..golden.accelerator import PAGE_BYTES
from ..golden.config import HardwareConfig
from ..golden.isa import COUNT_BITS, Drain, Instruction, Load, Weights
from ..golden.network import INPUT, QuantizedNetwork
from ..golden.program import Program
from ..golden.tickets import tickets
from .group import groups_of
from .lower import check
from .place import Interval, Placement, first_fit, gaps, place
from .plan import LayerWork
from .schedule import Listing, schedule
from .tensors import Tensors, input_tensor, stored_tensors
from .tile import column_tiles

__all__ = ["Compiled", "LayerPlan", "compile_network", "compile_with_plan"]

_LARGEST = (1 << 11) - 1
"""coordinate of a PASS"""


@dataclass(frozen=True)
class LayerPlan:
    """How a layer is computed.

    Parameters
    ----------
    name : of the layer
    chunks : parts of the picture that are computed one after the other
    kept : whether its tensor stays in the activation buffer
    """

    name: str
    chunks: int
    kept: bool


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program, how it computes the layers, and where its bytes go.

    Parameters
    ----------
    program : the program
    layers : one entry per layer
    read_bytes, written_bytes : of memory, per image
    """

    program: Program
    layers: tuple[LayerPlan, ...]
    read_bytes: int
    written_bytes: int


def compile_network(network: QuantizedNetwork, config: HardwareConfig) -> Program:
    """The program that computes `network` on `config`.

    Raises ``ValueError`` if they do not go together, with what to change.
    """
    return compile_with_plan(network, config).program


def compile_with_plan(network: QuantizedNetwork, config: HardwareConfig) -> Compiled:
    """As :func:`compile_network`, and what it costs."""
    check(network, config)
    _check_sizes(network, config)
    tensors = stored_tensors(network)
    sizes = network.sizes()
    works = [
        LayerWork(
            index,
            layer,
            sizes[layer.name],
            tuple(tensors[term.source] for term in layer.terms),
            tuple(column_tiles(layer, tensors, config)),
            config,
        )
        for index, layer in enumerate(network.layers)
    ]
    placement = place(works, tensors, config)
    depth = config.buffer_depth
    largest = [gaps(placement.buffer.values(), work.index, depth)[1] for work in works]
    groups = groups_of(works, placement, largest, depth)
    scratch, scratch_beats = _scratch(works, tensors, placement, config)
    listing = schedule(groups, placement, scratch, config)
    instructions = _linked(listing.instructions, config)

    program = Program(
        config,
        tuple(instructions),
        np.frombuffer(listing.weights, np.uint8),
        tuple(listing.places),
        _check_memory(_region_sizes(works, tensors, listing, scratch_beats, config), config),
        _input_shape(network, tensors),
        {work.layer.name: (work.layer.bias.size, *work.size) for work in works},
        network.layers[-1].name,
        sum(network.macs().values()),
    )
    chunks = {
        work.index: {(g.chunk.y, g.chunk.x) for g in groups if g.work is work} for work in works
    }
    layers = tuple(
        LayerPlan(work.layer.name, len(chunks[work.index]), work.layer.name in placement.buffer)
        for work in works
    )
    return Compiled(program, layers, *_traffic(program))


def _check_sizes(network: QuantizedNetwork, config: HardwareConfig) -> None:
    sizes = network.sizes()
    for layer in network.layers:
        if layer.limits is not None and not config.clamp:
            raise ValueError(
                f"layer {layer.name!r} clamps its output, the hardware cannot: set clamp = true"
            )
        for term in layer.terms:
            height, width = sizes[term.source]
            top, bottom, left, right = term.padding
            if max(height + top + bottom, width + left + right) > _LARGEST:
                raise ValueError(
                    f"layer {layer.name!r} reads a picture of {height} x {width} pixels and its "
                    f"padding: at most {_LARGEST} in a row or column can be addressed"
                )
            if max(*term.stride, *term.dilation) > 127:
                raise ValueError(
                    f"layer {layer.name!r} has stride {term.stride} and dilation {term.dilation}: "
                    f"each must be at most 127"
                )


def _scratch(
    works: list[LayerWork], tensors: Tensors, placement: Placement, config: HardwareConfig
) -> tuple[dict[str, int], int]:
    """Where tensors are in SCRATCH, and its size, in beats."""
    spec = config.accelerator
    placed: dict[str, Interval] = {}
    for work in works[:-1]:
        name = work.layer.name
        if name in placement.buffer:
            continue
        if name in tensors:
            size, last = tensors[name].words * spec.word_beats, tensors[name].last
        else:
            size = len(work.tiles) * work.size[0] * work.size[1] * spec.raw_beats
            last = work.index
        address = first_fit(placed.values(), size, work.index, last)
        placed[name] = Interval(address, size, work.index, last)
    end = max((item.address + item.size for item in placed.values()), default=0)
    return {name: item.address for name, item in placed.items()}, end


def _linked(instructions: list[Instruction], config: HardwareConfig) -> list[Instruction]:
    """With tickets, and offsets of tiles that are counted from the beginning of the region."""
    if len(instructions) >> COUNT_BITS:
        raise ValueError(
            f"the network takes {len(instructions)} instructions, more than {1 << COUNT_BITS}: "
            f"set a larger buffer_depth or accumulator_depth"
        )
    first = len(instructions) * config.accelerator.instruction_beats
    moved = [
        replace(item, offset=item.offset + first) if isinstance(item, Weights) else item
        for item in instructions
    ]
    return tickets(moved, config)


def _input_shape(network: QuantizedNetwork, tensors: Tensors) -> tuple[int, int, int, int]:
    source = tensors[INPUT]
    _, height, width = input_tensor(network)
    return source.planes, source.blocks // source.planes, height, width


def _region_sizes(
    works: list[LayerWork],
    tensors: Tensors,
    listing: Listing,
    scratch: int,
    config: HardwareConfig,
) -> tuple[int, int, int, int]:
    spec = config.accelerator
    last = works[-1]
    pixels = last.size[0] * last.size[1]
    if last.layer.output is None:
        output = len(last.tiles) * pixels * spec.raw_beats
    else:
        output = tensors[last.layer.name].words * spec.word_beats
    return (
        len(listing.instructions) * spec.instruction_beats
        + len(listing.weights) // spec.beat_bytes,
        tensors[INPUT].words * spec.code_beats,
        scratch,
        output,
    )


def _check_memory(
    sizes: tuple[int, int, int, int], config: HardwareConfig
) -> tuple[int, int, int, int]:
    """`sizes`, if addresses are long enough for them."""
    spec = config.accelerator
    pages = sum(-(-size * spec.beat_bytes // PAGE_BYTES) for size in sizes)
    if pages * PAGE_BYTES > 1 << config.address_bits:
        raise ValueError(
            f"the network takes {pages * PAGE_BYTES} bytes of memory for one image, address_bits = "
            f"{config.address_bits} has {1 << config.address_bits}: it must be at least "
            f"{(pages * PAGE_BYTES - 1).bit_length()}"
        )
    return sizes


def _traffic(program: Program) -> tuple[int, int]:
    """(bytes read, bytes written) per image, the program itself included."""
    spec, form = program.config.accelerator, program.config.tile
    read = len(program.instructions) * spec.instruction_beats
    written = 0
    for item in program.instructions:
        if isinstance(item, Load):
            beats = spec.code_beats if item.fixed else spec.word_beats
            read += item.words * item.rows * item.blocks * beats
        elif isinstance(item, Weights):
            read += item.tiles * form.beats(False) + item.biased * form.bias_beats
        elif isinstance(item, Drain) and item.to_memory:
            beats = spec.word_beats if item.form else spec.raw_beats
            written += item.rows * item.pixels * beats
    return read * spec.beat_bytes, written * spec.beat_bytes
