"""Exact cycles and counters of a compiled program on the accelerator, without simulating it."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from ..golden.accelerator import PAGE_BYTES
from ..golden.config import HardwareConfig
from ..golden.isa import (
    ENGINES,
    LEVELS,
    Drain,
    End,
    Error,
    Form,
    Instruction,
    Load,
    Pass,
    Region,
    Weights,
)
from ..golden.program import Program
from ..golden.registers import TIMED
from ..golden.tickets import MachineError
from .accelerator_kernels import COUNTS, INSTRUCTION, LEAP, MACHINE, SPEC, run

__all__ = ["Prediction", "counters_at", "predict", "predict_layers"]

_TICKETS = ("after_load", "after_pass", "after_drain")
_FIELDS: dict[type[Instruction], tuple[str, ...]] = {
    Load: ("region", "offset", "row_step", "block_step", "rows", "blocks", "words"),
    Weights: ("offset", "tiles", "biased"),
    Pass: ("accumulator", "start", "tile_level", "start_level"),
    Drain: ("region", "offset", "row_step", "rows", "pixels", "to_buffer", "to_memory"),
    End: (),
}
"""What counts of each instruction, beside its tickets."""


@dataclass(frozen=True)
class Prediction:
    """The counters of the accelerator after a run; see
    :data:`~shiftcore.golden.registers.TIMED`."""

    cycles: int
    instructions: int
    pixels: int
    stall_tile: int
    stall_ticket: int
    stall_empty: int
    stall_hazard: int
    drain_busy: int
    load_busy: int
    read_beats: int
    write_beats: int

    def counters(self) -> dict[str, int]:
        """By name, as the driver reads them."""
        return asdict(self)


def predict(program: Program, *, latency: int = 20, gap: int = 0, images: int = 1) -> Prediction:
    """The counters after a run of `program` with a memory that answers like the simulated one.

    Every register of the gateware that decides when something happens is followed from cycle to
    cycle; numbers are not computed.

    Parameters
    ----------
    latency, gap : cycles from an address to its first beat, and between two beats; a write is
        confirmed `latency` cycles after its last beat
    images : computed after one start, adjacent in memory, as the driver places them; under serial
        control each has its own, and the counters are those of the last one

    Raises :class:`~shiftcore.golden.tickets.MachineError` if the run does not come to its end. What
    :func:`~shiftcore.golden.validity.validate` refuses is not looked for.
    """
    marks = np.zeros(0, np.int64)
    (counters,) = counters_at(program, marks, latency=latency, gap=gap, images=images).tolist()
    return Prediction(*counters)


def predict_layers(program: Program, *, latency: int = 20, gap: int = 0) -> dict[str, Prediction]:
    """What each layer adds to the counters of :func:`predict` for one image; layers in order.

    A layer's share ends when the last pixel of its last PASS is issued to the array, and the share
    of the next layer begins. The first one's begins with the start of the run, the last one's ends
    with it. So the shares of every counter add up to the whole; ``pixels`` are exactly those of the
    layer; and a PASS that waits until the layer before has drained is charged to the layer that it
    works for. LOAD, WEIGHTS and DRAIN work beside the passes of other layers too: what they count
    belongs to the time, not to the layer.

    Parameters and errors are those of :func:`predict`.
    """
    pixels = program.layer_pixels
    marks = np.cumsum(list(pixels.values())[:-1], dtype=np.int64)
    found = counters_at(program, marks, latency=latency, gap=gap)
    shares = np.diff(found, axis=0, prepend=0)
    return {layer: Prediction(*share) for layer, share in zip(pixels, shares.tolist(), strict=True)}


def counters_at(
    program: Program,
    marks: NDArray[np.int64],
    *,
    latency: int = 20,
    gap: int = 0,
    images: int = 1,
    leap: int = LEAP,
) -> NDArray[np.int64]:
    """Counters, (len(marks) + 1, len(TIMED)): after so many pixels, and after the run.

    Parameters
    ----------
    marks : increasing numbers of pixels, at least 1
    latency, gap, images : and errors are those of :func:`predict`
    leap : cycles that are taken together at most; the counters do not depend on it
    """
    if min(latency, gap) < 0 or images < 1:
        raise ValueError(
            f"latency and gap must be at least 0 and images 1, not {latency}, {gap}, {images}"
        )
    machine, counts = np.zeros(1, MACHINE), np.zeros(len(marks), COUNTS)
    sizes = np.array(program.sizes, np.int64)
    if program.config.accelerator.serial:
        for region in (Region.INPUT, Region.OUTPUT):
            machine["bases"][0, region] = (images - 1) * sizes[region]
        images = 1
    spec, table = _spec(program.config), _table(program)
    error = Error(run(machine, spec, table, sizes, images, latency, gap, marks, counts, leap))
    if error is not Error.NONE:
        raise MachineError(error, f"the accelerator halts with {error.name}")
    found = np.concatenate([counts, machine["counters"]])
    return np.stack([found[name.lower()] for name in TIMED], axis=1)


def _spec(config: HardwareConfig) -> np.ndarray:
    spec, engine, tile = config.accelerator, config.engine, config.tile
    requantizer = config.requantizer
    values = {
        "serial": spec.serial,
        "weights_ahead": spec.weights_ahead,
        "queue_depth": spec.queue_depth,
        "weight_fifo": spec.weight_fifo,
        "program_fifo": 2 * max(spec.burst_beats, spec.instruction_beats),
        "load_fifo": spec.load_fifo,
        "store_fifo": spec.store_fifo,
        "instruction_beats": spec.instruction_beats,
        "burst_beats": spec.burst_beats,
        "outstanding": spec.outstanding,
        "page_beats": PAGE_BYTES // spec.beat_bytes,
        "code_rows_beats": config.rows * tile.row_beats,
        "scale_beats": tile.scale_beats,
        "bias_beats": tile.bias_beats,
        "tile_beats": tile.beats(False),
        "biased_tile_beats": tile.beats(True),
        "cols": config.cols,
        "scale_tiles": engine.scale_tiles,
        "bias_tiles": engine.bias_tiles,
        "scale_play": engine.scale_play,
        "bias_play": engine.bias_play,
        "revisit": engine.scale_unit.revisit,
        "pass_cycles": engine.pass_cycles,
        "retire_cycles": engine.retire_cycles,
        "drain_cycles": engine.drain_cycles,
        "block_rows": requantizer.beats_per_block,
        "max_stages": requantizer.max_stages,
        "requantizer_depth": requantizer.waiting_rows,
        "accumulator_depth": config.accumulator_depth,
        "load_rows": spec.load_rows,
        "accumulator_mask": (1 << spec.space_bits("accumulators")) - 1,
        "offset_mask": (1 << spec.offset_bits) - 1,
        "field_beats": [spec.field_beats(op) for op in ENGINES],
    }
    found = np.zeros(1, SPEC)
    for name in SPEC.fields or ():
        found[name] = values[name]
    return found


def _table(program: Program) -> np.ndarray:
    """All instructions, a class of them and a field after the other: there may be many."""
    table = np.zeros(len(program.instructions), INSTRUCTION)
    spec, tile = program.config.accelerator, program.config.tile
    rows = defaultdict(list)
    for row, item in enumerate(program.instructions):
        rows[type(item)].append(row)
    for kind, names in _FIELDS.items():
        items = [program.instructions[row] for row in rows[kind]]
        part = np.zeros(len(items), INSTRUCTION)
        part["opcode"] = kind.opcode
        for name in (*_TICKETS, *names):
            part[name] = list(map(attrgetter(name), items))
        part["offset"] &= (1 << spec.offset_bits) - 1
        part["accumulator"] &= (1 << spec.space_bits("accumulators")) - 1
        if kind is Load:
            fixed = np.array([item.fixed for item in items], bool)
            part["item_beats"] = np.where(fixed, spec.code_beats, spec.word_beats)
            part["run_beats"] = part["item_beats"] * part["words"]
        elif kind is Weights:
            codes = part["tiles"] * tile.beats(False)
            part["run_beats"] = codes + part["biased"] * tile.bias_beats
        elif kind is Pass:
            loops = [loop for item in items for loop in item.loops]
            for field, index in (("count", 0), ("step", 2)):
                part[field] = np.array([loop[index] for loop in loops]).reshape(-1, LEVELS)
            part["pixels"] = part["count"].prod(1)
        elif kind is Drain:
            part["raw"] = np.array([item.form for item in items]) == Form.RAW
            part["item_beats"] = np.where(part["raw"], spec.raw_beats, spec.word_beats)
            part["run_beats"] = part["item_beats"] * part["pixels"]
        table[rows[kind]] = part
    return table
