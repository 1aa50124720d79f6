"""The memory in block RAM: bursts, beats beyond it, and the door."""

from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from shiftcore.golden.accelerator import ADDRESS_BITS
from shiftcore.golden.block_memory import BlockMemorySpec
from shiftcore.hw.block_memory import BlockMemory
from shiftcore.sim.runner import simulate
from shiftcore.sim.stream_bench import StreamJob

OKAY, SLVERR = 0, 2


class Streams(wiring.Component):
    """The memory with a stream for each channel of AXI and for both ways through the door."""

    def __init__(self, spec: BlockMemorySpec):
        self.spec = spec
        bits, beat = spec.bus_bits, spec.address_bits
        widths = {"i_ar": ADDRESS_BITS + 8, "i_aw": ADDRESS_BITS + 8, "i_w": bits + 1}
        widths |= {"i_read": beat, "i_write": beat + bits}
        members = {name: In(stream.Signature(unsigned(width))) for name, width in widths.items()}  # pyright: ignore[reportArgumentType]
        widths = {"o_r": bits + 3, "o_b": 2, "o_read": bits}
        members |= {name: Out(stream.Signature(unsigned(width))) for name, width in widths.items()}  # pyright: ignore[reportArgumentType]
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = BlockMemory(self.spec)
        m.submodules.found = found = SyncFIFOBuffered(width=self.spec.bus_bits, depth=64)
        channels = {
            "ar": (memory.s_axi_araddr, memory.s_axi_arlen),
            "aw": (memory.s_axi_awaddr, memory.s_axi_awlen),
            "w": (memory.s_axi_wdata, memory.s_axi_wlast),
        }
        for name, fields in channels.items():
            source = getattr(self, f"i_{name}")
            m.d.comb += [
                Cat(*fields).eq(source.payload),
                getattr(memory, f"s_axi_{name}valid").eq(source.valid),
                source.ready.eq(getattr(memory, f"s_axi_{name}ready")),
            ]
        # Icarus does not know what is read where there is no memory.
        known = Mux(memory.s_axi_rresp == OKAY, memory.s_axi_rdata, 0)
        replies = {
            "r": Cat(known, memory.s_axi_rresp, memory.s_axi_rlast),
            "b": memory.s_axi_bresp,
        }
        for name, value in replies.items():
            sink = getattr(self, f"o_{name}")
            m.d.comb += [
                sink.payload.eq(value),
                sink.valid.eq(getattr(memory, f"s_axi_{name}valid")),
                getattr(memory, f"s_axi_{name}ready").eq(sink.ready),
            ]
        read = Signal()
        m.d.sync += read.eq(self.i_read.valid)
        m.d.comb += [
            self.i_read.ready.eq(1),
            self.i_write.ready.eq(1),
            memory.i_read.eq(self.i_read.valid),
            memory.i_read_beat.eq(self.i_read.payload),
            memory.i_write.eq(self.i_write.valid),
            Cat(memory.i_write_beat, memory.i_write_data).eq(self.i_write.payload),
            found.w_en.eq(read),
            found.w_data.eq(memory.o_read),
            self.o_read.valid.eq(found.r_rdy),
            self.o_read.payload.eq(found.r_data),
            found.r_en.eq(self.o_read.ready),
        ]
        return m


@dataclass
class Burst:
    """`beats` beats from beat number `first` on."""

    first: int
    beats: int

    def payload(self, spec: BlockMemorySpec) -> int:
        return self.first * spec.beat_bytes | self.beats - 1 << ADDRESS_BITS


def bursts(rng: np.random.Generator, spec: BlockMemorySpec, count: int) -> list[Burst]:
    """Some of them leave the memory, and one is far beyond it."""
    longest = min(16, spec.beats)
    found = [
        Burst(int(rng.integers(0, spec.beats)), int(rng.integers(1, longest + 1)))
        for _ in range(count - 1)
    ]
    return [*found, Burst((1 << ADDRESS_BITS) // spec.beat_bytes - 20, 3)]


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize(("bus_bits", "beats"), [(32, 100), (128, 33)])
def test_bursts(bus_bits, beats, stall, simulator):
    rng = np.random.default_rng(beats)
    step = bus_bits // 8
    spec = BlockMemorySpec(bus_bits, rng.bytes(beats * step))
    writes, reads = bursts(rng, spec, 40), bursts(rng, spec, 40)
    data = [[rng.bytes(step) for _ in range(burst.beats)] for burst in writes]
    door = [(int(rng.integers(0, beats)), rng.bytes(step)) for _ in range(20)]
    number = int.from_bytes
    last = 1 << bus_bits
    beats_in = [
        number(beat, "little") | (last if k == len(burst) - 1 else 0)
        for burst in data
        for k, beat in enumerate(burst)
    ]
    sources = {
        "i_aw": [burst.payload(spec) for burst in writes],
        "i_w": beats_in,
        "i_write": [at | number(beat, "little") << spec.address_bits for at, beat in door],
        "i_ar": [burst.payload(spec) for burst in reads],
        "i_read": list(range(beats)),
    }
    sinks = {"o_b": len(writes), "o_r": sum(burst.beats for burst in reads), "o_read": beats}
    # First bursts are written, then the door writes; bursts are read, then the door reads.
    after = {
        "i_write": {0: {"o_b": len(writes)}},
        "i_ar": {0: {"i_write": len(door)}},
        "i_read": {0: {"o_r": sinks["o_r"]}},
    }
    answer = simulate(
        Streams, spec, bench="stream_bench", job=StreamJob(sources, sinks, after, stall),
        simulator=simulator,
    )  # fmt: skip
    assert not any(answer.held.values())
    done = [
        (burst.first * step, np.frombuffer(b"".join(content), np.uint8))
        for burst, content in zip(writes, data, strict=True)
    ]
    done += [(at * step, np.frombuffer(beat, np.uint8)) for at, beat in door]
    memory = spec.compute(done).tobytes()
    words = BlockMemorySpec(bus_bits, memory).words
    inside = [burst.first + burst.beats <= beats for burst in writes]
    assert answer.payloads["o_b"] == [OKAY if good else SLVERR for good in inside]
    found = iter(answer.payloads["o_r"])
    for burst in reads:
        for k in range(burst.beats):
            beat = next(found)
            assert beat >> bus_bits + 2 == (k == burst.beats - 1)
            if burst.first + k < beats:
                assert beat & last - 1 == words[burst.first + k]
                assert beat >> bus_bits & 3 == OKAY
            else:
                assert beat >> bus_bits & 3 == SLVERR
    assert answer.payloads["o_read"] == words
    assert 5 < sum(inside) < 40
    if stall:
        return
    cycles = {name: np.array(each) for name, each in answer.cycles.items()}
    first = np.cumsum([0, *(burst.beats for burst in reads)])[:-1]
    assert np.array_equal(cycles["o_r"][first], cycles["i_ar"] + spec.READ_LATENCY)
    lengths = np.array([burst.beats for burst in reads])
    assert np.array_equal(np.diff(cycles["i_ar"]), lengths[:-1] + 1)
    lengths = np.array([burst.beats for burst in writes])
    assert np.array_equal(cycles["i_w"][np.cumsum(lengths) - 1] + 1, cycles["o_b"])
    assert np.array_equal(np.diff(cycles["i_aw"]), lengths[:-1] + 2)
