"""The control registers, an AXI4-Lite subordinate."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import ISA_VERSION, Region
from ..golden.registers import COUNTERS, ID, MAP_BITS, REGISTERS, implemented, register
from .axi import OKAY, SLVERR, control_ports, region_layout
from .counters import CounterBank

__all__ = ["ControlRegisters", "events_layout"]


def events_layout() -> data.StructLayout:
    """For each counter but ``cycles`` whether it counts in this cycle; the names are lower case."""
    return data.StructLayout({name.lower(): 1 for name in list(COUNTERS)[1:]})


class ControlRegisters(wiring.Component):
    """The registers of :data:`shiftcore.golden.registers.REGISTERS`, as far as they are
    :func:`~shiftcore.golden.registers.implemented`; under serial control a counter of cycles is all
    that counts.

    Address and data of a write may come in any order. An address where no register is answers
    SLVERR. The component is reset with the bus, and not by ``o_soft_reset``.

    **Latency**: a response is valid 2 cycles after the address, and the data of a write, came in;
    that of the low half of a counter ``2 * len(COUNTERS)`` cycles later.

    Parameters
    ----------
    spec : widths of addresses
    configuration_hash : see :func:`shiftcore.golden.registers.configuration_hash`
    first_count : what counters count from; only tests of the carry set it

    Members
    -------
    s_axi_* : see :func:`~shiftcore.hw.axi.control_ports`
    o_start, o_soft_reset : pulses; no start while ``i_busy``
    o_images : images of a run, at least 1
    o_timeout : cycles, 0 for none
    o_regions : see :func:`~shiftcore.hw.axi.region_layout`; of the first image
    o_strides : from image to image, in beats, indexed by region
    o_interrupt : level
    i_busy : a run, or the reset after one, is under way; counted in CYCLES
    i_finished : the run ended well (pulse)
    i_failed, i_error, i_instruction : the run halted (pulse), why, and after how many instructions;
        of the pulses after a start only the first counts
    i_events : see :func:`events_layout`; counted a cycle later, as ``i_busy`` is
    """

    def __init__(self, spec: AcceleratorSpec, configuration_hash: int, first_count: int = 0):
        self.spec, self.first_count = spec, first_count
        self.configuration_hash = configuration_hash
        super().__init__(
            {
                **control_ports(),
                "o_start": Out(1),
                "o_soft_reset": Out(1),
                "o_images": Out(32),
                "o_timeout": Out(32),
                "o_regions": Out(region_layout(spec)),
                "o_strides": Out(data.ArrayLayout(spec.offset_bits, 4)),
                "o_interrupt": Out(1),
                "i_busy": In(1),
                "i_finished": In(1),
                "i_failed": In(1),
                "i_error": In(8),
                "i_instruction": In(24),
                "i_events": In(events_layout()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        values = {}
        for each in REGISTERS:
            bits = implemented(each, self.spec).bit_length()
            values[each.name] = Signal(bits, name=each.name.lower()) if bits else Const(0, 0)
        command = self._write(m, values)
        if self.spec.serial:
            self._read(m, values, None)
            cycles = values["CYCLES_LO"]
            m.d.sync += cycles.eq(Mux(self.o_start, 0, cycles + self.i_busy))
        else:
            m.submodules.counters = counters = CounterBank(len(COUNTERS), self.first_count)
            self._read(m, values, counters)
            # A cycle late: what counts is decided in it.
            m.d.sync += counters.i_events.eq(Cat(self.i_busy, self.i_events.as_value()))
            m.d.comb += counters.i_clear.eq(self.o_start)
        m.d.comb += [
            values["ID"].eq(ID),
            values["ISA_VERSION"].eq(ISA_VERSION),
            values["CONFIG_HASH"].eq(self.configuration_hash),
            self.o_images.eq(values["IMAGES"] | ~values["IMAGES"].any()),
            self.o_timeout.eq(values["TIMEOUT"]),
        ]
        for region in Region:
            low, high, size, stride = (
                values[f"{region.name}_{name}"] for name in ("BASE_LO", "BASE_HI", "SIZE", "STRIDE")
            )
            m.d.comb += [
                self.o_regions.base[region].eq(Cat(low, high)),
                self.o_regions.size[region].eq(size),
                self.o_strides[region].eq(stride),
            ]

        def commanded(name: str) -> Value:
            return command[register("CONTROL").field(name).offset]

        reset = commanded("SOFT_RESET")
        start = commanded("START") & ~reset & ~self.i_busy & ~self.o_start
        m.d.sync += [self.o_start.eq(start), self.o_soft_reset.eq(reset)]
        running, done, failed, interrupt = Signal(), Signal(), Signal(), Signal()
        code, instruction = Signal(8), Signal(24)
        enable = values["INTERRUPT_ENABLE"]
        with m.If(commanded("CLEAR_INTERRUPT")):
            m.d.sync += interrupt.eq(0)
        with m.If(start | reset):
            m.d.sync += [
                running.eq(start),
                done.eq(0),
                failed.eq(0),
                code.eq(0),
                instruction.eq(0),
            ]
        with m.Elif(running & self.i_failed):
            m.d.sync += [
                running.eq(0),
                failed.eq(1),
                code.eq(self.i_error),
                instruction.eq(self.i_instruction),
            ]
            with m.If(enable & register("INTERRUPT_ENABLE").field("ERROR").mask):
                m.d.sync += interrupt.eq(1)
        with m.Elif(running & self.i_finished):
            m.d.sync += [running.eq(0), done.eq(1)]
            with m.If(enable & register("INTERRUPT_ENABLE").field("DONE").mask):
                m.d.sync += interrupt.eq(1)
        # A command counts from the cycle after it on, in which ``i_busy`` does not show it yet.
        busy = self.i_busy | self.o_start | self.o_soft_reset
        status = {"BUSY": busy, "DONE": done, "ERROR": failed, "INTERRUPT": interrupt}
        error = {"CODE": code, "INSTRUCTION": instruction}
        for name, parts in (("STATUS", status), ("ERROR", error)):
            for part, value in parts.items():
                field = register(name).field(part)
                m.d.comb += values[name][field.offset :][: field.bits].eq(value)
        m.d.comb += self.o_interrupt.eq(interrupt)
        return m

    def _write(self, m: Module, values: dict[str, Signal]) -> Value:
        """The write channels. Returns the bits written to CONTROL in this cycle."""
        address, data_in, strobe = Signal(MAP_BITS), Signal(32), Signal(4)
        addressed, given, write = Signal(), Signal(), Signal()
        m.d.comb += [
            self.s_axi_awready.eq(~addressed),
            self.s_axi_wready.eq(~given),
            write.eq(addressed & given & (~self.s_axi_bvalid | self.s_axi_bready)),
        ]
        with m.If(self.s_axi_awvalid & self.s_axi_awready):
            m.d.sync += [addressed.eq(1), address.eq(self.s_axi_awaddr)]
        with m.If(self.s_axi_wvalid & self.s_axi_wready):
            m.d.sync += [given.eq(1), data_in.eq(self.s_axi_wdata), strobe.eq(self.s_axi_wstrb)]
        with m.If(self.s_axi_bready):
            m.d.sync += self.s_axi_bvalid.eq(0)

        bits = Signal(32)
        command = Signal(32)
        m.d.comb += bits.eq(Cat(bit.replicate(8) for bit in strobe))
        with m.If(write):
            m.d.sync += [
                addressed.eq(0),
                given.eq(0),
                self.s_axi_bvalid.eq(1),
                self.s_axi_bresp.eq(SLVERR),
            ]
            with m.Switch(address[2:]):
                for each in REGISTERS:
                    with m.Case(each.offset >> 2):
                        m.d.sync += self.s_axi_bresp.eq(OKAY)
                        if each.access == "rw":
                            value = values[each.name]
                            given_bits = data_in & implemented(each, self.spec)
                            for byte in range(-(-len(value) // 8)):
                                with m.If(strobe[byte]):
                                    given_byte = given_bits.word_select(byte, 8)
                                    m.d.sync += value.word_select(byte, 8).eq(given_byte)
                        elif each.access == "wo":
                            m.d.comb += command.eq(data_in & bits & each.mask)
        return command

    def _read(self, m: Module, values: dict[str, Signal], counters: CounterBank | None) -> None:
        """The read channels."""
        address = Signal(MAP_BITS)
        addressed, free, read = Signal(), Signal(), Signal()
        m.d.comb += [
            self.s_axi_arready.eq(~addressed),
            free.eq(addressed & (~self.s_axi_rvalid | self.s_axi_rready)),
        ]
        with m.If(self.s_axi_arvalid & self.s_axi_arready):
            m.d.sync += [addressed.eq(1), address.eq(self.s_axi_araddr)]
        with m.If(self.s_axi_rready):
            m.d.sync += self.s_axi_rvalid.eq(0)

        # Counters are all that is behind the first half of a small map. Before them a tree of
        # multiplexers, holes included, takes half the LUTs of a Switch.
        begin = register(f"{next(iter(COUNTERS))}_LO").offset >> 2
        words = {
            each.offset >> 2: Cat(values[each.name], Const(0, 32 - len(values[each.name])))
            for each in REGISTERS
            if each.offset >> 2 < begin
        }
        index, behind = address[2:][: exact_log2(begin)], address[2:][exact_log2(begin) :]
        present = sum(1 << word for word in words)
        found = Cat(words.get(word, Const(0, 32)) for word in range(begin))
        counted, known = Signal(), Signal()
        m.d.comb += [
            counted.eq((behind == 1) & (index < 2 * len(COUNTERS))),
            known.eq((~behind.any() & Const(present, begin).bit_select(index, 1)) | counted),
        ]
        if counters is None:
            m.d.comb += read.eq(free)
            count = Mux(index.any(), 0, values["CYCLES_LO"])
        else:
            m.d.comb += [
                counters.i_which.eq(index[1:]),
                counters.i_read.eq(free & counted & ~index[0]),
                read.eq(free & (~counters.i_read | counters.o_done)),
            ]
            count = counters.o_high
        with m.If(read):
            m.d.sync += [
                addressed.eq(0),
                self.s_axi_rvalid.eq(1),
                self.s_axi_rresp.eq(Mux(known, OKAY, SLVERR)),
            ]
        inside = Mux(counted, count, found.word_select(index, 32))
        answer = self.s_axi_rdata.eq(Mux(known, inside, 0))
        if counters is None:
            with m.If(read):
                m.d.sync += answer
        else:
            with m.If(counters.o_given):
                m.d.sync += self.s_axi_rdata.eq(counters.o_low)
            with m.Elif(read & ~counters.i_read):
                m.d.sync += answer
