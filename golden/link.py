"""Spec and model of the serial protocol of a standalone image: framing, replies, faults."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .argmax import ArgMaxSpec
from .fixed import Grid
from .floats import FLOAT32
from .isa import Error
from .uart import UartSpec

__all__ = ["Command", "Fault", "LinkSpec", "Reply", "check_byte"]


class Command(IntEnum):
    """First byte of a request."""

    CLASS = ord("C")
    SCORES = ord("S")


class Reply(IntEnum):
    """First byte of a reply."""

    OK = ord("K")
    ERROR = ord("E")


class Fault(IntEnum):
    """Why a request was refused; smaller codes are the accelerator's, see
    :class:`~shiftcore.golden.isa.Error`."""

    UNKNOWN_COMMAND = 0xF0
    """the first byte is no command"""
    WRONG_CHECK = 0xF1
    """the check byte is not the sum of the bytes before it"""
    BROKEN_BYTE = 0xF2
    """a stop bit was low"""
    TRUNCATED = 0xF3
    """the line was silent before the request was complete"""


def check_byte(content: bytes) -> int:
    """The last byte of a frame: the sum of the bytes before it, modulo 256."""
    return sum(content) & 0xFF


@dataclass(frozen=True)
class LinkSpec:
    """Requests and replies; each ends with a check byte (:func:`check_byte`).

    A request is a command and the encoded image. The reply to ``CLASS`` is ``OK`` and the class, to
    ``SCORES`` the scores too, as they are in memory, lowest byte first: float32, or whole numbers
    of a grid. What cannot be answered so is answered with ``ERROR`` and a code. After a fault
    everything is dropped until the line was silent.

    Parameters
    ----------
    image_bytes : of an encoded image
    classes : 1 to 256
    uart : the line
    silence : cycles without a byte after which a request is over, at least two bytes'
    grid : of which the scores are whole numbers; None if they are float32
    """

    image_bytes: int
    classes: int
    uart: UartSpec
    silence: int
    grid: Grid | None = None

    def __post_init__(self):
        if self.image_bytes < 1:
            raise ValueError(f"image_bytes must be at least 1, not {self.image_bytes!r}")
        if self.silence < 2 * self.uart.byte_cycles:
            raise ValueError(
                f"silence must be at least {2 * self.uart.byte_cycles} cycles, two bytes, not "
                f"{self.silence!r}"
            )

    @property
    def argmax(self) -> ArgMaxSpec:
        return ArgMaxSpec(self.classes, whole=self.grid is not None)

    def request(self, image: bytes, command: Command = Command.CLASS) -> bytes:
        """The frame that asks for the class of an encoded image."""
        if len(image) != self.image_bytes:
            raise ValueError(f"an image must have {self.image_bytes} bytes, not {len(image)}")
        frame = bytes([command]) + image
        return frame + bytes([check_byte(frame)])

    def reply_bytes(self, command: Command) -> int:
        """Bytes of the reply to a request without fault."""
        return 3 + (4 * self.classes if command is Command.SCORES else 0)

    def fault(self, request: bytes) -> Fault | None:
        """What is wrong with the bytes between two silences, None if nothing is."""
        if request[0] not in tuple(Command):
            return Fault.UNKNOWN_COMMAND
        size = self.image_bytes + 2
        if len(request) < size:
            return Fault.TRUNCATED
        wrong = request[size - 1] != check_byte(request[: size - 1])
        return Fault.WRONG_CHECK if wrong else None

    @staticmethod
    def refusal(code: int) -> bytes:
        """The reply that gives an error code."""
        frame = bytes([Reply.ERROR, code])
        return frame + bytes([check_byte(frame)])

    def compute(self, request: bytes, scores: NDArray[np.uint32], code: int = 0) -> bytes:
        """The reply to the bytes between two silences.

        Parameters
        ----------
        scores : (classes,) that the network gives the image, as they are in memory
        code : why the accelerator halted, 0 if it did not
        """
        fault = self.fault(request) or code
        if fault:
            return self.refusal(fault)
        frame = bytes([Reply.OK, int(self.argmax.compute(scores[None])[0])])
        if request[0] == Command.SCORES:
            frame += scores.astype("<u4").tobytes()
        return frame + bytes([check_byte(frame)])

    def parse(self, reply: bytes) -> tuple[int, NDArray[np.float32]]:
        """Class and scores, (0,) of them if they were not asked for, of a reply.

        Scores are float32; of whole numbers the nearest to what they stand for, which may be equal
        where the numbers, of which the class is the largest, are not.

        Raises ``ValueError`` that says what an error code means, or that the reply is none.
        """
        known = tuple(map(self.reply_bytes, Command))
        right = len(reply) in known and check_byte(reply[:-1]) == reply[-1]
        if not right or reply[0] not in tuple(Reply):
            raise ValueError(f"this is no reply: {reply.hex(' ') or 'nothing'}")
        if reply[0] == Reply.ERROR:
            names = {code.value: code.name for code in (*Error, *Fault)}
            raise ValueError(f"the image answered {names.get(reply[1], f'code {reply[1]}')}")
        words = np.frombuffer(reply[2:-1], "<u4")
        if self.grid is None:
            return reply[1], words.view("<f4").astype(np.float32)
        return reply[1], FLOAT32.round(self.grid.decode(words))
