"""What starts the accelerator's runs and judges them."""

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from shiftcore.golden.registers import MAP_BITS, register
from shiftcore.golden.standalone import RunSpec
from shiftcore.hw.run_control import RunControl
from shiftcore.sim.runner import simulate
from shiftcore.sim.stream_bench import StreamJob

RUNS = 30


class Streams(wiring.Component):
    """The component with a stream for each channel of AXI; ``i_raise`` raises the interrupt, and a
    write of the last value of the script takes it back."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        widths = {"i_start": 1, "i_raise": 1, "i_b": 2, "i_r": 34}
        members = {name: In(stream.Signature(unsigned(width))) for name, width in widths.items()}  # pyright: ignore[reportArgumentType]
        widths = {"o_aw": MAP_BITS, "o_w": 36, "o_ar": MAP_BITS, "o_done": 8}
        members |= {name: Out(stream.Signature(unsigned(width))) for name, width in widths.items()}  # pyright: ignore[reportArgumentType]
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.control = control = RunControl(self.spec)
        m.submodules.done = done = SyncFIFOBuffered(width=8, depth=4)
        for name, fields in {
            "aw": (control.m_axi_awaddr,),
            "w": (control.m_axi_wdata, control.m_axi_wstrb),
            "ar": (control.m_axi_araddr,),
        }.items():
            sink = getattr(self, f"o_{name}")
            m.d.comb += [
                sink.valid.eq(getattr(control, f"m_axi_{name}valid")),
                sink.payload.eq(Cat(*fields)),
                getattr(control, f"m_axi_{name}ready").eq(sink.ready),
            ]
        for name, value in {
            "b": control.m_axi_bresp,
            "r": Cat(control.m_axi_rdata, control.m_axi_rresp),
        }.items():
            source = getattr(self, f"i_{name}")
            m.d.comb += [
                getattr(control, f"m_axi_{name}valid").eq(source.valid),
                value.eq(source.payload),
                source.ready.eq(getattr(control, f"m_axi_{name}ready")),
            ]
        interrupt = Signal()
        with m.If(self.i_raise.valid):
            m.d.sync += interrupt.eq(1)
        with m.If(control.o_done):
            m.d.sync += interrupt.eq(0)
        m.d.comb += [
            self.i_start.ready.eq(1),
            self.i_raise.ready.eq(1),
            control.i_start.eq(self.i_start.valid),
            control.i_interrupt.eq(interrupt),
            done.w_en.eq(control.o_done),
            done.w_data.eq(control.o_code),
            self.o_done.valid.eq(done.r_rdy),
            self.o_done.payload.eq(done.r_data),
            done.r_en.eq(self.o_done.ready),
        ]
        return m


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("length", [1, 7])
def test_runs(length, stall, simulator):
    rng = np.random.default_rng(length)
    offsets = rng.integers(0, 1 << MAP_BITS, length).tolist()
    values = rng.integers(0, 1 << 32, length).tolist()
    spec = RunSpec(tuple(zip(offsets, values, strict=True)))
    data, asked, codes, reads_before = [], [], [], [0]
    for _ in range(RUNS):
        status, error = rng.integers(0, 1 << 32, 2).tolist()
        reads, code = spec.compute(status, error)
        data += [status, error][: len(reads)]
        asked += reads
        codes.append(code)
        reads_before.append(len(data))
    writes = length * RUNS
    sources = {
        "i_start": [1] * RUNS,
        "i_raise": [1] * RUNS,
        "i_b": [0] * writes,
        "i_r": data,
    }
    sinks = {"o_aw": writes, "o_w": writes, "o_ar": len(data), "o_done": RUNS}
    after = {
        "i_start": {k: {"o_done": k} for k in range(1, RUNS)},
        "i_raise": {k: {"i_b": length * (k + 1)} for k in range(RUNS)},
        "i_b": {k: {"o_aw": k + 1, "o_w": k + 1} for k in range(writes)},
        "i_r": {k: {"o_ar": k + 1} for k in range(len(data))},
    }
    answer = simulate(
        Streams, spec, bench="stream_bench", job=StreamJob(sources, sinks, after, stall),
        simulator=simulator,
    )  # fmt: skip
    assert not any(answer.held.values())
    assert answer.payloads["o_aw"] == offsets * RUNS
    assert answer.payloads["o_w"] == [value | 15 << 32 for value in values] * RUNS
    assert answer.payloads["o_ar"] == asked
    assert answer.payloads["o_done"] == codes
    assert 5 < sum(code == 0 for code in codes) < RUNS - 5
    assert set(asked) == {register("STATUS").offset, register("ERROR").offset}
    cycles = {name: np.array(each) for name, each in answer.cycles.items()}
    first = cycles["o_ar"][reads_before[:-1]]
    assert (first > cycles["i_raise"]).all()
    if not stall:
        # One cycle more: the bench's interrupt is a register.
        assert set(first - cycles["i_raise"]) == {2}
        offered = cycles["o_aw"].reshape(RUNS, length)
        assert set(offered[:, 0] - cycles["i_start"]) == {2}
        confirmed = cycles["i_b"].reshape(RUNS, length)
        assert set((offered[:, 1:] - confirmed[:, :-1]).ravel()) <= {3}
        last = cycles["i_r"][np.array(reads_before[1:]) - 1]
        assert len(set(cycles["o_done"] - last)) == 1
