"""What the sequencers share: their members, and how instructions are fetched."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import Error, Opcode, Region
from .axi import run_layout
from .field_check import FieldCheck
from .instruction import instruction_layout

__all__ = ["fetch", "sequencer_signature"]


def sequencer_signature(spec: AcceleratorSpec) -> wiring.Signature:
    """The members of :class:`~shiftcore.hw.sequencer.Sequencer` and of
    :class:`~shiftcore.hw.serial_sequencer.SerialSequencer`."""
    return wiring.Signature(
        {
            "i_start": In(1),
            "i_images": In(32),
            "i_model_beats": In(spec.offset_bits),
            "o_run": Out(stream.Signature(run_layout(spec))),
            "i_beat": In(stream.Signature(spec.bus_bits)),
            "o_load": Out(stream.Signature(instruction_layout(Opcode.LOAD, spec))),
            "o_weights": Out(stream.Signature(instruction_layout(Opcode.WEIGHTS, spec))),
            "o_pass": Out(stream.Signature(instruction_layout(Opcode.PASS, spec))),
            "o_drain": Out(stream.Signature(instruction_layout(Opcode.DRAIN, spec))),
            "i_load_completed": In(1),
            "i_pass_completed": In(1),
            "i_drain_completed": In(1),
            "i_weights_active": In(1),
            "i_tiles_left": In(1),
            "i_halt": In(1),
            "o_next_image": Out(1),
            "o_busy": Out(1),
            "o_finished": Out(1),
            "o_instructions": Out(24),
            "o_dispatched": Out(1),
            "o_waiting": Out(1),
            "o_none": Out(1),
            "o_error": Out(Error),
        }
    )


def fetch(
    m: Module, unit: wiring.Component, restart: Signal, ended: Signal
) -> tuple[FieldCheck, Signal, Value, Value]:
    """Fetch instructions ahead for `unit`, beat by beat, one at a time.

    Returns the check of the current one, whether it is complete, whether it may be taken, and
    whether more may come. Who takes it clears the second. What is wrong with it is ``o_error``.
    """
    spec = unit.spec
    beats = spec.instruction_beats
    m.submodules.check = check = FieldCheck(spec)
    ahead = 4
    offset = Signal(spec.offset_bits + 1)
    flying = Signal(range(ahead + 1))
    beat = Signal(range(beats))
    full = Signal()
    room = offset + beats <= unit.i_model_beats
    asking, ask = Signal(), Signal()
    wanted = unit.o_busy & ~ended & room & (flying != ahead) & ~asking
    m.d.comb += [
        ask.eq(wanted & ~restart & ~unit.i_halt),
        unit.o_run.valid.eq(asking & ~unit.i_halt),
        unit.o_run.payload.region.eq(Region.MODEL),
        unit.o_run.payload.offset.eq(offset),
        unit.o_run.payload.beats.eq(beats),
        unit.i_beat.ready.eq(~full | ended),
    ]
    requested = unit.o_run.valid & unit.o_run.ready
    taken = unit.i_beat.valid & unit.i_beat.ready
    arrived = taken & (beat == beats - 1)
    m.d.sync += flying.eq(flying + ask - arrived)
    m.d.sync += asking.eq(ask | (asking & ~requested))
    with m.If(requested):
        m.d.sync += offset.eq(offset + beats)
    with m.If(taken):
        m.d.sync += beat.eq(Mux(arrived, 0, beat + 1))
    with m.If(arrived & ~ended):
        m.d.sync += full.eq(1)
    with m.If(restart):
        m.d.sync += offset.eq(0)

    m.d.comb += [
        check.i_take.eq(taken),
        check.i_index.eq(beat),
        check.i_beat.eq(unit.i_beat.payload),
    ]
    fetching = Mux(ended, flying.any(), flying.any() | full | room)
    opcode = check.o_opcode
    known = Cat(opcode == op for op in Opcode).any()
    with m.If(full & ~known):
        m.d.comb += unit.o_error.eq(Error.BAD_OPCODE)
    with m.Elif(full & check.o_bad):
        m.d.comb += unit.o_error.eq(Error.BAD_FIELD)
    with m.Elif(unit.o_busy & ~ended & ~fetching):
        m.d.comb += unit.o_error.eq(Error.PROGRAM_RANGE)
    # No other error comes with an instruction that is complete.
    return check, full, full & ~unit.i_halt & known & ~check.o_bad, fetching
