"""Programs for the machine, and a reference that takes one pixel at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from shiftcore.golden.accelerator import AcceleratorSpec
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fixed import ACCUMULATORS, FixedFormat
from shiftcore.golden.floats import FLOAT32
from shiftcore.golden.isa import (
    Drain,
    End,
    Form,
    Instruction,
    Load,
    Loop,
    Pass,
    Region,
    Weights,
)
from shiftcore.golden.passes import BlockRows, DrainFormat, Engine
from shiftcore.golden.passes import Drain as EngineDrain
from shiftcore.golden.passes import Pass as EnginePass
from shiftcore.golden.program import Place, Program, pack_words
from shiftcore.golden.scale_unit import FixedAddSpec
from shiftcore.golden.tickets import tickets

ONCE = Loop()


class Builder:
    """Instructions and tiles in order; `program` puts them together, with tickets."""

    def __init__(self, config: HardwareConfig, **sizes: int):
        self.config = config
        self.sizes = {"input": 0, "scratch": 0, "output": 0} | sizes
        self.items: list[Instruction] = []
        self.tiles: list[tuple] = []
        self.places: list[Place] = []

    def add(self, *items: Instruction) -> None:
        self.items += items

    def weights(self, tiles: Sequence[tuple]) -> None:
        """Tiles (codes, scales, biases or None); only the first one may have biases."""
        first = len(self.tiles)
        self.tiles += tiles
        biased = int(tiles[0][2] is not None)
        # The offset is the number of the first tile until all instructions are counted.
        self.items.append(Weights(offset=first, tiles=len(tiles), biased=biased))

    def drain(self, place: Place | None = None, **fields: int) -> None:
        self.items.append(Drain(**fields))
        self.places.append(place or Place(f"drain {len(self.places)}", 0, 0, 0))

    def program(self, *, ordered: bool = True, shapes: dict | None = None) -> Program:
        items = [*self.items, End()]
        beats = self.config.accelerator.instruction_beats * len(items)
        stream: list[int] = []
        offsets = []
        for tile in self.tiles:
            offsets.append(beats + len(stream))
            stream += self.config.tile.pack(*tile)
        items = [
            replace(item, offset=offsets[item.offset]) if isinstance(item, Weights) else item
            for item in items
        ]
        if ordered:
            items = tickets(items, self.config)
        size = self.config.bus_bits // 8
        data = b"".join(beat.to_bytes(size, "little") for beat in stream)
        sizes = (beats + len(stream), *self.sizes.values())
        return Program(
            self.config,
            tuple(items),
            np.frombuffer(data, np.uint8),
            tuple(self.places),
            (sizes[0], sizes[1], sizes[2], sizes[3]),
            (1, 1, 1, 1),
            shapes or {},
            "out",
            0,
        )


def walk(item: Pass, spec: AcceleratorSpec) -> Iterator[tuple[int, int, int, int, tuple[int, ...]]]:
    """Buffer address, accumulator, y, x and turns of every pixel, as the instruction set says."""
    words, accumulators = 2 ** spec.space_bits("buffer"), 2 ** spec.space_bits("accumulators")

    def loop(k: int, place: tuple[int, int, int, int], turns: tuple[int, ...]) -> Iterator:
        if k == len(item.loops):
            yield (*place, turns)
            return
        for turn in range(item.loops[k].count):
            yield from loop(k + 1, place, (*turns, turn))
            steps = item.loops[k][1:]
            buffer, accumulator, y, x = (a + b for a, b in zip(place, steps, strict=True))
            y, x = ((v + 2048) % 4096 - 2048 for v in (y, x))
            place = (buffer % words, accumulator % accumulators, y, x)

    yield from loop(0, (item.buffer, item.accumulator, item.y, item.x), ())


class Reference:
    """One image through a program, in program order."""

    def __init__(self, program: Program, image: np.ndarray):
        self.program, self.config = program, program.config
        self.spec = self.config.accelerator
        self.engine = Engine(self.config.engine)
        self.codes = np.zeros((self.config.buffer_depth, self.config.rows), np.int64)
        self.fields = np.zeros(self.config.buffer_depth, np.int64)
        self.memory = [np.zeros(beats * self.spec.beat_bytes, np.uint8) for beats in program.sizes]
        self.memory[0][: len(program.model)] = program.model
        self.memory[1][:] = image
        self.waiting: list[tuple[int, bool]] = []
        self.saturated = 0
        self.trace: list[np.ndarray | BlockRows] = []
        for item in program.instructions:
            if isinstance(item, Weights):
                offset = item.offset
                for turn in range(item.tiles):
                    biased = bool(item.biased) and turn == 0
                    self.waiting.append((offset, biased))
                    offset += self.config.tile.beats(biased)
        for item in program.instructions:
            if isinstance(item, Load):
                self.load(item)
            elif isinstance(item, Pass):
                self.take(item)
            elif isinstance(item, Drain):
                self.drain(item)
        assert not self.waiting

    def load(self, item: Load) -> None:
        bits, block = self.config.act_bits, self.config.rows
        beats = self.spec.code_beats if item.fixed else self.spec.word_beats
        size = self.spec.beat_bytes
        for b, r, w in np.ndindex(item.blocks, item.rows, item.words):
            offset = item.offset + b * item.block_step + r * item.row_step + w * beats
            to = item.buffer + b * item.buffer_block_step + r * item.buffer_row_step + w
            to %= 2 ** self.spec.space_bits("buffer")
            data = self.memory[item.region][offset * size : (offset + beats) * size]
            assert len(data) == beats * size
            word = int.from_bytes(data.tobytes(), "little")
            for lane in range(block):
                self.codes[to, lane] = word >> (lane * bits) & ((1 << bits) - 1)
            self.fields[to] = item.exponent if item.fixed else word >> (block * bits) & 255

    def tile(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        offset, biased = self.waiting.pop(0)
        format_, size = self.config.tile, self.spec.beat_bytes
        data = self.memory[0][offset * size : (offset + format_.beats(biased)) * size]
        words = [
            int.from_bytes(data[i : i + size].tobytes(), "little")
            for i in range(0, len(data), size)
        ]

        def section(beats: list[int], bits: int) -> list[int]:
            whole = sum(beat << (k * format_.bus_bits) for k, beat in enumerate(beats))
            return [whole >> (c * bits) & ((1 << bits) - 1) for c in range(self.config.cols)]

        b, n = self.config.weight_bits, format_.row_beats
        rows = [section(words[k * n : (k + 1) * n], b) for k in range(self.config.rows)]
        codes = np.array(rows[::-1])
        codes -= (codes >> (b - 1)) << b
        words = words[self.config.rows * n :]
        scales = section(words[: format_.scale_beats], format_.scale.storage_bits)
        biases = section(words[format_.scale_beats :], 32) if biased else None
        return (
            codes.astype(np.int8),
            format_.scale.decode(scales),
            None if biases is None else self.numbers(biases),
        )

    def numbers(self, words: list[int]) -> np.ndarray:
        """Biases or limits: float32, or the upper bits of a fixed-point number."""
        form = self.config.accumulator_format
        if not isinstance(form, FixedFormat):
            return FLOAT32.decode(words)
        bits = min(form.bits, 32)
        kept = [word % 2**bits - 2**bits * (word >> (bits - 1) & 1) for word in words]
        return np.array(kept, np.float64) * 2.0 ** (form.bits - bits)

    def take(self, item: Pass) -> None:
        before, tile = None, None
        for buffer, accumulator, y, x, turns in walk(item, self.spec):
            if tile is None or turns[: item.tile_level] != before:
                before, tile = turns[: item.tile_level], self.tile()
            starts = bool(item.start) and not any(turns[: item.start_level])
            inside = 0 <= y < item.height and 0 <= x < item.width
            lanes, field = np.zeros(self.config.rows, np.int64), 0
            if inside:
                lanes, field = self.codes[buffer].copy(), self.fields[buffer]
            if item.signed:
                lanes -= (lanes >> (self.config.act_bits - 1)) << self.config.act_bits
            self.judge(item, tile, lanes, field, accumulator, starts, inside)
            self.engine.run(
                [
                    EnginePass(
                        tile[0],
                        tile[1],
                        tile[2] if starts else None,
                        lanes[None].astype(np.int16),
                        np.array([field], np.uint8),
                        np.array([accumulator]),
                        bool(item.signed),
                        bool(item.maximum),
                        np.array([not inside]),
                    )
                ]
            )

    def judge(self, item, tile, lanes, field, accumulator, starts, inside) -> None:
        """Count a pixel that saturates an accumulator."""
        unit = self.config.scale_unit
        if isinstance(unit.add, FixedAddSpec):
            sums = self.config.array.compute(tile[0], lanes[None].astype(np.int16))
            product = unit.product.compute(sums, tile[1], field, item.signed)
            before = tile[2] if starts else self.engine.accumulators[accumulator]
            over = unit.add.saturated(before, product, bool(item.maximum), not inside)
            self.saturated += bool(over.any())

    def drain(self, item: Drain) -> None:
        beats = 1 if item.form == Form.RAW else self.config.requantizer.beats_per_block
        addresses = [
            (item.accumulator + i + beat * item.beat_step)
            % 2 ** self.spec.space_bits("accumulators")
            for i in range(item.rows * item.pixels)
            for beat in range(beats)
        ]
        form = self.config.accumulator_format
        fixed = isinstance(form, FixedFormat)
        kept = self.engine.accumulators.copy()
        if item.limited:
            low, high = self.numbers([item.low, item.high])
            limited = np.minimum(np.maximum(self.engine.accumulators, low), high)
            self.engine.accumulators[:] = limited
        names: list[DrainFormat] = ["raw", "unsigned", "signed"]
        (result,) = self.engine.run([EngineDrain(np.array(addresses), names[item.form])])
        self.engine.accumulators[:] = kept
        if isinstance(result, BlockRows):
            groups = self.config.requantizer.blocks_per_beat
            fields = result.exponents[item.select :: groups].astype(np.int64)
            if fixed:  # the engine's numbers are whole ones
                fields = np.where(fields == 0, 0, fields - 127 + item.exponent)
            result = BlockRows(result.codes[item.select :: groups], fields.astype(np.uint8))
            packed = pack_words(
                result.codes, result.exponents, self.config.act_bits, self.spec.beat_bytes
            )
        else:
            packed = np.zeros((len(result), self.spec.raw_beats * self.spec.beat_bytes), np.uint8)
            bits = result.view(np.uint32) if not fixed else whole_bits(result, form)
            packed[:, : 4 * self.config.cols] = bits.view(np.uint8)
            result = np.ldexp(result, item.exponent - 127) if fixed else result
        self.trace.append(result)
        for i in range(item.rows * item.pixels):
            row, column = divmod(i, item.pixels)
            if item.to_buffer and isinstance(result, BlockRows):
                to = item.buffer + row * item.buffer_row_step + column
                to %= 2 ** self.spec.space_bits("buffer")
                self.codes[to] = result.codes[i] & ((1 << self.config.act_bits) - 1)
                self.fields[to] = result.exponents[i]
            if item.to_memory:
                beats = packed.shape[1] // self.spec.beat_bytes
                offset = (item.offset + row * item.row_step + column * beats) * self.spec.beat_bytes
                self.memory[item.region][offset : offset + packed.shape[1]] = packed[i]


def whole_bits(numbers: np.ndarray, form: FixedFormat) -> np.ndarray:
    """Fixed-point numbers in 32 bits."""
    return (numbers / 2.0 ** max(0, form.bits - 32)).astype(np.int64).astype(np.uint32)


def random_tile(rng: np.random.Generator, config: HardwareConfig, biased: bool) -> tuple:
    limit = 1 << (config.weight_bits - 1)
    form = config.tile.scale
    scales = rng.uniform(-1 if form.signed else 0, 1, config.cols) * (rng.random(config.cols) < 0.9)
    if rng.random() < 0.1:
        scales = scales * rng.choice([2.0**-120, 2.0**120])
    biases = rng.normal(size=config.cols).astype(np.float32)
    accumulators = config.accumulator_format
    if isinstance(accumulators, FixedFormat):
        bits = rng.integers(0, 1 << 32, config.cols) >> rng.integers(0, 32, config.cols)
        biases = accumulators.decode(bits)
        scales = np.ldexp(scales, int(rng.integers(0, accumulators.bits)))
    codes = rng.integers(-limit, limit, (config.rows, config.cols)).astype(np.int8)
    return codes, form.round(scales), biases if biased else None


def random_pass(rng: np.random.Generator, config: HardwareConfig) -> Pass:
    """A PASS that stays within the memories."""
    counts = rng.choice([1, 1, 2, 3], 5)

    def field(depth: int, bits: int) -> tuple[int, list[int]]:
        steps = rng.integers(-3, 4, 5)
        turns = counts - 1
        while True:
            lowest = int(np.minimum(turns * steps, 0).sum())
            highest = int(np.maximum(turns * steps, 0).sum())
            if highest - lowest < depth:
                break
            steps = np.where(rng.random(5) < 0.5, 0, steps)
        base = int(rng.integers(-lowest, depth - highest))
        return base, [int(step) % 2**bits for step in steps]

    buffer, buffer_steps = field(config.buffer_depth, 20)
    accumulator, accumulator_steps = field(config.accumulator_depth, 16)
    y_steps, x_steps = rng.integers(-2, 3, (2, 5)).tolist()
    wide = bool(rng.random() < 0.5)
    return Pass(
        buffer=buffer,
        accumulator=accumulator,
        start=int(rng.random() < 0.6),
        maximum=int(rng.random() < 0.3),
        signed=int(rng.integers(2)),
        tile_level=int(rng.integers(6)),
        start_level=int(rng.integers(6)),
        y=int(rng.integers(-2, 3)) + 100 * wide,
        x=int(rng.integers(-2, 3)) + 100 * wide,
        height=200 if wide else int(rng.integers(6)),
        width=200 if wide else int(rng.integers(6)),
        loops=tuple(
            Loop(*each)
            for each in zip(
                counts.tolist(), buffer_steps, accumulator_steps, y_steps, x_steps, strict=True
            )
        ),
    )


def random_load(rng: np.random.Generator, config: HardwareConfig, beats: dict[Region, int]) -> Load:
    spec = config.accelerator
    fixed = int(rng.integers(2))
    size = spec.code_beats if fixed else spec.word_beats
    words, rows, blocks = (int(n) for n in rng.integers(1, 4, 3))
    region = Region(int(rng.choice([Region.INPUT, Region.INPUT, Region.SCRATCH, Region.MODEL])))
    if region is Region.MODEL:
        rows = blocks = words = 1
    steps = [int(n) for n in rng.integers(0, 2 * size, 2)]
    used = (rows - 1) * steps[0] + (blocks - 1) * steps[1] + words * size
    last = config.buffer_depth - words
    row_step, block_step = (int(n) for n in rng.integers(-2, 3, 2))
    low = min(0, (rows - 1) * row_step) + min(0, (blocks - 1) * block_step)
    high = max(0, (rows - 1) * row_step) + max(0, (blocks - 1) * block_step)
    return Load(
        offset=int(rng.integers(0, beats[region] - used + 1)),
        region=region,
        buffer=int(rng.integers(-low, last - high + 1)),
        fixed=fixed,
        exponent=int(rng.choice([0, 1, 120, 127, 130, 254, 255])) if fixed else 0,
        words=words,
        rows=rows,
        blocks=blocks,
        row_step=steps[0],
        block_step=steps[1],
        buffer_row_step=row_step % 2**20,
        buffer_block_step=block_step % 2**20,
    )


def random_drain(
    rng: np.random.Generator, config: HardwareConfig, beats: dict[Region, int]
) -> dict:
    spec, requantizer = config.accelerator, config.requantizer
    whole = config.cols >= config.rows or config.rows % config.cols == 0
    form = int(rng.integers(3)) if whole else Form.RAW
    rows, pixels = (int(n) for n in rng.integers(1, 4, 2))
    count = rows * pixels
    rows_each = 1 if form == Form.RAW else requantizer.beats_per_block
    step = int(rng.integers(0, (config.accumulator_depth - count) // max(1, rows_each - 1) + 1))
    step = min(step, 6)
    highest = config.accumulator_depth - count - (rows_each - 1) * step
    size = spec.raw_beats if form == Form.RAW else spec.word_beats
    to_buffer = int(form != Form.RAW and rng.random() < 0.7)
    row_step = int(rng.integers(0, 2 * size))
    region = Region(int(rng.choice([Region.SCRATCH, Region.OUTPUT])))
    low, high = np.sort(rng.normal(size=2)).astype(np.float32).view(np.uint32).tolist()
    form_of_numbers, exponent = config.accumulator_format, 0
    if isinstance(form_of_numbers, FixedFormat):
        low, high = rng.integers(0, 1 << 32, 2).tolist()
        exponent = int(rng.integers(1, form_of_numbers.highest_field + 1))
    return {
        "exponent": exponent,
        "accumulator": int(rng.integers(0, highest + 1)),
        "beat_step": step,
        "rows": rows,
        "pixels": pixels,
        "form": form,
        "to_buffer": to_buffer,
        "to_memory": int(not to_buffer or rng.random() < 0.5),
        "limited": int(rng.random() < 0.3),
        "buffer": int(rng.integers(0, config.buffer_depth - count + 1)),
        "buffer_row_step": int(rng.integers(0, pixels + 1)),
        "select": int(rng.integers(requantizer.blocks_per_beat)) if form != Form.RAW else 0,
        "region": region,
        "offset": int(rng.integers(0, beats[region] - (rows - 1) * row_step - pixels * size + 1)),
        "row_step": row_step,
        "low": low,
        "high": high,
    }


def random_config(rng: np.random.Generator) -> HardwareConfig:
    config = HardwareConfig(
        int(rng.integers(1, 7)),
        int(rng.integers(1, 7)),
        int(rng.integers(2, 9)),
        int(rng.integers(2, 9)),
        str(rng.choice(["bf16", "fp16", "fp32", "e8m0"])),
        accumulator_depth=int(rng.integers(16, 40)),
        bus_bits=int(rng.choice([32, 64, 128])),
        buffer_depth=int(rng.integers(16, 40)),
        queue_depth=int(rng.integers(2, 5)),
    )
    if rng.random() < 0.5:
        config = replace(config, accumulator=str(rng.choice(ACCUMULATORS[1:])))
    return config


def random_program(rng: np.random.Generator, config: HardwareConfig, length: int = 10) -> Program:
    """Instructions of all kinds that touch the same few places."""
    spec = config.accelerator
    size = 40 * max(spec.raw_beats, spec.word_beats)
    builder = Builder(config, input=size, scratch=size, output=size)
    beats = {Region.MODEL: spec.instruction_beats, Region.INPUT: size}
    beats |= {Region.SCRATCH: size, Region.OUTPUT: size}
    for _ in range(length):
        kind = rng.integers(3)
        if kind == 0:
            builder.add(random_load(rng, config, beats))
        elif kind == 1:
            item = random_pass(rng, config)
            levels = item.loops[min(item.start_level, item.tile_level) : item.tile_level]
            starting = int(np.prod([loop.count for loop in levels])) if item.start else 0
            flags = [turn < starting for turn in range(item.tiles)]
            groups: list[list[tuple]] = []
            for biased in flags:
                if biased or not groups or rng.random() < 0.3:
                    groups.append([])
                groups[-1].append(random_tile(rng, config, biased))
            after = bool(rng.random() < 0.3 and len(groups) < config.queue_depth)
            if spec.serial:
                after = False
                if len(groups) > spec.weights_ahead:
                    continue  # a PASS takes nothing that is behind it
            if after:
                builder.add(item)
            if len(groups) >= config.queue_depth and not after and not spec.serial:
                builder.add(item)
                after = True
            for group in groups:
                builder.weights(group)
            if not after:
                builder.add(item)
        else:
            builder.drain(**random_drain(rng, config, beats))
    return builder.program()


def random_images(rng: np.random.Generator, program: Program, count: int) -> np.ndarray:
    size = program.sizes[Region.INPUT] * program.config.accelerator.beat_bytes
    return rng.integers(0, 256, (count, size)).astype(np.uint8)


__all__ = [
    "ONCE",
    "Builder",
    "Reference",
    "random_config",
    "random_images",
    "random_pass",
    "random_program",
    "walk",
]
