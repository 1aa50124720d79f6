"""The protocol in gateware, with a memory and without an accelerator."""

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from shiftcore.golden.block_memory import BlockMemorySpec
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.link import Command, LinkSpec
from shiftcore.golden.standalone import RunSpec, StandaloneSpec
from shiftcore.golden.uart import UartSpec
from shiftcore.hw.block_memory import BlockMemory
from shiftcore.hw.link import Link
from shiftcore.sim.runner import simulate
from shiftcore.sim.stream_bench import StreamJob

IMAGE = 32
"""byte address"""


class Linked(wiring.Component):
    """The link before a memory; a run ends when ``i_code`` brings its code."""

    def __init__(self, spec: StandaloneSpec):
        self.spec = spec
        memory = spec.memory
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(8))),  # pyright: ignore[reportArgumentType]
                "o": Out(stream.Signature(unsigned(8))),  # pyright: ignore[reportArgumentType]
                "i_code": In(stream.Signature(unsigned(8))),  # pyright: ignore[reportArgumentType]
                "o_written": Out(stream.Signature(unsigned(memory.address_bits + memory.bus_bits))),  # pyright: ignore[reportArgumentType]
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.link = link = Link(self.spec)
        m.submodules.memory = memory = BlockMemory(self.spec.memory)
        width = len(self.o_written.payload)
        m.submodules.written = written = SyncFIFOBuffered(width=width, depth=64)
        wiring.connect(m, wiring.flipped(self.i), link.i)
        wiring.connect(m, link.o, wiring.flipped(self.o))
        running = Signal()
        with m.If(link.o_start):
            m.d.sync += running.eq(1)
        with m.If(link.i_done):
            m.d.sync += running.eq(0)
        m.d.comb += [
            self.i_code.ready.eq(running),
            link.i_done.eq(running & self.i_code.valid),
            link.i_code.eq(self.i_code.payload),
            memory.i_read.eq(link.o_read),
            memory.i_read_beat.eq(link.o_read_beat),
            link.i_read.eq(memory.o_read),
            written.w_en.eq(link.o_write),
            written.w_data.eq(Cat(link.o_write_beat, link.o_write_data)),
            self.o_written.valid.eq(written.r_rdy),
            self.o_written.payload.eq(written.r_data),
            written.r_en.eq(self.o_written.ready),
        ]
        return m


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize(("bus_bits", "classes"), [(32, 3), (128, 1), (64, 11)])
def test_link(bus_bits, classes, stall, simulator):
    rng = np.random.default_rng(bus_bits)
    step = bus_bits // 8
    content = rng.normal(size=(IMAGE + 2 * step) // 4).astype("<f4")
    words = rng.permutation(len(content))[:classes]
    spec = StandaloneSpec(
        HardwareConfig(4, 2, bus_bits=bus_bits),
        BlockMemorySpec(bus_bits, content.tobytes()),
        RunSpec(((0, 0),)),
        LinkSpec(2 * step, classes, UartSpec(4), 100),
        IMAGE,
        tuple(4 * int(word) for word in words),
    )
    scores = content[words].view(np.uint32)
    link = spec.link
    requests, replies, codes, written = [], [], [], []
    after_i, after_code, sent, told = {}, {}, 0, 0
    for k in range(24):
        image = rng.bytes(link.image_bytes)
        request = link.request(image, (Command.CLASS, Command.SCORES)[k % 2])
        code = 0
        match k % 6:
            case 2:
                request = bytes([int(rng.integers(0, 0x43))]) + request[1:]
            case 3:
                request = request[: int(rng.integers(1, len(request)))]
            case 4:
                request = request[:-1] + bytes([request[-1] ^ 1 << int(rng.integers(0, 8))])
            case 5:
                code = int(rng.integers(1, 256))
        reply = link.compute(request, scores, code)
        if link.fault(request) is None:
            after_code[len(codes)] = {"i": sent + len(request)}
            codes.append(code)
        if request[0] in tuple(Command):
            beats = min(len(request) - 1, len(image)) // step
            written += [
                spec.image // step + beat
                | int.from_bytes(request[1 + beat * step :][:step], "little")
                << spec.memory.address_bits
                for beat in range(beats)
            ]
        after_i[sent] = {"o": told}
        requests.append(request)
        replies.append(reply)
        sent += len(request)
        told += len(reply)
    sources = {"i": list(b"".join(requests)), "i_code": codes}
    sinks = {"o": told, "o_written": len(written)}
    after = {"i": after_i, "i_code": after_code}
    answer = simulate(
        Linked, spec, bench="stream_bench", job=StreamJob(sources, sinks, after, stall),
        simulator=simulator,
    )  # fmt: skip
    assert not any(answer.held.values())
    assert bytes(answer.payloads["o"]) == b"".join(replies)
    assert answer.payloads["o_written"] == written
    if not stall:
        ends = np.cumsum([len(reply) for reply in replies])
        good = iter(answer.cycles["i_code"])
        for request, reply, end in zip(requests, replies, ends, strict=True):
            if link.fault(request) is None:
                wait = answer.cycles["o"][end - len(reply)] - next(good)
                assert wait == (3 * classes + 1 if reply[0] == ord("K") else 1)
