"""The serial protocol of standalone images, its frames and its models."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.argmax import ArgMaxSpec
from shiftcore.golden.block_memory import BlockMemorySpec
from shiftcore.golden.fixed import FixedFormat, Grid
from shiftcore.golden.link import Command, Fault, LinkSpec, check_byte
from shiftcore.golden.standalone import RunSpec
from shiftcore.golden.uart import UartSpec

LINK = LinkSpec(4, 3, UartSpec(5), 100)
SCORES = np.array([-1.5, 2.5, 2.5], np.float32).view(np.uint32)


def test_frames():
    request = LINK.request(b"\x01\x02\xff\x00")
    assert request == b"C\x01\x02\xff\x00\x45"  # 0x43 + 0x102 = 0x145
    assert LINK.compute(request, SCORES) == b"K\x01\x4c"
    request = LINK.request(b"\x01\x02\xff\x00", Command.SCORES)
    reply = LINK.compute(request, SCORES)
    assert reply[:-1] == b"K\x01" + bytes.fromhex("0000c0bf 00002040 00002040")
    assert len(reply) == LINK.reply_bytes(Command.SCORES) == 15
    found, scores = LINK.parse(reply)
    assert found == 1
    assert np.array_equal(scores, np.array([-1.5, 2.5, 2.5], np.float32))
    assert LINK.parse(LINK.compute(LINK.request(bytes(4)), SCORES))[1].size == 0


@pytest.mark.parametrize(("bits", "unit"), [(20, 0.25), (32, 0.25), (35, 2.0)])
def test_whole_numbers_of_a_grid(bits: int, unit: float):
    """They are told as they are in memory, and mean what the network's accumulators stand for."""
    link = replace(LINK, grid=Grid(FixedFormat(bits), -2))
    words = np.array([-3, 5, 2]).astype(np.uint32)
    reply = link.compute(link.request(bytes(4), Command.SCORES), words)
    assert reply[:-1] == b"K\x01" + bytes.fromhex("fdffffff 05000000 02000000")
    found, scores = link.parse(reply)
    assert (found, scores.dtype) == (1, np.float32)
    assert scores.tolist() == [-3 * unit, 5 * unit, 2 * unit]


def test_whole_numbers_that_are_one_float32():
    link = replace(LINK, grid=Grid(FixedFormat(36), -2))
    words = np.array([1 << 24, (1 << 24) + 1, 2], np.uint32)
    found, scores = link.parse(link.compute(link.request(bytes(4), Command.SCORES), words))
    assert found == 1
    assert scores.tolist() == [1 << 26, 1 << 26, 8]


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (b"c\x01\x02\xff\x00\x45", Fault.UNKNOWN_COMMAND),
        (b"C\x01\x02\xff\x00", Fault.TRUNCATED),
        (b"C", Fault.TRUNCATED),
        (b"C\x01\x02\xff\x00\x46", Fault.WRONG_CHECK),
        (b"C\x01\x03\xff\x00\x45", Fault.WRONG_CHECK),
    ],
)
def test_faults(request_: bytes, fault: Fault):
    reply = LINK.compute(request_, SCORES)
    assert reply == b"E" + bytes([fault, check_byte(bytes([ord("E"), fault]))])
    with pytest.raises(ValueError, match=f"^the image answered {fault.name}$"):
        LINK.parse(reply)


def test_a_halt_is_told():
    reply = LINK.compute(LINK.request(bytes(4)), SCORES, code=9)
    with pytest.raises(ValueError, match=r"^the image answered DEADLOCK$"):
        LINK.parse(reply)
    with pytest.raises(ValueError, match=r"^the image answered code 200$"):
        LINK.parse(LINK.refusal(200))


@pytest.mark.parametrize("reply", [b"", b"K\x01\x4d", b"X\x01\x59", b"K\x01", b"K" + bytes(13)])
def test_no_reply(reply: bytes):
    with pytest.raises(ValueError, match=r"^this is no reply: "):
        LINK.parse(reply)


def test_class_of_scores():
    spec = ArgMaxSpec(3)
    scores = np.array([[1, 2, 2], [-0.0, 0.0, -1], [-3, -2, -2.5]], np.float32).view(np.uint32)
    assert spec.compute(scores).tolist() == [1, 0, 1]
    assert ArgMaxSpec(3, whole=True).compute(scores).tolist() == [1, 1, 0]
    nan = np.array([[1, np.nan, 2]], np.float32).view(np.uint32)
    with pytest.raises(ValueError, match=r"^scores must be finite$"):
        spec.compute(nan)
    assert ArgMaxSpec(3, whole=True).compute(nan).tolist() == [1]
    message = r"^scores must be \(N, 3\) uint32, not \(1, 2\) uint32$"
    with pytest.raises(ValueError, match=message):
        spec.compute(scores[:1, :2])


def test_a_line_is_read_as_it_is_written():
    rng = np.random.default_rng(1)
    for divisor in (4, 5, 217):
        spec = UartSpec(divisor)
        content = rng.integers(0, 256, 50).astype(np.uint8)
        found = spec.receive(np.pad(spec.compute(content), 3, constant_values=1))
        assert [byte for _, byte in found] == content.tolist()
        cycles = np.array([cycle for cycle, _ in found])
        assert np.array_equal(cycles, 3 + spec.receive_latency + np.arange(50) * 10 * divisor)


def test_baud():
    assert UartSpec.at(25e6, 1_000_000).divisor == 25
    assert UartSpec.at(12e6, 115_200).divisor == 104
    message = (
        r"^baud 3000000 cannot be made of a clock of 25 MHz: the clock must be, within 2 %, 4 or "
        r"more times the baud rate$"
    )
    with pytest.raises(ValueError, match=message):
        UartSpec.at(25e6, 3_000_000)
    with pytest.raises(ValueError, match=r"^baud 8000000 cannot"):
        UartSpec.at(25e6, 8_000_000)


def test_memory():
    spec = BlockMemorySpec(32, bytes(range(12)))
    assert (spec.beats, spec.address_bits, spec.words[1]) == (3, 2, 0x07060504)
    found = spec.compute([(4, np.full(4, 9, np.uint8)), (8, np.full(8, 7, np.uint8))])
    assert found.tolist() == [0, 1, 2, 3, 9, 9, 9, 9, 7, 7, 7, 7]
    with pytest.raises(ValueError, match=r"^a write must be of whole beats, not 3 at 4$"):
        spec.compute([(4, np.zeros(3, np.uint8))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UartSpec(3), "divisor must be at least 4 cycles of a bit, not 3"),
        (lambda: ArgMaxSpec(0), "count must be 1 to 256 scores, not 0"),
        (lambda: ArgMaxSpec(257), "count must be 1 to 256 scores, not 257"),
        (lambda: LinkSpec(0, 1, UartSpec(4), 80), "image_bytes must be at least 1, not 0"),
        (
            lambda: LinkSpec(1, 1, UartSpec(4), 79),
            "silence must be at least 80 cycles, two bytes, not 79",
        ),
        (lambda: LINK.request(b"abc"), "an image must have 4 bytes, not 3"),
        (lambda: BlockMemorySpec(48, bytes(6)), "bus_bits must be 32, 64, 128 or 256, not 48"),
        (
            lambda: BlockMemorySpec(32, bytes(6)),
            "content must be whole beats of 4 bytes, not 6 bytes",
        ),
        (lambda: RunSpec(()), "writes must start a run, not be empty"),
    ],
)
def test_parameters(make, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
