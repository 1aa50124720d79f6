"""The WEIGHTS engine: tiles from memory to the tile loader."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import Opcode, Region
from .axi import run_beats, run_layout, times
from .instruction import instruction_layout

__all__ = ["WeightsEngine", "tile_layout"]


def tile_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A beat of a tile: ``last`` marks its last one, ``biased`` all beats of a tile with biases."""
    return data.StructLayout({"data": spec.bus_bits, "last": 1, "biased": 1})


class WeightsEngine(wiring.Component):
    """Runs WEIGHTS instructions whose tickets are there; ``tiles`` must not be 0.

    The read of an instruction, one run, is asked for while tiles of those before it still come.

    **Latency**: the run is offered one cycle after its instruction is accepted; beats pass in the
    same cycle.
    **Throughput**: a beat a cycle, and an instruction every 2 cycles, of which
    ``spec.weights_ahead`` overlap.

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
                "i": In(stream.Signature(instruction_layout(Opcode.WEIGHTS, spec))),
                "o_run": Out(stream.Signature(run_layout(spec))),
                "i_beats": In(stream.Signature(spec.bus_bits)),
                "o_tile": Out(stream.Signature(tile_layout(spec))),
                "o_busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        tile = self.spec.engine.tile
        record = data.StructLayout({"tiles": 20, "biased": 1})
        m.submodules.queue = queue = SyncFIFO(width=record.size, depth=self.spec.weights_ahead)
        head = data.View(record, queue.r_data)
        entry = data.View(record, queue.w_data)

        i, run = self.i.payload, self.o_run.payload
        accept = Signal()
        m.d.comb += [
            self.i.ready.eq(~self.o_run.valid & queue.w_rdy),
            accept.eq(self.i.valid & self.i.ready),
            queue.w_en.eq(accept),
            entry.tiles.eq(i.tiles),
            entry.biased.eq(i.biased),
            run.region.eq(Region.MODEL),
        ]
        with m.If(accept):
            m.d.sync += [
                self.o_run.valid.eq(1),
                run.offset.eq(i.offset),
                run.beats.eq(
                    run_beats(
                        self.spec,
                        times(i.tiles, tile.beats(False)) + Mux(i.biased, tile.bias_beats, 0),
                    )
                ),
            ]
        with m.Elif(self.o_run.ready):
            m.d.sync += self.o_run.valid.eq(0)

        beat = Signal(range(tile.beats(True)))
        index = Signal(20)
        biased, last, move = Signal(), Signal(), Signal()
        m.d.comb += [
            biased.eq(head.biased & ~index.any()),
            last.eq(beat == Mux(biased, tile.beats(True) - 1, tile.beats(False) - 1)),
            self.o_tile.payload.data.eq(self.i_beats.payload),
            self.o_tile.payload.last.eq(last),
            self.o_tile.payload.biased.eq(biased),
            self.o_tile.valid.eq(self.i_beats.valid & queue.r_rdy),
            self.i_beats.ready.eq(self.o_tile.ready & queue.r_rdy),
            move.eq(self.o_tile.valid & self.o_tile.ready),
            self.o_busy.eq(queue.r_rdy),
        ]
        with m.If(move):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
        with m.If(move & last):
            m.d.comb += queue.r_en.eq(index == head.tiles - 1)
            m.d.sync += index.eq(Mux(queue.r_en, 0, index + 1))
        return m
