"""The WEIGHTS engine: tiles from memory to the tile loader."""

from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import Opcode
from .axi import run_layout
from .instruction import instruction_layout

__all__ = ["WeightsEngine", "tile_layout"]


def tile_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A beat of a tile: ``last`` marks its last one, ``biased`` all beats of a tile with biases."""
    return data.StructLayout({"data": spec.bus_bits, "last": 1, "biased": 1})


class WeightsEngine(wiring.Component):
    """Runs WEIGHTS instructions whose tickets are there; ``tiles`` must not be 0.

    The read of an instruction, one run, is asked for while tiles of those before it still come.

    Members
    -------
    i : instructions
    o_run, i_beats : to and from memory
    o_tile : see :func:`tile_layout`
    o_busy : tiles of an instruction have not left
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(Opcode.WEIGHTS))),
                "o_run": Out(stream.Signature(run_layout())),
                "i_beats": In(stream.Signature(spec.bus_bits)),
                "o_tile": Out(stream.Signature(tile_layout(spec))),
                "o_busy": Out(1),
            }
        )

    def elaborate(self, platform):
        raise NotImplementedError
