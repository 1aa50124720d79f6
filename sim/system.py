"""The whole accelerator with its memory in one compiled model, as a transport for the driver."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..golden.accelerator import AcceleratorSpec
from ..golden.config import HardwareConfig
from ..hw.accelerator import Accelerator
from ..hw.verilog import TOP, emit
from ..toolchain.netlist import cell_models, models_hash, synthesized, with_primitives
from .runner import (
    CACHE,
    SimulationError,
    Simulator,
    check_netlist,
    initial_events,
    locked_build,
    model_arguments,
    sources_hash,
    tool_path,
)  # fmt: skip

__all__ = [
    "CYCLE",
    "NoInterrupt",
    "SimulatedSystem",
    "Trace",
    "answer_cycles",
    "build_bench",
    "build_system",
]

CYCLE = 10
"""ns of the simulation"""

_MAKE = (
    "-- CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_STD=-std=gnu++20 "
    "CFG_CXXFLAGS_COROUTINES=-fcoroutines OPT_FAST=-O2 OPT_SLOW=-O0 OPT_GLOBAL=-O1"
)


def _verilog(config: HardwareConfig) -> str:
    key = hashlib.sha256(f"{config} {sources_hash('golden', 'hw')}".encode()).hexdigest()[:20]
    path = CACHE / f"accelerator-{key}.v"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as part:
            part.write(emit(Accelerator(config, trace=True), TOP))
        Path(part.name).replace(path)
    return path.read_text(encoding="utf-8")


def _trace_bits(config: HardwareConfig) -> int:
    """Of what DRAIN writes: a word, or a raw row."""
    return max(config.accelerator.word_bits, 32 * config.cols)


def answer_cycles(spec: AcceleratorSpec, latency: int, gap: int) -> int:
    """Cycles in which the simulated memory answers as many bursts as can be on their way, asked for
    at once: from the first address to the last beat, or to the last response."""
    reads = latency + spec.outstanding * spec.burst_beats * (1 + gap)
    writes = latency + spec.outstanding * (spec.burst_beats + 1)
    return max(reads, writes)


def build_system(
    config: HardwareConfig,
    memory_beats: int,
    simulator: Simulator = "verilator",
    *,
    waves: bool = False,
    netlist: str | None = None,
) -> list[str]:
    """Compile the accelerator with a memory; the command that runs it. See :func:`build_bench`.

    Parameters
    ----------
    netlist : family of :mod:`shiftcore.toolchain.netlist` that the accelerator is synthesized for
    """
    spec = config.accelerator
    bench = (files("shiftcore.sim") / "testbench.sv").read_text(encoding="utf-8")
    parameters = {"BUS": spec.bus_bits, "BEATS": memory_beats, "TRACE": _trace_bits(config)}
    design, models = _verilog(config), []
    if netlist is not None:
        check_netlist(simulator)
        design, models = synthesized(design, TOP, netlist).verilog, cell_models(netlist)
    return build_bench(bench, design, parameters, simulator, waves=waves, models=models)


def build_bench(
    bench: str,
    design: str,
    parameters: Mapping[str, int] = MappingProxyType({}),
    simulator: Simulator = "verilator",
    *,
    waves: bool = False,
    models: Sequence[Path] = (),
) -> list[str]:
    """Compile a bench in Verilog, whose top is ``testbench``, with a design; the command that runs
    it, free of Python.

    A build of the same content is reused. `models` are more files, of a netlist's cells.

    Raises ``SimulationError`` if the simulator is missing.
    """
    path = tool_path(simulator)
    design = design if models else with_primitives(design)
    # Compiling a netlist takes far longer than running it.
    make = _MAKE.replace("OPT_FAST=-O2", "OPT_FAST=-O0") if models else _MAKE
    parts = [design, bench, simulator, str(dict(parameters)), str(waves), make]
    parts += [models_hash()] if models else []
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    folder = CACHE / f"system-{simulator}-{key}"

    def compile_all() -> None:
        (folder / "testbench.sv").write_text(bench, encoding="utf-8")
        source = design
        if simulator == "verilator":
            command = [
                "verilator", "--binary", "--timing", "--x-assign", "fast", "--x-initial", "fast",
                "--top-module", "testbench", *(f"-G{k}={v}" for k, v in parameters.items()),
                *(["--trace-vcd"] if waves else []), "--Mdir", "obj", "-o", "system",
                "testbench.sv", "design.v",
                *model_arguments(models), *(str(model) for model in models),
            ]  # fmt: skip
        else:
            source = initial_events(design)
            command = [
                "iverilog", "-g2012", "-s", "testbench", "-o", "system.vvp",
                *(f"-Ptestbench.{k}={v}" for k, v in parameters.items()),
                "testbench.sv", "design.v",
            ]  # fmt: skip
        (folder / "design.v").write_text(source, encoding="utf-8")
        environment = os.environ | {"PATH": path, "MAKEFLAGS": f"-j2 {make}"}
        if shutil.which("ccache"):
            environment["OBJCACHE"] = "ccache"
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        (folder / "build.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            raise SimulationError(f"{simulator} rejected the design, see {folder}/build.log")

    locked_build(folder, compile_all)
    if simulator == "verilator":
        return [str((folder / "obj" / "system").resolve())]
    return ["vvp", "-n", str((folder / "system.vvp").resolve())]


class NoInterrupt(SimulationError):
    """None came in time; the simulation goes on."""


class Trace(NamedTuple):
    """What DRAIN wrote: n words or raw rows."""

    raw: NDArray[np.bool_]
    """(n,) whether it is a raw row"""
    times: NDArray[np.int64]
    """(n,) in ns"""
    content: NDArray[np.uint8]
    """(n, bytes) its bits, lowest byte first"""
    defined: NDArray[np.bool_]
    """(n,) whether the simulator knows every bit"""

    def part(self, rows: slice) -> "Trace":
        """Some of them."""
        return Trace(self.raw[rows], self.times[rows], self.content[rows], self.defined[rows])

    def joined(self, later: "Trace") -> "Trace":
        """These and what was written after them."""
        return Trace(
            np.concatenate([self.raw, later.raw]),
            np.concatenate([self.times, later.times]),
            np.concatenate([self.content, later.content]),
            np.concatenate([self.defined, later.defined]),
        )


class SimulatedSystem:
    """A simulator that runs beside Python; a :class:`~shiftcore.host.driver.Transport`.

    Parameters
    ----------
    config : the hardware
    memory_bytes : size of the memory; rounded up to a power of two, and 2**18 beats
    latency, gap : of the memory: cycles from an address to its first beat, and between beats
    simulator : which one
    waves : :meth:`dump` will be called
    netlist : see :func:`build_system`
    """

    def __init__(
        self,
        config: HardwareConfig,
        memory_bytes: int,
        *,
        latency: int = 20,
        gap: int = 0,
        simulator: Simulator = "verilator",
        waves: bool = False,
        netlist: str | None = None,
    ):
        self.beat_bytes = config.accelerator.beat_bytes
        beats = 1 << max(18, (-(-memory_bytes // self.beat_bytes) - 1).bit_length())
        self._beats = beats
        command = build_system(config, beats, simulator, waves=waves, netlist=netlist)
        self._folder = tempfile.TemporaryDirectory(prefix="shiftcore-")
        self._process = subprocess.Popen(
            command, cwd=self._folder.name, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._trace = 0
        self._trace_read = 0
        self._trace_digits = -(-(_trace_bits(config) + 64 + 8) // 4)
        self.limit = 0
        """cycles that :meth:`wait` waits at most, 0 for no limit"""
        self.time = 0
        """of the simulation in ns, when it was last waited for"""
        self.set_timing(latency, gap)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the simulator."""
        if self._process.poll() is None:
            try:
                self._pipe(self._process.stdin).write("q\n")
                self._pipe(self._process.stdin).flush()
                self._process.wait(10)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            self._pipe(pipe).close()
        self._folder.cleanup()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def _command(self, letter: str, *arguments: int | str) -> str:
        shown = " ".join(f"{a:x}" if isinstance(a, int) else a for a in arguments)
        try:
            self._pipe(self._process.stdin).write(f"{letter} {shown}\n")
            self._pipe(self._process.stdin).flush()
            lines = iter(self._pipe(self._process.stdout).readline, "")
            # Icarus says when a waveform begins.
            answer = next((line for line in lines if not line.startswith("VCD info")), "")
        except OSError:
            answer = ""
        found = re.match(r"(ok|[ri] ([0-9a-fx ]+))$", answer.strip())
        if not found:
            raise SimulationError(f"the simulator answered {answer.strip()!r} to {letter!r}")
        return found[2] or ""

    def read_register(self, offset: int) -> int:
        """The 32-bit register at byte `offset`."""
        return int(self._command("r", offset), 16)

    def write_register(self, offset: int, value: int) -> None:
        """Write the 32-bit register at byte `offset`."""
        self._command("w", offset, value)

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes from byte `address` on, which begins a beat; 0 where there is no memory."""
        first, beats = address // self.beat_bytes, -(-size // self.beat_bytes)
        if not beats or first + beats > self._beats:
            return np.zeros(size, np.uint8)
        file = Path(self._folder.name) / "store.hex"
        self._command("s", file.name, address // self.beat_bytes, beats)
        lines = file.read_text().split("\n")
        words = [line for line in lines if line and line[0] not in "/@"]
        content = bytes.fromhex("".join(word.replace("x", "0") for word in words))
        swapped = np.frombuffer(content, np.uint8).reshape(-1, self.beat_bytes)[:, ::-1]
        return swapped.reshape(-1)[:size].copy()

    def write_memory(self, address: int, content: NDArray[np.uint8]) -> None:
        """Write bytes from byte `address` on; whole beats, and nothing where there is no memory."""
        beats = -(-content.size // self.beat_bytes)
        if not beats or address // self.beat_bytes + beats > self._beats:
            return
        padded = np.zeros((beats, self.beat_bytes), np.uint8)
        padded.reshape(-1)[: content.size] = content
        file = Path(self._folder.name) / "load.bin"
        file.write_bytes(padded[:, ::-1].tobytes())
        self._command("l", file.name, address // self.beat_bytes, beats)

    def wait(self) -> None:
        """Return when the interrupt is raised.

        Raises :class:`NoInterrupt` if it is not within :attr:`limit` cycles.
        """
        if not self.wait_at_most(self.limit):
            raise NoInterrupt(f"no interrupt within {self.limit} cycles")

    def wait_at_most(self, cycles: int) -> bool:
        """Whether the interrupt is raised within so many cycles, or ever if `cycles` is 0."""
        raised, time = self._command("i", cycles).split()
        self.time = int(time, 16)
        return raised == "1"

    def dump(self, path: Path, first: int, last: int) -> None:
        """Leave a waveform (VCD) of the times `first` to `last`, in ns; then the simulation ends,
        and whatever is asked of it raises ``SimulationError``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        (Path(self._folder.name) / "waves.vcd").symlink_to(path.resolve())
        self._command("d", "waves.vcd", first, last)

    def set_timing(self, latency: int, gap: int) -> None:
        """Change the memory's timing, see the constructor."""
        self._command("m", latency, gap)

    def set_failing(self, address: int, size: int, fails: bool = True) -> None:
        """Whether beats from byte `address` on, `size` bytes, answer with an error."""
        beats = -(-size // self.beat_bytes)
        self._command("f", address // self.beat_bytes, beats, int(fails))

    def start_trace(self) -> None:
        """Keep what DRAIN writes from now on."""
        self._trace += 1
        self._trace_read = 0
        self._command("t", f"trace-{self._trace}.txt")

    def trace(self) -> Trace:
        """What DRAIN wrote since :meth:`start_trace`, or since the last call."""
        with (Path(self._folder.name) / f"trace-{self._trace}.txt").open("rb") as file:
            file.seek(self._trace_read)
            text = file.read()
        self._trace_read += len(text)
        digits = self._trace_digits
        lines = np.frombuffer(text, np.uint8).reshape(-1, digits + 1)[:, :digits]
        # x and X, for a digit with undefined bits, become more than 15.
        letters = lines >= ord("a")
        nibbles = (lines - np.where(letters, ord("a") - 10, ord("0")).astype(np.uint8))[:, ::-1]
        defined = nibbles.max(axis=1) < 16
        nibbles = np.pad(nibbles, ((0, 0), (0, digits % 2)))
        found = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).astype(np.uint8)
        times = np.ascontiguousarray(found[:, 1:9]).view("<i8")[:, 0]
        return Trace(found[:, 0] != 0, times, found[:, 9:], defined)
