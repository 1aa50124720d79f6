"""Runs a simulated standalone image through the pins of its serial line."""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..golden.standalone import StandaloneSpec
from ..hw.standalone import Standalone
from .runner import SimulationError, Simulator, verilog_of
from .system import CYCLE, build_bench

__all__ = ["Answer", "Request", "talk"]


@dataclass(frozen=True)
class Request:
    """Bytes for the line, back to back.

    Parameters
    ----------
    content : the bytes
    reply_bytes : that are waited for
    broken : number of the byte whose stop bit is low, None for none
    """

    content: bytes
    reply_bytes: int
    broken: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came back.

    Parameters
    ----------
    content : the bytes of the reply
    cycles : from the end of the request to the first start bit of the reply, as the pins show it;
        0 if nothing came
    """

    content: bytes
    cycles: int


def talk(
    spec: StandaloneSpec,
    requests: Sequence[Request],
    *,
    drift: float = 0.0,
    limit: int = 1_000_000,
    simulator: Simulator = "verilator",
) -> list[Answer]:
    """Send requests, each after the reply to the one before.

    The line's bits are timed by a clock of this side's own, and read in the middle as it sees it.

    Parameters
    ----------
    drift : by how much a bit of this side is longer, -0.03 for 3 % shorter
    limit : cycles that a reply may take

    Raises ``SimulationError`` if the simulator fails or a stop bit of a reply is low.
    """
    bench = (files("shiftcore.sim") / "uart_testbench.sv").read_text(encoding="utf-8")
    period = round(1000 * CYCLE * spec.link.uart.divisor * (1 + drift))
    parameters = {"BIT": period, "LIMIT": limit}
    command = build_bench(bench, verilog_of(Standalone, spec), parameters, simulator)
    stimulus = bytearray()
    for request in requests:
        flags = [k == request.broken for k in range(len(request.content))]
        stimulus += len(request.content).to_bytes(4, "little")
        stimulus += request.reply_bytes.to_bytes(4, "little")
        stimulus += bytes(n for pair in zip(request.content, flags, strict=True) for n in pair)
    with tempfile.TemporaryDirectory(prefix="shiftcore-") as name:
        folder = Path(name)
        (folder / "requests.bin").write_bytes(stimulus)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        replies = folder / "replies.txt"
        if done.returncode or not replies.exists():
            raise SimulationError(f"{simulator} failed: {(done.stdout + done.stderr)[-500:]}")
        found = [tuple(map(int, line.split())) for line in replies.read_text().splitlines()]
    if any(not stop for *_, stop in found):
        raise SimulationError("the stop bit of a reply is low")
    return [
        Answer(
            bytes(value for value, frame, *_ in found if frame == k),
            next((cycles for _, frame, cycles, _ in found if frame == k), 0),
        )
        for k in range(len(requests))
    ]
