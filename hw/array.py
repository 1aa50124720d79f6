"""The systolic array: integer block sums."""

from functools import partial

from amaranth.hdl import Cat, Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..golden.array import ArraySpec
from .delay import delayed
from .dual import DualElements
from .library import place
from .packed import PackedElements, WeightPacker
from .pe import ProcessingElement

__all__ = ["SystolicArray"]


class SystolicArray(wiring.Component):
    """``rows`` x ``cols`` processing elements, weight-stationary, free-running.

    Activations enter on the left, row r delayed by r cycles; weights and sums run down, column c
    delayed by c cycles. The delays are inside: a pixel's lanes, and a row of weights, are presented
    in one cycle.

    A tile is loaded by ``rows`` weight rows, the last row of the tile first. Row k of them is
    presented with the lowest ``rows - k`` bits of ``i_enable`` set, so that each PE keeps the last
    code that it takes. A pixel with ``i_swap`` set is the first to see the new tile. The first
    weight row of the next tile may be presented in the same cycle, and the swap in the cycle after
    the last one: a tile is exchanged every ``rows`` cycles without a bubble.

    **Latency**: the sum of a pixel is at ``o_sums[c]`` ``spec.latency + c`` = R + 2 + c cycles
    later.
    **Throughput**: one pixel a cycle.

    Members
    -------
    i_lanes : one pixel, a signed operand per row
    i_swap : this pixel uses the tile loaded last
    i_codes : a row of the next tile, a code per column
    i_enable : one bit per row
    o_sums : one block sum per column, column c delayed by c cycles
    """

    def __init__(self, spec: ArraySpec):
        self.spec = spec
        super().__init__(
            {
                "i_lanes": In(data.ArrayLayout(signed(spec.operand_bits), spec.rows)),
                "i_swap": In(1),
                "i_codes": In(data.ArrayLayout(signed(spec.weight_bits), spec.cols)),
                "i_enable": In(spec.rows),
                "o_sums": Out(data.ArrayLayout(signed(spec.sum_bits), spec.cols)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rows, cols = self.spec.rows, self.spec.cols
        # Columns that share their products, or a block, work in the same cycle, that of the first
        # one. Each PE names what it hands to its right and lower neighbours.
        shared = DualElements if self.spec.dual else PackedElements
        sizes = self.spec.groups
        groups = list(zip(range(0, cols, sizes[0]), sizes, strict=True))
        codes: dict = {}
        for c, size in groups:
            entering = [delayed(m, self.i_codes[c + k], c, f"code_c{c + k}") for k in range(size)]
            if size == 1:
                (codes[c],) = entering
                continue
            if self.spec.dual:
                codes[c] = Cat(*entering)
                continue
            m.submodules[f"packer_{c}"] = packer = WeightPacker(self.spec, size)
            m.d.comb += [packer.i_codes[k].eq(code) for k, code in enumerate(entering)]
            codes[c] = packer.o_code
        sums: list = [None] * cols
        for r in range(rows):
            act = delayed(m, self.i_lanes[r], r + 1, f"lane_r{r}")
            swap = delayed(m, self.i_swap, r, f"swap_r{r}", reset=True)
            enable = delayed(m, self.i_enable[r], r, f"enable_r{r}", reset=True)
            for c, size in groups:
                if size == 1:
                    kind, make = "pe", partial(ProcessingElement, self.spec, r)
                else:
                    kind, make = f"pe{size}", partial(shared, self.spec, r, size)
                pe = place(m, platform, f"pe_{r}_{c}", f"{kind}_row_{r}", make)
                m.d.comb += [
                    pe.i_act.eq(act),
                    pe.i_swap.eq(swap),
                    pe.i_enable.eq(enable),
                    pe.i_code.eq(codes[c]),
                ]
                for k in range(size):
                    end = "sum" if size == 1 else f"sum_{k}"
                    if r:
                        m.d.comb += getattr(pe, f"i_{end}").eq(sums[c + k])
                    sums[c + k] = getattr(pe, f"o_{end}")
                act, swap, enable, codes[c] = pe.o_act, pe.o_swap, pe.o_enable, pe.o_code
        for c, size in groups:
            for k in range(size):
                foot = delayed(m, sums[c + k], k, f"sum_c{c + k}")
                m.d.comb += self.o_sums[c + k].eq(foot)
        return m
