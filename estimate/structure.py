"""What an accelerator is made of: its units, each with the widths and memories that cost area.

A unit's cost is a sum over *terms*: how often something occurs in it, in bits or pieces, times what
one costs on the family. This file counts; what one costs is fitted (``benchmarks/calibrate.py``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..golden.config import HardwareConfig
from ..golden.fixed import FixedFormat
from ..golden.isa import ENGINES, LAYOUTS
from ..golden.registers import COUNTERS
from ..golden.requantizer import RequantizerSpec
from ..golden.scale_unit import (
    BLOCK_BITS,
    FixedProductSpec,
    ProductSpec,
    ScaleUnitSpec,
    block_ram_bits,
)
from .fabric import Fabric, Memory, Multiplication

__all__ = ["SHARED", "UNITS", "Product", "Unit", "booth_rows", "program_queue", "units"]

Terms = dict[str, float]

SHARED = frozenset(
    {
        "memory LUTs", "memory multiplexer bits", "memory output bits", "memory bits",
        "delay bits", "shift register LUTs", "soft product bits",
    }
)  # fmt: skip
"""Terms that cost the same in every unit."""


@dataclass(frozen=True)
class Product:
    """Multiplications alike, and what is around them: that costs something else beside DSP blocks,
    which take in registers and adders.

    Parameters
    ----------
    count : of them
    wanted : operands and product of each
    lut, ff : terms of what is around them, all together
    delays : of their operands; blocks may take in the last cycles
    form : which blocks these are
    """

    count: int
    wanted: Multiplication
    lut: Terms = field(default_factory=dict)
    ff: Terms = field(default_factory=dict)
    delays: list[tuple[int, int]] = field(default_factory=list)
    form: str = "block"

    INSIDE: ClassVar[int] = 2
    """cycles of an operand's delay that a block can take in, at most"""


_BLOCK = Multiplication(BLOCK_BITS, BLOCK_BITS, 2 * BLOCK_BITS, signed=True)
"""An instanced multiplier."""
_HALVES = Multiplication(8, 8, 16, signed=True)
"""Of an instanced block with two multipliers."""


@dataclass(frozen=True)
class Unit:
    """A unit of an accelerator, all its copies together.

    Parameters
    ----------
    lut, ff : terms
    memories : with how often each occurs
    products : with DSP blocks where the family has some that suit
    delays : bits without reset, and the cycles by which they are delayed
    blocks : block RAMs that are instantiated
    """

    lut: Terms
    ff: Terms
    memories: list[tuple[int, Memory]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    delays: list[tuple[int, int]] = field(default_factory=list)
    blocks: int = 0

    def mapped(self, fabric: Fabric) -> tuple[Terms, Terms, int, int]:
        """The terms of LUTs and flip-flops with those of the memories, DSP blocks, block RAMs."""
        lut, ff = dict(self.lut), dict(self.ff)
        brams = self.blocks
        for count, memory in self.memories:
            found = fabric.memory(memory)
            brams += count * found.brams
            held = count * len(memory.read) * (memory.synchronous and not found.block)
            for terms, name, amount in (
                (lut, "memory LUTs", count * found.luts),
                (lut, "memory multiplexer bits", count * found.mux_bits),
                (ff, "memory output bits", held),
                (ff, "memory bits", count * found.flip_flops),
            ):
                if amount:
                    terms[name] = terms.get(name, 0) + amount
        delays = list(self.delays)
        dsp = 0
        for product in self.products:
            blocks = fabric.dsp_blocks(product.wanted)
            dsp += product.count * blocks
            prefix = f"{product.form} " if blocks else ""
            around, registers = dict(product.lut), dict(product.ff)
            if blocks:
                inside = [(bits, min(product.INSIDE, cycles)) for bits, cycles in product.delays]
                registers["skew bits"] = sum(bits * cycles for bits, cycles in inside)
                delays += [(bits, cycles - product.INSIDE) for bits, cycles in product.delays]
            else:
                around["soft product bits"] = product.count * product.wanted.a * product.wanted.b
                delays += product.delays
            for terms, others in ((lut, around), (ff, registers)):
                for name, amount in others.items():
                    terms[prefix + name] = terms.get(prefix + name, 0) + amount
        for bits, cycles in delays:
            luts = fabric.delay_luts(cycles)
            terms, name = (lut, "shift register LUTs") if luts else (ff, "delay bits")
            terms[name] = terms.get(name, 0) + bits * (luts or max(cycles, 0))
        return lut, ff, dsp, brams


def _queue(depth: int, width: int, used: int | None = None) -> Memory:
    """The memory of a queue, whose last word is in the output register."""
    return Memory(depth - 1, width, used=None if used is None else frozenset(range(used)))


def _even(bits: int) -> int:
    """Of a carry chain, whose cells have two bits."""
    return bits + bits % 2


def booth_rows(bits: int) -> int:
    """What is added, row after row, for a product in LUTs by a signed operand of `bits`."""
    return -(-bits // 2)


def _array(config: HardwareConfig) -> Unit:
    """Processing elements and the delays at the edges of the array."""
    spec = config.array
    rows, cols, b, operand = spec.rows, spec.cols, spec.weight_bits, spec.operand_bits
    count = rows * cols
    sums = [spec.partial_sum_bits(row) for row in range(rows)]
    groups = spec.groups
    firsts = range(0, cols, groups[0])
    moved = firsts[-1]  # registers between the first and the last PEs of a row
    # Swaps are one line of delays: PEs that it reaches in the same cycle share a register.
    ff: Terms = {
        "operand bits": rows * moved * operand,
        "control bits": rows * (rows - 1) // 2 + rows * moved + rows + moved - 1,
    }
    skew = [(operand, row + 1) for row in range(rows)]
    delays = [(size * b, first) for size, first in zip(groups, firsts, strict=True) if first]
    delays += [(spec.sum_bits, above) for size in groups for above in range(1, size)]
    if spec.operand_limit or spec.dual or spec.multiplier == "dsp":
        products: list[Product] = []
        lut: Terms = {}
        for size in sorted(set(groups)):
            found = groups.count(size)
            columns = size * found
            delayed = skew if size == groups[0] else []
            if spec.dual and size == 2:
                # Weights, products and what sums fit are inside of the block, and nothing before.
                wide = columns * sum(width for width in sums if width > _HALVES.product)
                lut |= {"packed sum bits": wide} if wide else {}
                delays += [*delayed, (rows * columns * b + wide, 1)]
                # A block holds its weights by the inverse of a swap: one for each cycle in which a
                # swap reaches blocks.
                swaps: Terms = {"swap bits": rows + size * (found - 1)}
                products.append(Product(rows * found, _HALVES, swaps, form="dual"))
                continue
            wanted = Multiplication(
                spec.packed_bits(size), operand, size * spec.product_bits, signed=True
            )
            around: Terms = {
                "PEs": rows * columns,
                "sum bits": columns * sum(sums),
                "packing bits": (columns - found) * (b + 1),  # a field is a bit wider than its code
            }
            registers: Terms = {
                "PE bits": 2 * rows * found * spec.field_bits(size),
                "product bits": rows * columns * spec.product_bits,
                "sum bits": columns * sum(sums),
            }
            form = "block" if size == 1 else "packed"
            products.append(Product(rows * found, wanted, around, registers, delayed, form))
        return Unit(lut, ff, products=products, delays=delays)
    delays += skew
    lut: Terms = {"PEs": count, "sum bits": cols * sum(sums)}
    ff |= {
        "PE bits": 2 * rows * sum(map(spec.field_bits, groups)),
        "product bits": count * spec.product_bits,
        "sum bits": cols * sum(sums),
    }
    if spec.multiplier == "ecp5-ternary":
        # The chain is the sum's adder, too, and has a bit below; weights are held once more.
        lut = {"PEs": count, "ternary chain bits": cols * sum(_even(width + 1) for width in sums)}
        del ff["product bits"]
        ff["PE bits"] += rows * operand + count * b
        return Unit(lut, ff, delays=delays)
    if spec.multiplier == "ecp5-carry":
        # A chain but the last has a bit more than the operand; row 0 has no sum to add to.
        bits = (b - 2) * _even(operand + 1) + _even(operand)
        chains = count * bits + cols * sum(map(_even, sums[1:]))
        return Unit({"PEs": count, "carry chain bits": chains}, ff, delays=delays)
    # Radix-4 Booth digits: the lowest sees two bits of the code, an odd highest one too.
    digits = booth_rows(b)
    ends = 1 + (b % 2 and digits > 1)
    lut |= {
        "outer Booth bits": count * ends * (operand + 1),
        "inner Booth bits": count * (digits - ends) * (operand + 1),
        "digit adder bits": count * sum(b + operand - 1 - k for k in range(2, b, 2)),
    }
    ff["carries"] = count
    return Unit(lut, ff, delays=delays)


def _scale_units(config: HardwareConfig) -> Unit:
    """The scale units: product, adder, accumulators. What only they have costs something else with
    every pipeline, and with instanced multipliers."""
    spec, cols = config.scale_unit, config.cols
    product = spec.product
    if isinstance(product, FixedProductSpec):
        unit = _fixed_scale_units(spec, product, cols)
    else:
        unit = _float_scale_units(spec, product, cols)
    if spec.memory == "ecp5":
        # A copy for each of two readers, in slices of the words.
        slices = -(-spec.form.storage_bits // block_ram_bits(spec.depth))
        unit = replace(unit, memories=[], blocks=2 * cols * slices)
    usual = ("balanced", "lut", "dsp")
    form = [each for each in (config.pipeline, product.multiplier) if each not in usual]
    if form:
        for terms in (unit.lut, unit.ff):
            for name in set(terms) - SHARED:
                terms[", ".join([name, *form])] = terms.pop(name)
    return unit


def _float_scale_units(spec: ScaleUnitSpec, product: ProductSpec, cols: int) -> Unit:
    """Scale units with floating-point accumulators."""
    address = spec.address_bits
    magnitude, scale = product.magnitude_bits, product.scale_bits
    levels = (magnitude - 1).bit_length()
    lut: Terms = {
        "scale units": cols,
        "magnitude bits": cols * magnitude,
        "shifter bits": cols * magnitude * levels,
        "exact bits": cols * product.exact_bits,
        "rounding": cols * product.rounds,
        "address bits": cols * address,
    }
    ff: Terms = {
        "scale units": cols,
        "magnitude bits": cols * 3 * magnitude,
        "exact bits": cols * product.exact_bits,
        "scale bits": cols * 4 * (scale - 1),
        "rounding": cols * product.rounds,
        "address bits": cols * address,
    }
    read = spec.read_stage
    delays = [(cols * address, read), (cols * address, spec.write_stage - read)]
    products = []
    if scale == 1:
        pass  # a power of two
    elif product.multiplier == "ecp5-dsp":
        products.append(Product(cols, _BLOCK))
    elif product.multiplier == "dsp":
        wanted = Multiplication(magnitude, scale, product.exact_bits, signed=False)
        products.append(Product(cols, wanted))
    else:
        lut["scale Booth bits"] = cols * booth_rows(scale + 1) * (magnitude + 2)
    memory = Memory(spec.depth, 32, reads=1 if spec.shared else 2)
    return Unit(lut, ff, [(cols, memory)], products, delays)


def _fixed_scale_units(spec: ScaleUnitSpec, product: FixedProductSpec, cols: int) -> Unit:
    """The same with fixed-point accumulators."""
    bits, address, scale = product.form.bits, spec.address_bits, product.scale_bits
    shared: Terms = {
        "fixed-point units": cols,
        "fixed-point bits": cols * bits,
        "product bits": cols * product.product_bits,
        "fixed-point address bits": cols * address,
    }
    read = spec.read_stage
    delays = [(cols * address, read), (cols * address, spec.write_stage - read)]
    lut = dict(shared)
    products = []
    if scale == 1:
        pass  # a power of two
    elif product.multiplier == "ecp5-dsp":
        products.append(Product(cols, _BLOCK))
    elif product.multiplier == "dsp":
        wanted = Multiplication(product.sum_bits, scale + 8, product.product_bits, signed=True)
        products.append(Product(cols, wanted))
    else:
        lut["scale Booth bits"] = cols * booth_rows(scale + 1) * (product.sum_bits + 8)
    memory = Memory(spec.depth, bits, reads=1 if spec.shared else 2)
    return Unit(lut, shared, [(cols, memory)], products, delays)


def _requantizer(config: HardwareConfig) -> Unit:
    """Largest exponent, shift, round; the rows that wait."""
    spec = config.requantizer
    groups, lanes, m, beats = spec.blocks_per_beat, spec.lanes, spec.act_bits, spec.beats_per_block
    used, shift = groups * lanes, spec.act_bits.bit_length()
    depth = spec.waiting_rows
    assembled = (beats - 1) * lanes * m
    nodes, level = 0, lanes
    for _ in range(spec.tree_levels):
        level = -(-level // spec.tree_inputs)
        nodes += level * groups
    if isinstance(spec.form, FixedFormat):
        return _fixed_requantizer(spec, nodes)
    lut: Terms = {
        "requantizers": 1,
        "lanes": used,
        "code bits": used * m,
        "aligned bits": used * m * shift,
        "largest exponents": nodes + groups,
        "assembled bits": assembled,
    }
    ff: Terms = {
        "requantizers": 1,
        "lane bits": used * (3 * m + 8 + shift),
        "exponent bits": 8 * (used + nodes + 4 * groups),
        "output bits": groups * (spec.block * m + 8),
        "assembled bits": assembled,
        "levels": depth.bit_length(),
    }
    return Unit(lut, ff, [(1, _queue(depth, 32 * used + 2)), (1, _queue(depth, 8 * groups))])


def _fixed_requantizer(spec: RequantizerSpec, nodes: int) -> Unit:
    """The same of fixed-point rows, with so many `nodes` of the tree."""
    groups, m, bits = spec.blocks_per_beat, spec.act_bits, spec.form.storage_bits
    used, depth = groups * spec.lanes, spec.waiting_rows
    place = (bits - 1).bit_length() + 1
    shared: Terms = {
        "fixed-point requantizers": 1,
        "fixed-point lanes": used,
        "fixed-point code bits": used * m,
        "fixed-point lane bits": used * bits,
        "fixed-point node bits": (nodes + 2 * groups) * bits,
        "assembled bits": (spec.beats_per_block - 1) * spec.lanes * m,
    }
    queues = [(1, _queue(depth, bits * used + 2)), (1, _queue(depth, place * groups))]
    return Unit(dict(shared), shared, queues)


def _issue(config: HardwareConfig) -> Unit:
    """The issue stage with its look for hazards, and the wave that follows the pixels."""
    spec = config.engine
    address, operand = spec.scale_unit.address_bits, config.array.operand_bits
    window = spec.scale_unit.revisit - 1
    lut: Terms = {
        "issue stages": 1,
        "hazard bits": window * address,
        "lanes": config.rows,
        "counter bits": spec.retire_cycles.bit_length() + spec.pass_cycles.bit_length(),
    }
    ff: Terms = {
        "issue stages": 1,
        "hazard bits": window * (address + 1) + 2 * address,
        "lane bits": config.rows * (config.act_bits + operand),
        "retire stages": spec.retire_cycles,
    }
    return Unit(lut, ff)


def _loader(config: HardwareConfig) -> Unit:
    """The tile loader: codes to the array, constants to the columns."""
    spec, tile = config.engine, config.tile
    codes = config.cols * config.weight_bits
    memories = []
    chosen = 0
    scales = (tile.scale.storage_bits, spec.scale_tiles, spec.scale_unit.shared)
    biases = (32, spec.bias_tiles, False)
    for bits, tiles, block in (scales, biases):
        per_beat = tile.bus_bits // bits
        depth = max(2, -(-config.cols // per_beat) * tiles)
        # A register follows at once where a beat is one constant: a block RAM can do that.
        plain = per_beat == 1
        memory = Memory(depth, tile.bus_bits, synchronous=plain or block, old=plain, block=block)
        memories.append((1, memory))
        chosen += (min(per_beat, config.cols) - 1) * bits
    lut: Terms = {
        "loaders": 1,
        "rows": config.rows,
        "chosen bits": chosen,
        "subnormal scales": int(tile.scale.subnormals),
        "counter bits": config.cols.bit_length(),
    }
    ff: Terms = {
        "loaders": 1,
        "code bits": codes,
        "rows": 2 * config.rows,
        "constant bits": tile.scale.storage_bits + 32,
        "counter bits": config.cols.bit_length(),
    }
    return Unit(lut, ff, memories)


def _additions(constant: int) -> int:
    """Additions in a product with a constant, made of shifts."""
    return constant.bit_count() - 1


def program_queue(config: HardwareConfig) -> Memory:
    """The memory in which the beats of instructions wait."""
    spec = config.accelerator
    return _queue(2 * max(spec.burst_beats, spec.instruction_beats), spec.bus_bits)


def _stored_bits(config: HardwareConfig) -> frozenset[int]:
    """The bits of a beat of instructions that a unit reads in any of them."""
    spec = config.accelerator
    limits = () if config.clamp else ("limited", "low", "high")
    return frozenset(
        (64 * field.word + field.offset + bit) % spec.bus_bits
        for op in ENGINES
        for field in LAYOUTS[op]
        if field.name not in ("opcode", *limits)
        for bit in range(spec.field_bits(field))
    )


def _control(config: HardwareConfig) -> Unit:
    """All around the engine's parts: registers, sequencer, the four units, DMA, buffer, drain."""
    spec, engine = config.accelerator, config.engine
    bus, word = spec.bus_bits, spec.word_bits
    beats = max(spec.word_beats, spec.raw_beats)
    clamped = config.cols * config.accumulator_format.storage_bits * config.clamp
    program = program_queue(config)
    fifos = [
        (spec.weight_fifo, bus, bus),
        (spec.load_fifo, bus, bus if spec.word_beats > 1 else word),
        (spec.store_fifo, bus, bus),
    ]
    places = {
        "address bits": spec.address_bits,
        "offset bits": spec.offset_bits,
        "buffer bits": spec.space_bits("buffer"),
        "accumulator bits": spec.space_bits("accumulators"),
    }
    memories = [(1, program), *((1, _queue(*fifo)) for fifo in fifos)]
    row_bits = spec.space_bits("buffer") + (1 if spec.serial else 22)
    memories += [
        (1, Memory(spec.buffer_depth, word)),
        (1, Memory(spec.load_rows, row_bits, synchronous=False)),  # rows of LOAD
        (1, Memory(spec.weights_ahead, 21, synchronous=False)),  # instructions of WEIGHTS
        (1, Memory(spec.outstanding, 2, synchronous=False)),
        (1, Memory(spec.outstanding, 8, synchronous=False)),
        (1, Memory(spec.outstanding, 1, synchronous=False)),
    ]
    added = (
        2 * _additions(spec.word_beats) + _additions(spec.raw_beats)
        + _additions(spec.code_beats) + 2 * _additions(config.tile.beats(False))
    )  # fmt: skip
    levels = sum(depth.bit_length() for depth, *_ in [(program.depth + 1,), *fifos])
    levels += 3 * spec.outstanding.bit_length()
    if not spec.serial:
        memories.append((1, Memory(spec.stored_beats, bus, used=_stored_bits(config))))
        memories.append((1, Memory(2 * len(COUNTERS), 32)))
        levels += 4 * spec.queue_depth.bit_length()
    wave = engine.scale_unit.address_bits + 13
    lut: Terms = {
        "controllers": 1,
        "bus bits": bus,
        "word bits": word,
        "row bits": bus * (beats - 1),
        "gathered bits": bus * (spec.word_beats - 1),
        "chosen bits": word * (engine.requantizer.blocks_per_beat - 1),
        "clamps": int(config.clamp),
        "clamped bits": clamped,
        "additions": added,
        "level bits": levels,
        "lanes": config.rows * config.act_bits,
        **places,
    }
    ff: Terms = {
        "controllers": 1,
        "bus bits": bus,
        "word bits": word,
        "gathered bits": bus * (spec.word_beats - 1),
        "clamps": int(config.clamp),
        "clamped bits": clamped,
        "level bits": levels,
        "wave bits": (engine.wave_delay + config.cols) * wave,
        "play stages": engine.scale_play + engine.bias_play,
        **places,
    }
    if spec.serial:
        for terms in (lut, ff):
            for name in ("controllers", *places):
                terms[f"serial {name}"] = terms.pop(name)
    return Unit(lut, ff, memories)


UNITS: Mapping[str, Callable[[HardwareConfig], Unit]] = {
    "array": _array,
    "scale_unit": _scale_units,
    "requantizer": _requantizer,
    "issue": _issue,
    "loader": _loader,
    "control": _control,
}
"""Units by name; all copies of one count together."""


def units(config: HardwareConfig) -> dict[str, Unit]:
    """Every unit of the accelerator of `config`."""
    return {name: make(config) for name, make in UNITS.items()}
