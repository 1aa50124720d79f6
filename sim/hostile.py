"""Hostile programs: whatever is in memory, a run ends in time, and the next valid one is right."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..estimate.accelerator import predict
from ..golden.accelerator import AcceleratorSpec, longest_run
from ..golden.config import HardwareConfig
from ..golden.isa import Drain, Error, Instruction, Load, Pass, Region
from ..golden.machine import Machine, MachineRun
from ..golden.program import Program
from ..golden.registers import TIMED, counters
from ..golden.tickets import MachineError, check_order, check_written
from ..golden.validity import fetched, outcomes
from ..host.driver import Accelerator, AcceleratorError
from .hostile_programs import CONFIGS, TIMEOUT, HostileCase, Kind, hostile_case
from .resume import current_sources, resume
from .runner import SimulationError, Simulator
from .system import NoInterrupt, SimulatedSystem, answer_cycles

__all__ = ["Outcome", "hostile_cases", "run_cases", "shortcomings"]

_BASE = 4096
_MEMORY = 1 << 15
"""bytes that the cases use"""
_CHUNK = 50
_NEAR = 64
"""cycles that a host without a time-out in the hardware may be late: accesses to registers"""


@dataclass(frozen=True)
class Outcome:
    """How a hostile program ended.

    Parameters
    ----------
    seed, sources : see :mod:`~shiftcore.sim.resume`
    accelerator : which one it went to, see :func:`_name`
    kind : what was done to a valid program, a :class:`~shiftcore.sim.hostile_programs.Kind`
    code : name of the reason for which the run halted, NONE if it finished; TIMEOUT, too, if the
        host gave up, which has to do so under serial control
    reached_pass : pixels went through the array
    cycles, bound : of the run, and how many are allowed
    decided : the model allows this code and no other
    computed : the model accepts the program, and its output is the model's
    failure : what is wrong, "" if nothing is
    """

    seed: int
    sources: str
    accelerator: str
    kind: str
    code: str = ""
    reached_pass: bool = False
    cycles: int = 0
    bound: int = 0
    decided: bool = False
    computed: bool = False
    failure: str = ""


@dataclass(frozen=True, eq=False)
class _Expectation:
    """What the models say: the codes of which the run ends with one, and if it ends with NONE all
    counters and, where it is defined, what was computed."""

    codes: frozenset[Error]
    counters: dict[str, int] | None = None
    run: MachineRun | None = None


def _least_cycles(instructions: Iterable[Instruction]) -> int:
    """Cycles that they take at least, all together: an engine does a pixel or a word a cycle."""
    spent = Counter[type]()
    for item in instructions:
        if isinstance(item, Load):
            spent[Load] += item.words * item.rows * item.blocks
        elif isinstance(item, Pass):
            spent[Pass] += item.pixels
        elif isinstance(item, Drain):
            spent[Drain] += item.rows * item.pixels
    return max(spent.values(), default=0)


def _expected(case: HostileCase, inputs: NDArray[np.uint8], latency: int, gap: int) -> _Expectation:
    config = case.valid.config
    if case.failing is not None:  # valid programs use all of every region
        written = case.failing[0] in (Region.SCRATCH, Region.OUTPUT)
        return _Expectation(frozenset([Error.WRITE_FAILED if written else Error.READ_FAILED]))
    instructions, _ = fetched(case.content, config, case.sizes[Region.MODEL])
    codes = outcomes(case.content, config, case.sizes)
    least = _least_cycles(instructions)
    # Nobody counts the cycles up to an error; with little to do it comes long before the time-out.
    timeout = frozenset([Error.TIMEOUT])
    late = timeout if least > case.timeout // 8 else frozenset()
    if not codes <= {Error.NONE, Error.DEADLOCK, Error.WEIGHTS_LEFT, Error.TILE_MISMATCH}:
        return _Expectation(codes | late)
    if least > case.timeout:
        return _Expectation(codes - {Error.NONE} | timeout)
    program = case.with_instructions(instructions)
    try:
        model = predict(program, latency=latency, gap=gap).counters()
    except MachineError as error:
        return _Expectation(codes & {error.code} | late)
    # Two busy cycles come before the one that the time-out counts as cycle 0.
    spare = case.timeout - (model["cycles"] - 3)
    if config.accelerator.serial and abs(spare) < _NEAR:
        codes |= timeout
    elif spare <= 0:
        return _Expectation(timeout)
    return _Expectation(codes & {Error.NONE, *timeout}, model, _computed(program, inputs))


def _computed(program: Program, inputs: NDArray[np.uint8]) -> MachineRun | None:
    """What the model computes, None if that is not defined."""
    try:
        check_order(program)
        check_written(program)
        return Machine(program).run(inputs)
    except MachineError:
        return None


class _Failure(Exception):
    """What a case shows to be wrong."""


def _guard(system: SimulatedSystem, accelerator: Accelerator) -> None:
    """Let memory fail wherever the accelerator has no business."""
    assert accelerator.program is not None
    system.set_failing(0, _MEMORY)
    for region, (address, _) in accelerator.place(1).items():
        size = accelerator.program.sizes[region] * system.beat_bytes
        system.set_failing(address, size, fails=False)


def _name(config: HardwareConfig) -> str:
    """Of one of :data:`~shiftcore.sim.hostile_programs.CONFIGS`."""
    return f"{config.control}, {config.accumulator}"


def _set_timing(
    system: SimulatedSystem, spec: AcceleratorSpec, latency: int, gap: int, timeout: int
) -> int:
    """Set the memory's timing, and how long to wait; the cycles that a run may take.

    Under serial control, which has no time-out, the host waits for so long and resets.
    """
    system.set_timing(latency, gap)
    longest = longest_run(timeout, answer_cycles(spec, latency, gap))
    system.limit = timeout if spec.serial else longest
    return longest + _NEAR * spec.serial


def _reset(accelerator: Accelerator) -> None:
    """Reset it. Raises ``_Failure``."""
    try:
        accelerator.reset()
    except (AcceleratorError, SimulationError) as error:
        raise _Failure(str(error)) from None


def _compare_counters(
    accelerator: Accelerator, model: dict[str, int], run: MachineRun | None, where: str = ""
) -> None:
    """Compare all that the accelerator has. Raises ``_Failure``."""
    assert accelerator.program is not None
    names = counters(accelerator.program.config.accelerator)
    expected = {name.lower(): model[name.lower()] for name in names if name in TIMED}
    found = accelerator.counters()
    if found != expected:
        raise _Failure(f"{where}counted {found}, the model {expected}")
    if run is not None and "SATURATED" in names:
        pixels = int(run.saturated.sum())
        if accelerator.saturated() != pixels:
            raise _Failure(
                f"{where}counted {accelerator.saturated()} saturated pixels, the model {pixels}"
            )


def _run_hostile(
    system: SimulatedSystem,
    accelerator: Accelerator,
    case: HostileCase,
    rng: Generator,
    outcome: Outcome,
) -> Outcome:
    """Run a case and complete its outcome. Raises ``_Failure``."""
    latency, gap = int(rng.integers(1, 30)), int(rng.integers(3))
    spec = case.valid.config.accelerator
    bound = _set_timing(system, spec, latency, gap, case.timeout)
    inputs = rng.integers(0, 256, (1, case.sizes[Region.INPUT] * spec.beat_bytes)).astype(np.uint8)
    expected = _expected(case, inputs, latency, gap)

    memory = rng.integers(0, 256, _MEMORY).astype(np.uint8)
    system.write_memory(0, memory)
    accelerator.load(case.program)
    places = {region: address for region, (address, _) in accelerator.place(1).items()}
    size = case.sizes[Region.OUTPUT] * spec.beat_bytes
    system.write_memory(places[Region.OUTPUT], np.zeros(size, np.uint8))
    _guard(system, accelerator)
    if case.failing is not None:
        region, first, beats = case.failing
        system.set_failing(places[region] + first * spec.beat_bytes, beats * spec.beat_bytes)

    code, output = Error.NONE, None
    try:
        output = accelerator.run(inputs, timeout=0 if spec.serial else case.timeout)
    except AcceleratorError as error:
        code = error.code
        if code is Error.NONE:
            raise _Failure(str(error)) from None
    except NoInterrupt as error:
        if not spec.serial:
            raise _Failure(f"neither done nor error: {error}") from None
        code = Error.TIMEOUT
        _reset(accelerator)
    except SimulationError as error:
        raise _Failure(str(error)) from None
    counted = accelerator.counters()
    if accelerator.counters() != counted:
        raise _Failure("counters go on after the end of the run")
    if code not in expected.codes:
        allowed = ", ".join(sorted(each.name for each in expected.codes))
        raise _Failure(f"ended with {code.name}, the model says {allowed}")
    if counted["cycles"] > bound:
        raise _Failure(f"took {counted['cycles']} cycles, at most {bound} are allowed")
    if output is not None and expected.counters is not None:
        if expected.run is not None and not np.array_equal(expected.run.outputs, output):
            raise _Failure("finished with another result than the model's")
        _compare_counters(accelerator, expected.counters, expected.run)

    after = system.read_memory(0, _MEMORY)
    for region, content in ((Region.MODEL, case.content), (Region.INPUT, inputs[0])):
        memory[places[region] :][: content.size] = content
    for region in (Region.SCRATCH, Region.OUTPUT):
        writable = slice(places[region], places[region] + case.sizes[region] * spec.beat_bytes)
        memory[writable] = after[writable]
    wrong = np.flatnonzero(after != memory)
    if wrong.size:
        raise _Failure(f"byte {wrong[0]} was written, which is in no region for that")
    known = counted if "pixels" in counted else expected.counters or {"pixels": 0}
    return replace(
        outcome,
        code=code.name,
        reached_pass=known["pixels"] > 0,
        cycles=counted["cycles"],
        bound=bound,
        decided=len(expected.codes) == 1,
        computed=output is not None and expected.run is not None,
    )


def _run_valid(
    system: SimulatedSystem, accelerator: Accelerator, program: Program, rng: Generator
) -> None:
    """Run a valid program as if nothing had been. Raises ``_Failure``."""
    spec = program.config.accelerator
    _set_timing(system, spec, 20, 0, TIMEOUT)
    accelerator.load(program)
    _guard(system, accelerator)
    inputs = rng.integers(0, 256, (1, program.sizes[Region.INPUT] * spec.beat_bytes)).astype(
        np.uint8
    )
    try:
        found = accelerator.run(inputs, timeout=0 if spec.serial else TIMEOUT)
    except (AcceleratorError, SimulationError) as error:
        raise _Failure(f"the valid program after it: {error}") from None
    run = Machine(program).run(inputs)
    if not np.array_equal(found, run.outputs):
        raise _Failure("the valid program after it has another result than the model's")
    model = predict(program, latency=20, gap=0).counters()
    _compare_counters(accelerator, model, run, "the valid program after it: ")


def hostile_cases(seeds: range, simulator: Simulator = "verilator") -> Iterator[Outcome]:
    """Run the hostile programs of some seeds, see :func:`run_cases`."""
    cases = (
        (seed, hostile_case(np.random.default_rng([seed, 99]), CONFIGS[seed % len(CONFIGS)]))
        for seed in seeds
    )
    return run_cases(cases, simulator)


def run_cases(
    cases: Iterable[tuple[int, HostileCase]], simulator: Simulator = "verilator"
) -> Iterator[Outcome]:
    """Run hostile programs, each with the seed of its inputs, on one accelerator of each
    configuration; after each one a valid program: three times of four after a soft reset, else just
    started.

    Checked is that a run ends within :func:`~shiftcore.golden.accelerator.longest_run`, with the
    result of the models; that no byte changes outside SCRATCH and OUTPUT; that nothing is read or
    written outside the regions, where memory answers with errors; and the valid program's output.
    Under serial control, which has no time-out, the host gives up, and the reset has to be complete
    within that bound.
    """
    systems: dict[HardwareConfig, SimulatedSystem] = {}
    try:
        for seed, case in cases:
            rng = np.random.default_rng([seed, 98])
            config = case.valid.config
            found = Outcome(seed, current_sources(), _name(config), str(case.kind))
            if config not in systems:
                systems[config] = SimulatedSystem(config, _MEMORY, simulator=simulator)
            accelerator = Accelerator(systems[config], _BASE)
            try:
                found = _run_hostile(systems[config], accelerator, case, rng, found)
                if rng.random() < 0.75:
                    _reset(accelerator)
                _run_valid(systems[config], accelerator, case.valid, rng)
            except _Failure as error:
                found = replace(found, failure=str(error))
                systems.pop(config).close()
            yield found
    finally:
        for system in systems.values():
            system.close()


def shortcomings(outcomes: Sequence[Outcome]) -> list[str]:
    """What a campaign lacks: half of it one-field mutations, 30 % that reach a PASS, and for each
    accelerator every code."""
    if not outcomes:
        return ["no case was run"]
    count = len(outcomes)
    found = [f"seed {each.seed}: {each.failure}" for each in outcomes if each.failure]
    mutations = sum(each.kind == Kind.FIELD for each in outcomes)
    reached = sum(each.reached_pass for each in outcomes)
    if 2 * mutations < count:
        found.append(f"at least half must be one-field mutations, not {mutations} of {count}")
    if 10 * reached < 3 * count:
        found.append(f"at least 30 % must reach a PASS, not {reached} of {count}")
    for name in map(_name, CONFIGS):
        codes = {each.code for each in outcomes if each.accelerator == name}
        missing = sorted({code.name for code in Error} - codes)
        if missing:
            found.append(f"{name}: every code must come up; {', '.join(missing)} did not")
    return found


def _cases(seeds: range) -> list[Outcome]:
    return list(hostile_cases(seeds))


def _summary(outcomes: Sequence[Outcome]) -> Table:
    count = len(outcomes)
    table = Table(title=f"{count:,} hostile programs", show_header=False)

    def share(name: str, chosen: Iterable[bool]) -> None:
        number = sum(chosen)
        table.add_row(name, f"{number:,}", f"{number / max(count, 1):.1%}")

    for name in map(_name, CONFIGS):
        share(name, (each.accelerator == name for each in outcomes))
    table.add_section()
    for kind in Kind:
        share(str(kind), (each.kind == kind for each in outcomes))
    table.add_section()
    share("reached a PASS", (each.reached_pass for each in outcomes))
    share("the model allows one code only", (each.decided for each in outcomes))
    share("output and counters compared", (each.computed for each in outcomes))
    table.add_section()
    for code in Error:
        share(f"ended with {code.name}", (each.code == code.name for each in outcomes))
    table.add_section()
    longest = max(outcomes, key=lambda each: each.cycles / max(each.bound, 1))
    table.add_row("closest to its bound", f"{longest.cycles:,} cycles", f"of {longest.bound:,}")
    share("failures", (bool(each.failure) for each in outcomes))
    return table


@click.command()
@click.option("--cases", default=10_000, show_default=True, help="Seeds 0 to this, less one.")
@click.option("--jobs", default=min(2, os.cpu_count() or 1), show_default=True)
@click.option(
    "-o", "--output", default=Path("out/hostile.jsonl"), show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
)  # fmt: skip
def main(cases: int, jobs: int, output: Path) -> None:
    """Run hostile programs on small accelerators in Verilator.

    Finished cases are kept in a file; a further run goes on where this one stopped, unless the
    gateware, the models or the simulations have changed.
    """
    found, failed = resume(
        output, Outcome, _cases, cases, title="hostile programs", jobs=jobs, chunk=_CHUNK
    )
    wrong = [f"seeds from {seed} on: {reason}" for seed, reason in sorted(failed.items())]
    wrong += shortcomings(found)
    if found:
        Console().print(_summary(found))
    for line in wrong:
        click.echo(line, err=True)
    if wrong:
        raise click.ClickException(f"{len(wrong)} of the conditions above are not met")


if __name__ == "__main__":
    main()
