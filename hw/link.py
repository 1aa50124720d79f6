"""The serial protocol: requests in, runs of the accelerator, replies out."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..golden.link import Command, Fault, Reply
from ..golden.standalone import StandaloneSpec
from .argmax import ArgMax

__all__ = ["Link"]


class Link(wiring.Component):
    """Takes requests, writes images to memory, has runs done, reads the scores and replies.

    What :class:`~shiftcore.golden.link.LinkSpec` says. Bytes that come during a run or a reply are
    dropped.

    **Latency**: a run is asked for one cycle after the last byte of a request; the first byte of
    the reply is offered ``3 * classes + 1`` cycles after the run is done, that of an error after 1.
    **Throughput**: a byte a cycle in; out a byte a cycle, and 3 cycles more before every score.

    Members
    -------
    i, o : bytes of requests and replies
    i_broken : a byte was broken (pulse)
    o_write, o_write_beat, o_write_data : beats of the image, to memory
    o_read, o_read_beat, i_read : beats of the scores, from memory one cycle later
    o_start, i_done, i_code : a run, see :class:`~shiftcore.hw.run_control.RunControl`
    """

    def __init__(self, spec: StandaloneSpec):
        self.spec = spec
        memory = spec.memory
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
                "i_broken": In(1),
                "o_write": Out(1),
                "o_write_beat": Out(memory.address_bits),
                "o_write_data": Out(memory.bus_bits),
                "o_read": Out(1),
                "o_read_beat": Out(memory.address_bits),
                "i_read": In(memory.bus_bits),
                "o_start": Out(1),
                "i_done": In(1),
                "i_code": In(8),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec, link = self.spec, self.spec.link
        m.submodules.argmax = argmax = ArgMax(link.argmax)
        words_of_beat = exact_log2(spec.memory.beat_bytes // 4)

        # Where each score is, in words of 32 bits.
        words = [address // 4 for address in spec.scores]
        m.submodules.places = places = Memory(
            shape=max(words).bit_length() or 1, depth=max(2, len(words)), init=words
        )
        place = places.read_port()
        number = Signal(range(max(2, link.classes)))
        last_number = number == link.classes - 1
        score = (
            self.i_read.word_select(place.data[:words_of_beat], 32)
            if words_of_beat
            else (self.i_read)
        )
        m.d.comb += [
            place.addr.eq(number),
            self.o_read_beat.eq(place.data[words_of_beat:]),
            argmax.i.payload.eq(score),
        ]

        # The image: bytes become beats, and a beat is written in the cycle after its last byte.
        count = Signal(range(link.image_bytes))
        beat = exact_log2(spec.memory.beat_bytes)
        m.d.comb += self.i.ready.eq(1)
        m.d.sync += self.o_write.eq(0)

        silent = Signal(range(link.silence + 1))
        with m.If(self.i.valid | self.i_broken):
            m.d.sync += silent.eq(0)
        with m.Elif(silent != link.silence):
            m.d.sync += silent.eq(silent + 1)
        over = silent == link.silence

        check = Signal(8)
        scores, telling = Signal(), Signal()
        fault = Signal(8)
        held = Signal(32, reset_less=True)
        part = Signal(2)

        def refuse(code: Fault, state: str):
            m.d.sync += fault.eq(code)
            m.next = state

        def watch():
            """Within a request: what may happen instead of the next byte."""
            with m.If(self.i_broken):
                refuse(Fault.BROKEN_BYTE, "DROP")
            with m.Elif(over):
                refuse(Fault.TRUNCATED, "FAULT")

        def send(byte, first: bool = False):
            """Offer `byte`; a context for what follows when it is taken."""
            m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(byte)]
            with m.If(self.o.ready):
                m.d.sync += check.eq(byte if first else check + byte)
            return m.If(self.o.ready)

        with m.FSM(name="state"):
            with m.State("COMMAND"):
                m.d.sync += [count.eq(0), scores.eq(self.i.payload == Command.SCORES)]
                with m.If(self.i_broken):
                    refuse(Fault.BROKEN_BYTE, "DROP")
                with m.Elif(self.i.valid):
                    m.d.sync += check.eq(self.i.payload)
                    with m.Switch(self.i.payload):
                        with m.Case(*Command):
                            m.next = "IMAGE"
                        with m.Default():
                            refuse(Fault.UNKNOWN_COMMAND, "DROP")
            with m.State("IMAGE"):
                watch()
                with m.If(self.i.valid):
                    m.d.sync += [
                        check.eq(check + self.i.payload),
                        count.eq(count + 1),
                        self.o_write.eq(count[:beat].all()),
                        self.o_write_beat.eq((spec.image >> beat) + count[beat:]),
                        self.o_write_data.eq(Cat(self.o_write_data[8:], self.i.payload)),
                    ]
                    with m.If(count == link.image_bytes - 1):
                        m.next = "CHECK"
            with m.State("CHECK"):
                watch()
                with m.If(self.i.valid):
                    with m.If(self.i.payload == check):
                        m.next = "START"
                    with m.Else():
                        refuse(Fault.WRONG_CHECK, "DROP")
            with m.State("DROP"):
                with m.If(over):
                    m.next = "FAULT"
            with m.State("START"):
                m.d.comb += self.o_start.eq(1)
                m.next = "RUN"
            with m.State("RUN"):
                m.d.sync += [number.eq(0), telling.eq(0), fault.eq(self.i_code)]
                with m.If(self.i_done):
                    with m.If(self.i_code != 0):
                        m.next = "FAULT"
                    with m.Else():
                        m.next = "PLACE"
            with m.State("PLACE"):
                m.next = "READ"
            with m.State("READ"):
                m.d.comb += self.o_read.eq(1)
                m.next = "SCORE"
            with m.State("SCORE"):
                m.d.comb += argmax.i.valid.eq(~telling)
                m.d.sync += [held.eq(score), part.eq(0)]
                with m.If(telling):
                    m.next = "TELL"
                with m.Else():
                    m.d.sync += number.eq(number + 1)
                    m.next = "PLACE"
                    with m.If(last_number):
                        m.d.sync += number.eq(0)
                        m.next = "OK"
            with m.State("OK"):
                with send(Reply.OK, first=True):
                    m.next = "CLASS"
            with m.State("CLASS"):
                with send(argmax.o.payload):
                    m.d.comb += argmax.o.ready.eq(1)
                    m.d.sync += telling.eq(1)
                    with m.If(scores):
                        m.next = "PLACE"
                    with m.Else():
                        m.next = "END"
            with m.State("TELL"):
                with send(held[:8]):
                    m.d.sync += [held.eq(held >> 8), part.eq(part + 1)]
                    with m.If(part == 3):
                        m.d.sync += number.eq(number + 1)
                        m.next = "PLACE"
                        with m.If(last_number):
                            m.next = "END"
            with m.State("FAULT"):
                with send(Reply.ERROR, first=True):
                    m.next = "CODE"
            with m.State("CODE"):
                with send(fault):
                    m.next = "END"
            with m.State("END"):
                with send(check):
                    m.next = "COMMAND"
        return m
