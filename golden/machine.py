"""The accelerator as a model: executes a compiled program, bit for bit.

Every image begins with zeros in the activation buffer, the accumulators, SCRATCH and OUTPUT;
:func:`check_written` tells whether a program depends on that. Instructions are executed one after
the other in an order that tickets, tiles and queues allow; :func:`check_order` tells whether every
such order gives the same result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from . import machine_kernels as kernels
from .bfp import unit_exponent
from .fixed import FixedFormat
from .isa import Drain, Error, Form, Load, Pass, Region, Weights
from .passes import BlockRows
from .program import Program, raw_numbers
from .tickets import (
    Accesses,
    MachineError,
    accesses,
    check_order,
    check_written,
    drain_accumulators,
    drain_buffer,
    drain_memory,
    load_buffer,
    load_memory,
    place,
    positions,
    schedule,
    sizes_of,
    tickets,
)
from .validity import decode_program, validate

__all__ = [
    "Accesses",
    "Machine",
    "MachineError",
    "MachineRun",
    "Written",
    "accesses",
    "check_order",
    "check_written",
    "decode_program",
    "schedule",
    "tickets",
    "validate",
]

Written = NDArray[np.floating] | BlockRows
"""What a DRAIN wrote: raw rows (N, n, C) as :func:`raw_numbers` gives them, or codes (N, n, B) and
exponents (N, n)."""

_STATE_BYTES = 1 << 26
_BATCH = 16
_CACHED_PIXELS = 1 << 24


@dataclass(frozen=True, eq=False)
class MachineRun:
    """What N images became.

    Parameters
    ----------
    outputs : (N, bytes) uint8, the OUTPUT region of every image
    saturated : (N,) int64, pixels that saturated a fixed-point accumulator
    trace : what every DRAIN wrote, in program order; empty if it was not asked for
    """

    outputs: NDArray[np.uint8]
    saturated: NDArray[np.int64]
    trace: tuple[Written, ...] = ()


class _State:
    """Memories while some images are executed side by side."""

    def __init__(self, program: Program, model: NDArray[np.uint8], images: NDArray[np.uint8]):
        config, n = program.config, len(images)
        size = config.accelerator.beat_bytes
        self.codes = np.zeros((n, config.buffer_depth, config.rows), np.uint8)
        self.exponents = np.zeros((n, config.buffer_depth), np.uint8)
        self.accumulators = np.zeros(
            (n, config.accumulator_depth, config.cols), config.accumulator_format.dtype
        )
        self.saturated = np.zeros(n, np.int64)
        self.memory = {
            Region.MODEL: model[None],
            Region.INPUT: images,
            Region.SCRATCH: np.zeros((n, program.sizes[Region.SCRATCH] * size), np.uint8),
            Region.OUTPUT: np.zeros((n, program.sizes[Region.OUTPUT] * size), np.uint8),
        }


class Machine:
    """Executes the program of `program`.

    Raises ``MachineError`` where the accelerator would halt (:func:`validate`), and with
    ``Error.NONE`` if a scale, a bias or a limit is no finite number.
    """

    def __init__(self, program: Program):
        self.program = program
        config = program.config
        self._form = config.accumulator_format
        validate(program.instructions, config, program.sizes)
        self._order = schedule(program.instructions, config)
        self._beat = config.accelerator.beat_bytes
        self._model = np.zeros(program.sizes[Region.MODEL] * self._beat, np.uint8)
        model = program.model
        if len(model) > len(self._model):
            raise ValueError(
                f"the model must have at most {len(self._model)} bytes, not {len(model)}"
            )
        self._model[: len(model)] = model
        self._read_tiles()
        self._units = {
            signed: np.ldexp(1.0, np.arange(256) + unit_exponent(config.act_bits, signed))
            for signed in (False, True)
        }
        self._limits = {
            index: self._limits_of(index)
            for index in self._order
            if isinstance(program.instructions[index], Drain)
        }
        self._positions: dict[tuple, tuple[NDArray[np.int32], NDArray[np.int32], int]] = {}
        self._cached = 0

    def _read_tiles(self) -> None:
        """Decode every tile once, and find which ones each PASS takes."""
        tile = self.program.config.tile
        numbers: dict[tuple[int, bool], int] = {}
        stream: list[int] = []
        self._tiles: dict[int, NDArray[np.int32]] = {}
        for item in self.program.instructions:
            if isinstance(item, Weights):
                offset = item.offset
                for turn in range(item.tiles):
                    biased = bool(item.biased) and turn == 0
                    stream.append(numbers.setdefault((offset, biased), len(numbers)))
                    offset += tile.beats(biased)
        taken = 0
        for index, item in enumerate(self.program.instructions):
            if isinstance(item, Pass):
                self._tiles[index] = np.array(stream[taken : taken + item.tiles], np.int32)
                taken += item.tiles
        config, count = self.program.config, len(numbers)
        self._weights = np.zeros((count, config.rows, config.cols), np.int8)
        self._scales = np.zeros((count, config.cols), np.float32)
        self._biases = np.zeros((count, config.cols), config.accumulator_format.dtype)
        for biased in (False, True):
            chosen = [(offset, k) for (offset, has), k in numbers.items() if has == biased]
            size = tile.beats(biased) * self._beat
            for first in range(0, len(chosen), 1024):
                offsets, where = np.array(chosen[first : first + 1024], np.int64).T
                data = self._model[(offsets * self._beat)[:, None] + np.arange(size)]
                try:
                    codes, scales, biases = tile.unpack(data, biased)
                except ValueError as error:
                    raise MachineError(Error.NONE, f"a tile of the model: {error}") from None
                self._weights[where], self._scales[where] = codes, scales
                if biases is not None:
                    self._biases[where] = biases

    def _limits_of(self, index: int) -> tuple[np.floating, np.floating]:
        item = self.program.instructions[index]
        assert isinstance(item, Drain)
        if not item.limited:
            return self._form.dtype(-np.inf), self._form.dtype(np.inf)
        try:
            low, high = self._form.decode([item.low, item.high])
        except ValueError as error:
            where = place(index, self.program.instructions)
            raise MachineError(Error.NONE, f"{where}: low or high: {error}", index) from None
        return low, high

    @cached_property
    def image_bytes(self) -> int:
        """Memory that one image takes while it is executed."""
        config = self.program.config
        return (
            config.buffer_depth * (config.rows + 1)
            + config.accumulator_depth * config.cols * np.dtype(self._form.dtype).itemsize
            + sum(self.program.sizes[1:]) * self._beat
        )

    def run(
        self,
        images: NDArray[np.uint8],
        *,
        trace: bool = False,
        interleaving: np.random.Generator | None = None,
    ) -> MachineRun:
        """Execute the program for each of N images.

        Parameters
        ----------
        images : (N, bytes), the INPUT region of each
        trace : keep what every DRAIN writes
        interleaving : execute in a random order that tickets, tiles and queues allow

        Raises ``ValueError`` if `images` has another size, and ``MachineError`` with ``Error.NONE``
        if a lane is drained that must be zero and is not.
        """
        size = self.program.sizes[Region.INPUT] * self._beat
        if images.ndim != 2 or images.shape[1] != size or images.dtype != np.uint8:
            raise ValueError(f"images must be (N, {size}) uint8, not {images.shape} {images.dtype}")
        batch = min(_BATCH, max(1, _STATE_BYTES // self.image_bytes))
        order = self._order
        outputs: list[NDArray[np.uint8]] = []
        saturated: list[NDArray[np.int64]] = []
        traces: list[list[Written]] = []
        for first in range(0, max(len(images), 1), batch):
            part = images[first : first + batch].copy()
            state = _State(self.program, self._model, part)
            if interleaving is not None:
                order = schedule(self.program.instructions, self.program.config, interleaving)
            written: dict[int, Written] = {}
            for index in order:
                self._execute(index, state, written if trace else None)
            outputs.append(state.memory[Region.OUTPUT])
            saturated.append(state.saturated)
            traces.append([written[index] for index in sorted(written)])
        joined = (_joined(each) for each in zip(*traces, strict=True))
        return MachineRun(np.concatenate(outputs), np.concatenate(saturated), tuple(joined))

    def _execute(self, index: int, state: _State, written: dict[int, Written] | None) -> None:
        item = self.program.instructions[index]
        if isinstance(item, Load):
            self._load(item, state)
        elif isinstance(item, Pass):
            self._pass(index, item, state)
        elif isinstance(item, Drain):
            result = self._drain(index, item, state)
            if written is not None:
                written[index] = result

    def _load(self, item: Load, state: _State) -> None:
        config = self.program.config
        kernels.unpack(
            state.memory[Region(item.region)],
            load_memory(item, sizes_of(config)) * self._beat,
            config.act_bits,
            bool(item.fixed),
            item.exponent,
            load_buffer(item, sizes_of(config)).astype(np.int32),
            state.codes,
            state.exponents,
        )

    def _walk(self, item: Pass) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
        """Buffer address of each pixel or -1, its accumulator, and how many pixels start."""
        start, level = item.start, item.start_level
        where = (item.buffer, item.accumulator, item.y, item.x, item.height, item.width)
        key = (*where, start, level, item.loops)
        if key in self._positions:
            return self._positions[key]
        found = positions(item, sizes_of(self.program.config))
        buffer = np.where(found.inside, found.buffer, -1).astype(np.int32)
        starting = prod(loop.count for loop in item.loops[level:]) if start else 0
        walk = buffer, found.accumulator.astype(np.int32), starting
        if self._cached + item.pixels <= _CACHED_PIXELS:
            self._cached += item.pixels
            self._positions[key] = walk
        return walk

    def _pass(self, index: int, item: Pass, state: _State) -> None:
        addresses, targets, starting = self._walk(item)
        kernels.accumulate(
            state.codes,
            state.exponents,
            state.accumulators,
            addresses,
            targets,
            self._tiles[index],
            self._weights,
            self._scales,
            self._biases,
            starting,
            1 << (self.program.config.act_bits - 1) if item.signed else 0,
            bool(item.maximum),
            self._units[bool(item.signed)],
            (float(self._form.low), float(self._form.high))
            if isinstance(self._form, FixedFormat)
            else None,
            state.saturated,
        )

    def _drain(self, index: int, item: Drain, state: _State) -> Written:
        config = self.program.config
        known = sizes_of(config)
        low, high = self._limits[index]
        addresses = drain_accumulators(item, known).astype(np.int32)
        offsets = drain_memory(item, known) * self._beat
        n, count = len(state.codes), len(addresses)
        if item.form == Form.RAW:
            rows = np.minimum(np.maximum(state.accumulators[:, addresses[:, 0]], low), high)
            size = known.raw_beats * self._beat
            beats = np.zeros((n, count, size), np.uint8)
            bits = self._form.encode(rows).astype("<u4")
            beats[:, :, : 4 * config.cols] = bits.view(np.uint8)
            state.memory[Region(item.region)][:, offsets[:, None] + np.arange(size)] = beats
            return raw_numbers(config, item, bits)
        signed = item.form == Form.SIGNED
        codes = np.empty((n, count, config.rows), np.uint8)
        exponents = np.empty((n, count), np.uint8)
        clean = kernels.requantize(
            state.accumulators,
            addresses,
            item.select,
            low,
            high,
            signed,
            config.act_bits,
            config.requantizer.rounding == "truncate",
            item.exponent if isinstance(self._form, FixedFormat) else 127,
            codes,
            exponents,
        )
        if not clean:
            raise MachineError(
                Error.NONE,
                f"{place(index, self.program.instructions)}: lanes past channel {config.rows} of a "
                f"block must be zero",
                index,
            )
        if item.to_buffer:
            where = drain_buffer(item, known)
            state.codes[:, where] = codes
            state.exponents[:, where] = exponents
        if item.to_memory:
            memory = state.memory[Region(item.region)]
            size = known.word_beats * self._beat
            kernels.pack(codes, exponents, config.act_bits, offsets, memory, size)
        sign = 1 << (config.act_bits - 1) if signed else 0
        return BlockRows((codes.astype(np.int16) ^ sign) - sign, exponents)


def _joined(parts: Sequence[Written]) -> Written:
    """One trace entry of the images of several."""
    if isinstance(parts[0], BlockRows):
        blocks = [part for part in parts if isinstance(part, BlockRows)]
        return BlockRows(
            np.concatenate([part.codes for part in blocks]),
            np.concatenate([part.exponents for part in blocks]),
        )
    return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
