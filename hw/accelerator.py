"""The accelerator: engine, activation buffer, the four units, DMA, sequencer and registers."""

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Module,
    Mux,
    ResetSignal,
    Signal,
)  # fmt: skip
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from ..golden.config import HardwareConfig
from ..golden.fixed import FixedFormat
from ..golden.isa import Error, Region
from ..golden.registers import configuration_hash
from .axi import control_ports, forward, read_ports, region_layout, write_ports
from .buffer import ActivationBuffer
from .drain import DrainEngine, trace_layout
from .engine import Engine
from .load import LoadEngine
from .passes import PassEngine
from .read_dma import ReadDma
from .registers import ControlRegisters
from .sequencer import Sequencer
from .serial_sequencer import SerialSequencer
from .weights import WeightsEngine
from .write_dma import WriteDma

__all__ = ["QUIET_CYCLES", "Accelerator", "accelerator_signature"]

QUIET_CYCLES = 1024
"""Cycles without any progress, and with no transaction on its way, after which a run is stuck.

More than any pipeline of the engine is deep.
"""


def accelerator_signature(config: HardwareConfig, *, trace: bool = False) -> wiring.Signature:
    """The members of :class:`Accelerator`."""
    spec = config.accelerator
    members = {
        **control_ports(),
        **read_ports(spec.bus_bits, spec.address_bits),
        **write_ports(spec.bus_bits, spec.address_bits),
        "o_interrupt": Out(1),
    }
    if trace:
        members["o_trace"] = Out(trace_layout(spec))
    return wiring.Signature(members)


class Accelerator(wiring.Component):
    """Runs programs (:mod:`shiftcore.golden.isa`) from memory.

    START resets everything but the registers, and runs the program for every image. A run ends with
    DONE or with ERROR and a code; then, and after SOFT_RESET, no transaction is left on the bus.

    Parameters
    ----------
    config : the hardware
    trace : add ``o_trace``, which shows every word that a DRAIN writes

    Members
    -------
    s_axi_*, m_axi_* : AXI4-Lite subordinate for control, AXI4 manager for memory
    o_interrupt : level, see INTERRUPT_ENABLE
    o_trace : see :func:`~shiftcore.hw.drain.trace_layout`
    """

    def __init__(self, config: HardwareConfig, *, trace: bool = False):
        self.config, self.trace = config, trace
        super().__init__(accelerator_signature(config, trace=trace))

    def elaborate(self, platform):
        m = Module()
        spec = self.config.accelerator
        m.submodules.registers = registers = ControlRegisters(spec, configuration_hash(self.config))
        forward(m, registers, self)
        m.d.comb += self.o_interrupt.eq(registers.o_interrupt)

        # Everything else is reset by START and SOFT_RESET too.
        m.domains.core = ClockDomain("core")
        reset = Signal()
        m.d.comb += [
            ClockSignal("core").eq(ClockSignal()),
            ResetSignal("core").eq(ResetSignal() | reset),
        ]

        def part(name, component):
            m.submodules[name] = DomainRenamer("core")(component)
            return component

        sequencer = part("sequencer", SerialSequencer(spec) if spec.serial else Sequencer(spec))
        load = part("load", LoadEngine(spec))
        weights = part("weights", WeightsEngine(spec))
        passes = part("passes", PassEngine(spec))
        drain = part("drain", DrainEngine(spec))
        buffer = part("buffer", ActivationBuffer(spec))
        engine = part("engine", Engine(spec.engine))
        read = part("read_dma", ReadDma(spec))
        write = part("write_dma", WriteDma(spec))
        forward(m, read, self)
        forward(m, write, self)

        streams = (
            (sequencer.o_load, load.i), (sequencer.o_weights, weights.i),
            (sequencer.o_pass, passes.i), (sequencer.o_drain, drain.i),
            (sequencer.o_run, read.i_program), (read.o_program, sequencer.i_beat),
            (load.o_run, read.i_loads), (read.o_loads, load.i_beats),
            (load.o_write, buffer.i_load),
            (weights.o_run, read.i_weights), (read.o_weights, weights.i_beats),
            (passes.o, engine.i_pixel),
            (drain.o_drain, engine.i_drain), (engine.o_raw, drain.i_raw),
            (engine.o_block, drain.i_block), (drain.o_write, buffer.i_drain),
            (drain.o_run, write.i_run), (drain.o_data, write.i),
        )  # fmt: skip
        for source, sink in streams:
            wiring.connect(m, source, sink)
        m.d.comb += [
            engine.i_tile.valid.eq(weights.o_tile.valid),
            engine.i_tile.payload.data.eq(weights.o_tile.payload.data),
            engine.i_tile.payload.last.eq(weights.o_tile.payload.last),
            weights.o_tile.ready.eq(engine.i_tile.ready),
            buffer.i_address.eq(passes.o_address),
            passes.i_word.eq(buffer.o_word),
            engine.i_limits.eq(drain.o_limits),
            drain.i_stored.eq(write.o_done),
            sequencer.i_load_completed.eq(load.o_completed),
            sequencer.i_pass_completed.eq(engine.o_retired),
            sequencer.i_drain_completed.eq(drain.o_completed),
            sequencer.i_weights_active.eq(weights.o_busy),
            sequencer.i_tiles_left.eq(weights.o_tile.valid | ~engine.o_empty),
            sequencer.i_images.eq(registers.o_images),
        ]
        if self.trace:
            m.d.comb += self.o_trace.eq(drain.o_trace)

        # Regions move on by their strides from image to image.
        regions = Signal(region_layout(spec), reset_less=True)
        m.d.comb += [
            read.i_regions.eq(regions),
            write.i_regions.eq(regions),
            sequencer.i_model_beats.eq(regions.size[Region.MODEL]),
        ]
        if spec.serial:
            m.d.comb += regions.eq(registers.o_regions)
        else:
            shift = (spec.beat_bytes - 1).bit_length()
            with m.If(sequencer.o_next_image):
                for k in range(4):
                    stride = registers.o_strides[k] << shift
                    m.d.sync += regions.base[k].eq(regions.base[k] + stride)

        moves = Cat(source.valid & source.ready for source, _ in streams)
        error = self._error(m, registers, sequencer, passes, drain, buffer, engine, read, write)
        self._control(m, registers, sequencer, read, write, regions, reset, moves, error)
        halt = self.halted
        for each in (sequencer, passes, drain, read, write):
            m.d.comb += each.i_halt.eq(halt)

        # What a halted run leaves in the units is no event of the next one.
        running = self.running
        stalled = sequencer.o_busy & ~passes.o_active & ~(passes.o.valid | ~engine.i_pixel.ready)
        events = registers.i_events
        m.d.comb += [
            events.instructions.eq(running & sequencer.o_dispatched),
            events.pixels.eq(running & engine.o_issued),
            events.stall_tile.eq(running & engine.o_starved),
            events.stall_hazard.eq(running & engine.o_hazard),
            events.stall_ticket.eq(running & stalled & sequencer.o_waiting),
            events.stall_empty.eq(running & stalled & sequencer.o_none),
            events.drain_busy.eq(running & drain.o_active),
            events.load_busy.eq(running & load.o_busy),
            events.read_beats.eq(running & read.o_beat),
            events.write_beats.eq(running & write.o_beat),
        ]
        if isinstance(spec.engine.scale_unit.form, FixedFormat):
            m.d.comb += [
                engine.i_field.eq(drain.o_field),
                events.saturated.eq(running & engine.o_saturated),
            ]
        return m

    def _error(self, m, registers, sequencer, passes, drain, buffer, engine, read, write):
        """The code of what goes wrong in this cycle, 0 if nothing does."""
        self.quiet = Signal(range(QUIET_CYCLES + 1))
        found = Signal(Error)
        causes = [
            (sequencer.o_error != Error.NONE, sequencer.o_error),
            (passes.o_buffer_range | buffer.o_range, Error.BUFFER_RANGE),
            (passes.o_accumulator_range | drain.o_accumulator_range, Error.ACCUMULATOR_RANGE),
            (read.o_memory_range | write.o_memory_range, Error.MEMORY_RANGE),
            (engine.o_mismatch, Error.TILE_MISMATCH),
            (read.o_read_failed, Error.READ_FAILED),
            (write.o_write_failed, Error.WRITE_FAILED),
            (self.quiet == QUIET_CYCLES, Error.DEADLOCK),
        ]
        if not self.config.accelerator.serial:
            cycles = Signal(32)
            with m.If(sequencer.o_busy):
                m.d.sync += cycles.eq(cycles + 1)
            with m.Else():
                m.d.sync += cycles.eq(0)
            late = registers.o_timeout.any() & (cycles >= registers.o_timeout)
            causes.append((late, Error.TIMEOUT))
        for condition, code in reversed(causes):
            with m.If(condition):
                m.d.comb += found.eq(code)
        return found

    def _control(self, m, registers, sequencer, read, write, regions, reset, moves, error):
        """The life of a run: reset, run, halt, and what becomes of it."""
        self.halted = halted = Signal()
        failing = Signal()
        code = Signal(8)
        silent = Signal()
        m.d.sync += silent.eq(~moves.any() & read.o_idle & write.o_idle)
        m.d.sync += self.quiet.eq(Mux(sequencer.o_busy & silent & ~halted, self.quiet + 1, 0))
        m.d.comb += [registers.i_error.eq(code), registers.i_busy.eq(1)]
        m.d.comb += registers.i_instruction.eq(sequencer.o_instructions)
        with m.FSM(name="state") as state:
            self.running = state.ongoing("RUN") | state.ongoing("HALT")
            with m.State("IDLE"):
                m.d.comb += registers.i_busy.eq(0)
                with m.If(registers.o_start):
                    m.next = "BEGIN"
                with m.Elif(registers.o_soft_reset):
                    m.next = "RESET"
            with m.State("BEGIN"):
                m.d.comb += reset.eq(1)
                m.d.sync += [halted.eq(0), failing.eq(0)]
                if not self.config.accelerator.serial:
                    m.d.sync += regions.eq(registers.o_regions)
                m.next = "START"
            with m.State("START"):
                with m.If(registers.o_soft_reset):
                    m.next = "RESET"
                with m.Else():
                    m.d.comb += sequencer.i_start.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(registers.o_soft_reset):
                    m.d.sync += halted.eq(1)
                    m.next = "HALT"
                with m.Elif(error != Error.NONE):
                    m.d.sync += [halted.eq(1), failing.eq(1), code.eq(error)]
                    m.next = "HALT"
                with m.Elif(sequencer.o_finished):
                    m.d.comb += registers.i_finished.eq(1)
                    m.next = "IDLE"
            with m.State("HALT"):
                with m.If(registers.o_soft_reset):
                    m.d.sync += failing.eq(0)
                with m.Elif(read.o_idle & write.o_idle):
                    m.d.comb += registers.i_failed.eq(failing)
                    with m.If(failing):
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "RESET"
            with m.State("RESET"):
                m.d.comb += reset.eq(1)
                m.d.sync += halted.eq(0)
                m.next = "IDLE"
