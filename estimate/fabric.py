"""What FPGA families make memories and multipliers of: block RAMs and DSP blocks, exactly.

The rules are those of yosys (``memory_libmap`` with the family's library, ``mul2dsp``): every shape
that a RAM cell can take has a cost, and the cheapest one is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FABRICS", "Fabric", "Mapped", "Memory", "Multiplication", "Ram"]


@dataclass(frozen=True)
class Memory:
    """One write port and `reads` read ports; `synchronous` ones take a cycle.

    What a read returns in the cycle of a write to its address does not matter. Of the bits that are
    read only the lowest `used` go anywhere; cells of others are dropped when all is mapped.
    """

    depth: int
    width: int
    reads: int = 1
    synchronous: bool = True
    used: int | None = None


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
    ports : read ports of a cell
    brams, luts : what it takes
    """

    block: bool
    address_bits: int
    widths: tuple[int, ...]
    cost: int
    scaled: int = 0
    first: int = 0
    ports: int = 1
    brams: int = 0
    luts: int = 0


@dataclass(frozen=True)
class Mapped:
    """A memory in RAM cells, or in flip-flops.

    Parameters
    ----------
    brams, luts : of the cells
    mux_bits : inputs of multiplexers behind the cells beyond one for each bit of the word
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
class Fabric:
    """A family's RAM cells and multipliers.

    Parameters
    ----------
    rams : in the order in which yosys tries them
    multiplier : widths of the operands of a DSP block, the larger first
    partial : width of the larger one where a multiplication takes several blocks
    signed_only : the blocks multiply signed numbers
    least_product : bits of the smallest product for which a block is taken
    shift_registers : bits of a LUT that serves as a shift register, which takes delays of three
        cycles or more; 0 if there are none
    """

    rams: tuple[Ram, ...]
    multiplier: tuple[int, int]
    partial: int
    signed_only: bool = False
    least_product: int = 0
    shift_registers: int = 0

    def memory(self, memory: Memory) -> Mapped:
        """The cheapest way to make `memory`."""
        bits = memory.depth * memory.width
        best, least = Mapped(mux_bits=bits - memory.width, flip_flops=bits), float(bits)
        if bits == 0:
            return Mapped()
        found = False
        for ram in self.rams:
            if ram.block and not memory.synchronous:
                continue
            for position in range(ram.first, len(ram.widths)):
                slices = -(-memory.depth // (1 << (ram.address_bits - position)))
                width = ram.widths[position]
                copies = -(-memory.reads // ram.ports)
                cells = -(-slices * memory.width // width) * copies
                muxes = (slices - 1) * memory.width * memory.reads
                cost = (ram.cost - ram.scaled) * cells
                cost += ram.scaled * slices * memory.width // width * copies
                cost += (muxes + (slices if slices > 1 else 0)) / 2
                cost += 2 * memory.reads
                if not found or cost < least:
                    found, least = True, cost
                    kept = copies * len(
                        {
                            (part * memory.width + bit) // width
                            for part in range(slices)
                            for bit in range(memory.width if memory.used is None else memory.used)
                        }
                    )
                    best = Mapped(kept * ram.brams, kept * ram.luts, muxes, 0, ram.block)
        return best

    def delay_luts(self, cycles: int) -> int:
        """LUTs that delay a bit as a shift register; 0 where flip-flops do."""
        if not self.shift_registers or cycles < 3:
            return 0
        return -(-cycles // self.shift_registers)

    def dsp_blocks(self, wanted: Multiplication) -> int:
        """DSP blocks of one multiplication; parts narrower than two bits are made of LUTs."""
        widths = sorted((wanted.a, wanted.b), reverse=True)
        if min(widths) < 2 or wanted.product < self.least_product:
            return 0
        extra = int(self.signed_only and not wanted.signed)
        larger, smaller = (width + extra for width in widths)
        return len(self._parts(larger, self.multiplier[0], self.partial)) * len(
            self._parts(smaller, self.multiplier[1], self.multiplier[1])
        )

    def _parts(self, width: int, most: int, partial: int) -> list[int]:
        """The parts of an operand that go to blocks, in bits."""
        if width <= most:
            return [width]
        step = partial - self.signed_only
        whole = -(-(width - most) // step)
        rest = width - whole * step
        return [step] * whole + ([rest] if rest >= 2 else [])


FABRICS: Mapping[str, Fabric] = {
    "ecp5": Fabric(
        rams=(
            Ram(False, 4, (4,), 4, luts=6),
            Ram(True, 14, (1, 2, 4, 9, 18), 128, brams=1),
            Ram(True, 14, (1, 2, 4, 9, 18, 36), 128, first=3, brams=1),
        ),
        multiplier=(18, 18),
        partial=18,
    ),
    "ice40": Fabric(
        rams=(Ram(True, 11, (2, 4, 8, 16), 64, brams=1),),
        multiplier=(16, 16),
        partial=16,
        least_product=11,
    ),
    "xilinx7": Fabric(
        rams=(
            Ram(False, 5, (6,), 8, scaled=7, luts=4),
            Ram(False, 6, (3,), 8, scaled=7, luts=4),
            Ram(True, 14, (1, 2, 4, 9, 18, 36), 129, first=3, brams=1),
            Ram(True, 15, (1, 2, 4, 9, 18, 36, 72), 257, first=3, brams=2),
        ),
        multiplier=(25, 18),
        partial=18,
        signed_only=True,
        least_product=9,
        shift_registers=32,
    ),
}
"""By family, see ``toolchain/devices.py``."""
