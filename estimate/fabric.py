"""What FPGA families make memories and multipliers of: block RAMs and DSP blocks, exactly.

The rules are those of yosys: its ``memory_libmap`` gives every shape that a RAM cell can take a
cost and takes the cheapest one; its ``memory_bram``, on Intel, takes the shape of which the most is
used; ``mul2dsp`` cuts products into blocks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FABRICS", "Fabric", "Mapped", "Memory", "Multiplication", "Multiplier", "Ram"]


@dataclass(frozen=True)
class Memory:
    """One write port and `reads` read ports; `synchronous` ones take a cycle.

    What a read returns in the cycle of a write to its address does not matter, unless it must be
    what was there before (`old`). Of the bits that are read only those at `used` go anywhere, all
    by default; cells of others are dropped when all is mapped. A `block` is in block RAM however
    small it is.
    """

    depth: int
    width: int
    reads: int = 1
    synchronous: bool = True
    used: frozenset[int] | None = None
    old: bool = False
    block: bool = False

    @property
    def read(self) -> frozenset[int]:
        """The bits that go anywhere."""
        return frozenset(range(self.width)) if self.used is None else self.used


@dataclass(frozen=True)
class Ram:
    """A RAM cell.

    Parameters
    ----------
    block : whether it is a block RAM; its reads are synchronous
    address_bits : at the first of `widths`; one less for each width that follows
    widths : of a word
    cost, scaled : of a cell, and the part of it that counts by the share of the cell that is used
    first : position of the narrowest width that its write port takes
    byte : bits that are written together; parts of a word begin at multiples of it; 0 for all
    old : whether a read beside a write of its address returns what was there
    brams, luts : what it takes
    """

    block: bool
    address_bits: int
    widths: tuple[int, ...]
    cost: int
    scaled: int = 0
    first: int = 0
    byte: int = 0
    old: bool = False
    brams: int = 0
    luts: int = 0

    def mapped(self, memory: "Memory", position: int) -> tuple[float, "Mapped"]:
        """What `memory` costs, and is, in cells with the width at `position`."""
        width = self.widths[position]
        slices = -(-memory.depth // (1 << (self.address_bits - position)))
        byte = self.byte if 0 < self.byte <= width else width
        padded = -(-memory.width // byte) * byte
        cells = -(-slices * padded // width) * memory.reads
        muxes = (slices - 1) * memory.width * memory.reads
        cost = (self.cost - self.scaled) * cells
        cost += self.scaled * slices * memory.width * memory.reads / width
        cost += (muxes + (slices if slices > 1 else 0)) / 2 + 2 * memory.reads
        if memory.old and self.block and not self.old:
            cost += 6 + 6 * memory.reads  # registers and multiplexers around it
        kept = {(part * padded + bit) // width for part in range(slices) for bit in memory.read}
        count = memory.reads * len(kept)
        return cost, Mapped(count * self.brams, count * self.luts, muxes, 0, self.block)


@dataclass(frozen=True)
class Mapped:
    """A memory in RAM cells, or in flip-flops.

    Parameters
    ----------
    brams, luts : of the cells
    mux_bits : inputs of multiplexers behind the cells beyond one for each bit that a port reads
    flip_flops : bits stored in flip-flops
    block : whether it is in block RAMs
    """

    brams: int = 0
    luts: int = 0
    mux_bits: int = 0
    flip_flops: int = 0
    block: bool = False


@dataclass(frozen=True)
class Multiplication:
    """Widths of the operands and of the part of the product that is used."""

    a: int
    b: int
    product: int
    signed: bool


@dataclass(frozen=True)
class Multiplier:
    """A kind of DSP block.

    Parameters
    ----------
    widths : of its operands
    least : bits of the operands for which it is taken
    partial : width of the first operand where a multiplication takes several; by default its own
    blocks : what it counts
    """

    widths: tuple[int, int]
    least: tuple[int, int] = (2, 2)
    partial: int | None = None
    blocks: int = 1


@dataclass(frozen=True)
class Fabric:
    """A family's RAM cells and multipliers.

    Parameters
    ----------
    rams : in the order in which yosys tries them
    by_efficiency : whether memories are mapped by ``memory_bram``
    multipliers : in the order in which yosys tries them
    least_product : bits of the smallest product for which a block is taken
    signed_only : the blocks multiply signed numbers
    shift_registers : bits of a LUT that serves as a shift register, which takes delays of three
        cycles or more; 0 if there are none
    """

    rams: tuple[Ram, ...]
    multipliers: tuple[Multiplier, ...]
    least_product: int = 0
    signed_only: bool = False
    shift_registers: int = 0
    by_efficiency: bool = False

    def memory(self, memory: Memory) -> Mapped:
        """What yosys makes of `memory`: LUTs, block RAMs, or flip-flops."""
        if memory.depth * memory.width == 0:
            return Mapped()
        return self._efficient(memory) if self.by_efficiency else self._cheapest(memory)

    def _cheapest(self, memory: Memory) -> Mapped:
        """By the rules of ``memory_libmap``."""
        bits = memory.depth * memory.width
        best, least = self._flip_flops(memory), float(bits)
        if memory.block:
            least = math.inf
        for block in (False, True):
            if (block and not memory.synchronous) or (memory.block and not block):
                continue
            found = [
                ram.mapped(memory, position)
                for ram in self.rams
                if ram.block == block
                for position in range(ram.first, len(ram.widths))
            ]
            cost, mapped = min(found, key=lambda each: each[0], default=(least, best))
            if cost < least:
                best, least = mapped, float(int(cost))
        return best

    def _efficient(self, memory: Memory) -> Mapped:
        """By the rules of ``memory_bram``: a twentieth of the cells must be used, even of a memory
        that shall be in block RAM."""
        bits = memory.depth * memory.width
        for ram in self.rams:
            if ram.block and not memory.synchronous:
                continue
            found = []
            for position, width in enumerate(ram.widths):
                words = 1 << (ram.address_bits - position)
                slices = -(-memory.depth // words)
                cells = slices * -(-memory.width // width)
                efficiency = 100 * bits // (cells * width * words * memory.reads)
                if efficiency >= 5:
                    found.append((efficiency, -cells, -slices, width))
            if found:
                _, _, slices, width = max(found, key=lambda each: each[:3])
                count = -slices * len({bit // width for bit in memory.read}) * memory.reads
                muxes = (-slices - 1) * memory.width * memory.reads
                return Mapped(count * ram.brams, count * ram.luts, muxes, 0, ram.block)
        return self._flip_flops(memory)

    @staticmethod
    def _flip_flops(memory: Memory) -> Mapped:
        """Each read port has its own multiplexers."""
        bits = memory.depth * memory.width
        return Mapped(mux_bits=memory.reads * (bits - memory.width), flip_flops=bits)

    def delay_luts(self, cycles: int) -> int:
        """LUTs that delay a bit as a shift register; 0 where flip-flops do."""
        if not self.shift_registers or cycles < 3:
            return 0
        return -(-cycles // self.shift_registers)

    def dsp_blocks(self, wanted: Multiplication) -> int:
        """DSP blocks of one multiplication; parts that are too narrow are made of LUTs."""
        return self._blocks(wanted, self.multipliers)

    def _blocks(self, wanted: Multiplication, kinds: tuple[Multiplier, ...]) -> int:
        """By the rules of ``mul2dsp``, kind after kind: the larger operand comes first, and blocks
        that are signed only take a bit more of operands that are not."""
        if not kinds:
            return 0
        b, a = sorted((wanted.a, wanted.b))
        if self._too_small(a, b, wanted.product, kinds[0]):
            return self._blocks(wanted, kinds[1:])
        extra = int(self.signed_only and not wanted.signed)
        return self._parts(a + extra, b + extra, wanted.product, kinds)

    def _too_small(self, a: int, b: int, product: int, kind: Multiplier) -> bool:
        return a < kind.least[0] or b < kind.least[1] or product < self.least_product

    def _parts(self, a: int, b: int, product: int, kinds: tuple[Multiplier, ...]) -> int:
        """A multiplication in parts for the first of `kinds`. Their operands keep their order; what
        is too small for it is a multiplication for the next kind."""
        kind = kinds[0]
        if self._too_small(a, b, product, kind):
            return self._blocks(Multiplication(a, b, product, signed=True), kinds[1:])
        partial = kind.partial or kind.widths[0]
        if a > kind.widths[0]:
            count, rest = self._cut(a, kind.widths[0], partial)
            part = self._parts(partial, b, min(product, partial + b), kinds)
            return count * part + self._parts(rest, b, rest + b, kinds)
        if b > kind.widths[1]:
            count, rest = self._cut(b, kind.widths[1], kind.widths[1])
            part = self._parts(a, kind.widths[1], min(product, a + kind.widths[1]), kinds)
            return count * part + self._parts(a, rest, a + rest, kinds)
        return kind.blocks

    def _cut(self, width: int, most: int, partial: int) -> tuple[int, int]:
        """How many parts are cut off an operand, and what is left of it."""
        step = partial - self.signed_only
        count = -(-(width - most) // step)
        return count, width - count * step


_XILINX_BLOCKS = (
    Ram(True, 14, (1, 2, 4, 9, 18), 129, byte=9, old=True, brams=1),
    Ram(True, 15, (1, 2, 4, 9, 18, 36), 257, byte=9, old=True, brams=2),
    Ram(True, 16, (1,), 513, byte=9, old=True, brams=4),
    Ram(True, 14, (1, 2, 4, 9, 18, 36), 129, byte=9, old=True, brams=1),
    Ram(True, 15, (1, 2, 4, 9, 18, 36, 72), 257, byte=9, old=True, brams=2),
)

FABRICS: Mapping[str, Fabric] = {
    "ecp5": Fabric(
        rams=(
            Ram(False, 4, (4,), 4, luts=6),
            Ram(True, 14, (1, 2, 4, 9, 18), 128, byte=9, brams=1),
            Ram(True, 14, (1, 2, 4, 9, 18, 36), 128, first=3, byte=9, brams=1),
        ),
        multipliers=(Multiplier((18, 18)),),
    ),
    "ice40": Fabric(
        rams=(Ram(True, 11, (2, 4, 8, 16), 64, byte=1, brams=1),),
        multipliers=(Multiplier((16, 16)),),
        least_product=11,
    ),
    "gowin": Fabric(
        rams=(
            Ram(False, 4, (4,), 4, scaled=4, luts=4),
            Ram(True, 14, (1, 2, 4, 9, 18, 36), 128, byte=9, brams=1),
        ),
        multipliers=(
            Multiplier((36, 36), least=(22, 22), blocks=4),
            Multiplier((18, 18), least=(10, 4)),
            Multiplier((9, 9), least=(4, 4)),
        ),
    ),
    "xilinx7": Fabric(
        rams=(
            Ram(False, 5, (4,), 8, scaled=8, luts=4),
            Ram(False, 6, (2,), 8, scaled=8, luts=4),
            Ram(False, 7, (1,), 8, scaled=8, luts=4),
            Ram(False, 5, (6,), 8, scaled=7, luts=4),
            Ram(False, 6, (3,), 8, scaled=7, luts=4),
            *_XILINX_BLOCKS,
        ),
        multipliers=(Multiplier((25, 18), partial=18),),
        least_product=9,
        signed_only=True,
        shift_registers=32,
    ),
    "xcup": Fabric(
        rams=(
            Ram(False, 5, (8,), 16, scaled=16, luts=8),
            Ram(False, 6, (4,), 16, scaled=16, luts=8),
            Ram(False, 7, (2,), 16, scaled=16, luts=8),
            Ram(False, 8, (1,), 16, scaled=16, luts=8),
            Ram(False, 5, (14,), 16, scaled=16, luts=8),
            Ram(False, 6, (7,), 16, scaled=16, luts=8),
            *_XILINX_BLOCKS,
        ),
        multipliers=(Multiplier((27, 18), partial=18),),
        least_product=9,
        signed_only=True,
        shift_registers=32,
    ),
    "cyclonev": Fabric(
        # MLABs cannot hold the initial values that all memories of the gateware have.
        rams=(Ram(True, 13, (1, 2, 5, 10, 20, 40), 0, brams=1),),
        multipliers=(
            Multiplier((27, 27), least=(19, 4)),
            Multiplier((18, 18), least=(10, 4)),
            Multiplier((9, 9), least=(4, 4)),
        ),
        by_efficiency=True,
    ),
}
"""By family, see ``toolchain/devices.py``."""
