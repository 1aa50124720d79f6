"""Generated faults: each is planted in a copy of the gateware, and a named test must catch it."""

import ast
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

__all__ = ["REGIONS", "Mutant", "Original", "Outcome", "Region", "attempt", "chosen", "mutants"]

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path("out/mutants")
"""Where outcomes are kept, relative to the working directory."""

_LEAST_TIMEOUT = 120.0  # seconds
_COPIED = ("golden", "hw", "sim", "compiler", "estimate", "host", "tests")


@dataclass(frozen=True)
class Region:
    """Where faults are planted, and the tests that must catch them.

    Parameters
    ----------
    name : of the table's rows
    places : file, function in it, and a pattern of the statements that belong to the region
    tests : pytest node ids, quickest first
    """

    name: str
    places: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Parameters
    ----------
    region : name of its region
    file, line : place of the fault, the file relative to the root
    before, after : the source around the fault, without it and with it
    source : the whole file with the fault
    """

    region: str
    file: str
    line: int
    before: str
    after: str
    source: str

    @property
    def change(self) -> str:
        """The change in one line."""
        after = "nothing" if self.after in ("pass", "*[]") else " ".join(self.after.split())
        return f"{' '.join(self.before.split())}  →  {after}"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Parameters
    ----------
    kind : "killed", "survived", or, of no use as a fault, "stillborn": the gateware cannot be
        elaborated or is the same
    test : node id of the test that failed, or that was stopped because it did not end
    ends : False if it was stopped
    """

    kind: str
    test: str = ""
    ends: bool = True


@dataclass(frozen=True)
class Original:
    """The gateware without a fault.

    Parameters
    ----------
    digest : of what it elaborates to
    seconds : that the tests take on it
    """

    digest: str
    seconds: float

    @property
    def timeout(self) -> float:
        """Seconds after which the same tests on a mutant do not end."""
        return max(_LEAST_TIMEOUT, 10 * self.seconds)


_Found = TypeVar("_Found", Original, Outcome)

_ELEMENT = "tests/hw/test_pe.py::test_element_in_every_cycle"
_ARRAY = "tests/hw/test_array.py::test_tiles_without_a_bubble"
_SUMS = "tests/hw/test_adder.py::test_every_pair_of_a_narrow_format"
_PRODUCTS = (
    "tests/hw/test_product.py::test_every_narrow_product[dsp]",
    "tests/hw/test_product.py::test_float32_products[e8m0]",
    "tests/hw/test_product.py::test_every_form[rounding]",
)
_DRIVEN = r"\.eq\("  # what is driven; widths of signals are often generous
_PROGRAMS = "tests/test_accelerator_cycles.py::test_every_counter_of_random_networks_and_memories"
_ERRORS = "tests/test_hostile.py::test_hostile_programs_in_icarus"

REGIONS = (
    Region(
        "processing element",
        (
            ("hw/pe.py", "booth_product", "."),
            ("hw/pe.py", "ProcessingElement.elaborate", r"product|carry|total|act\.eq"),
        ),
        (_ELEMENT, "tests/hw/test_pe.py::test_booth_product_of_every_pair"),
    ),
    Region(
        "swap",
        (
            ("hw/pe.py", "ProcessingElement.elaborate", r"swap|enable|shadow|weight\.eq"),
            ("hw/array.py", "SystolicArray.elaborate", r"swap|enable|codes"),
        ),
        (f"{_ARRAY}[4x3-b4m4]", _ELEMENT),
    ),
    Region(
        "exponent path",
        (("hw/product.py", "FloatProduct.elaborate", r"\b(field|leading|offset)"),),
        _PRODUCTS,
    ),
    Region(
        "adder rounding",
        (("hw/adder.py", "FloatAdder.elaborate", r"\b(up|rounded|sticky|sticky_3|guard)\b"),),
        (_SUMS,),
    ),
    Region(
        "saturation",
        (
            ("hw/adder.py", "FloatAdder.elaborate", r"field_8|max_exponent"),
            ("hw/product.py", "FloatProduct.elaborate", r"\b(over|under|field_6|max_exponent)\b"),
        ),
        (*_PRODUCTS, _SUMS),
    ),
    Region(
        "requantizer",
        (
            ("hw/requantizer.py", "Requantizer.elaborate", "."),
            ("hw/requantizer.py", "Requantizer._tree", "."),
            ("hw/requantizer.py", "Requantizer._float_code", "."),
            ("hw/requantizer.py", "Requantizer._fixed_code", "."),
            ("hw/requantizer.py", "Requantizer._output", "."),
            *(
                ("hw/requantizer.py", name, ".")
                for name in ("_larger", "_shifted", "_magnitude", "_highest")
            ),
        ),
        tuple(
            f"tests/hw/test_requantizer.py::test_blocks[{shapes}-{stall}]"
            for stall in ("0", "0.4")
            for shapes in ("narrow", "wide", "fixed")
        ),
    ),
    Region(
        "fixed point",
        (
            ("hw/fixed_product.py", "FixedProduct.elaborate", "."),
            ("hw/fixed_adder.py", "FixedAdder.elaborate", "."),
        ),
        (
            "tests/hw/test_fixed.py::test_products",
            "tests/hw/test_fixed.py::test_sums",
            "tests/hw/test_fixed.py::test_every_form_of_products",
        ),
    ),
    Region(
        "hazard logic",
        (
            (
                "hw/issue.py",
                "PixelIssue.elaborate",
                r"clash|recent|window|following|older|now\.|tile_ready|issue\.eq|wait",
            ),
        ),
        (
            "tests/hw/test_issue.py::test_one_address_at_every_distance",
            "tests/hw/test_issue.py::test_random_passes",
        ),
    ),
    Region(
        "pass walk",
        (("hw/passes.py", "PassEngine.elaborate", _DRIVEN),),
        (
            "tests/hw/test_passes.py::test_walks",
            "tests/hw/test_passes.py::test_addresses_beyond_the_memories_are_reported",
        ),
    ),
    Region(
        "load",
        (("hw/load.py", "LoadEngine._read", _DRIVEN), ("hw/load.py", "LoadEngine._write", _DRIVEN)),
        ("tests/hw/test_load.py::test_loads", "tests/hw/test_load.py::test_latency_and_throughput"),
    ),
    Region(
        "memory port",
        (
            ("hw/bursts.py", "BurstSplitter.elaborate", _DRIVEN),
            ("hw/read_dma.py", "ReadDma.elaborate", _DRIVEN),
            ("hw/write_dma.py", "WriteDma.elaborate", _DRIVEN),
        ),
        tuple(
            f"tests/hw/test_{port}_dma.py::{test}"
            for port in ("read", "write")
            for test in (
                "test_latency_and_throughput",
                "test_runs",
                f"test_runs_out_of_range_{port}_nothing",
                "test_failing_beats",
                "test_halt",
                "test_bursts_of_one_beat",
            )
        ),
    ),
    Region(
        "sequencer",
        (
            ("hw/sequencer.py", "Sequencer.elaborate", _DRIVEN),
            ("hw/fetch.py", "fetch", _DRIVEN),
        ),
        (_PROGRAMS, _ERRORS),
    ),
    Region(
        "serial sequencer",
        (("hw/serial_sequencer.py", "SerialSequencer.elaborate", _DRIVEN),),
        (f"{_PROGRAMS}[4]", f"{_PROGRAMS}[5]", "tests/test_bus.py::test_serial_control"),
    ),
    Region(
        "drain",
        (
            ("hw/drain.py", "DrainEngine._read", _DRIVEN),
            ("hw/drain.py", "DrainEngine._write", _DRIVEN),
            ("hw/drain.py", "DrainEngine._announce", _DRIVEN),
        ),
        (_PROGRAMS, _ERRORS),
    ),
)

# Reviewed: (file, change) -> why no test can tell the mutant from the original.
EQUIVALENT: dict[tuple[str, str], str] = {}

_SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}


def _variants(node: ast.AST) -> Iterator[ast.expr]:
    """What one expression may be replaced with."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in _SWAPPED:
            yield ast.BinOp(left, _SWAPPED[type(op)](), right)
            if isinstance(op, ast.BitAnd | ast.BitOr | ast.BitXor):
                yield left
                yield right
        case ast.Compare(left, [op], [right]) if type(op) in _COMPARED:
            yield ast.Compare(left, [_COMPARED[type(op)]()], [right])
        case ast.UnaryOp(ast.Invert(), operand):
            yield operand
        case ast.Call(ast.Name("Mux") as function, [condition, one, other]):
            yield ast.Call(function, [condition, other, one], [])
        case ast.Call(ast.Name("delayed") as function, [m, value, cycles, name], keywords):
            longer = ast.BinOp(cycles, ast.Add(), ast.Constant(1))
            yield ast.Call(function, [m, value, longer, name], keywords)
        case ast.Constant(int(value)) if not isinstance(value, bool):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt | ast.expr]:
    """The simple statements of a function and the conditions of its blocks."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Return | ast.Expr):
            yield node
        elif isinstance(node, ast.With):
            yield from (
                item.context_expr.args[0]
                for item in node.items
                if isinstance(item.context_expr, ast.Call) and item.context_expr.args
            )


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions in a node, itself included, but nothing in an f-string: Python 3.11 does not
    know where that is."""
    if isinstance(node, ast.JoinedStr):
        return
    if isinstance(node, ast.expr):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _expressions(child)


def _edits(part: ast.stmt | ast.expr) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Nodes of a statement or condition and the texts that may take their places."""
    if isinstance(part, ast.expr):
        yield from ((part, text) for text in ("1", f"~({ast.unparse(part)})"))
    added = isinstance(part, ast.AugAssign) and ast.unparse(part.target).startswith("m.d.")
    if added and isinstance(part.value, ast.List):
        yield from ((element, "*[]") for element in part.value.elts)
    elif added:
        yield part, "pass"
    for node in _expressions(part):
        for variant in _variants(node):
            text = ast.unparse(ast.fix_missing_locations(variant))
            yield node, text if isinstance(variant, ast.Constant | ast.Name) else f"({text})"


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef):
            for node in owner.body:
                if isinstance(node, ast.FunctionDef):
                    found[f"{owner.name}.{node.name}"] = node
    return found


def mutants(region: Region) -> list[Mutant]:
    """Every mutant of a region, about in the order of the source."""
    found: dict[str, Mutant] = {}
    for file, function, pattern in region.places:
        source = (ROOT / file).read_bytes()
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))

        def span(node: ast.stmt | ast.expr, starts=tuple(starts)) -> tuple[int, int]:
            last, column = node.end_lineno or 0, node.end_col_offset or 0
            return starts[node.lineno - 1] + node.col_offset, starts[last - 1] + column

        for part in _statements(_functions(ast.parse(source))[function]):
            if not re.search(pattern, ast.unparse(part)):
                continue
            spans = [span(part), *map(span, _expressions(part))]
            for node, text in _edits(part):
                begin, end = span(node)
                changed = (source[:begin] + text.encode() + source[end:]).decode()
                # A bare constant or name says little; show the expression that it is in.
                wider = [(b, e) for b, e in spans if b <= begin and e >= end and e - b > 8]
                first, last = min(wider, key=lambda s: s[1] - s[0], default=(begin, end))
                before = source[first:last].decode()
                after = (source[first:begin] + text.encode() + source[end:last]).decode()
                found.setdefault(
                    changed, Mutant(region.name, file, node.lineno, before, after, changed)
                )
    return list(found.values())


# Accelerators that differ in every choice: the digest of what they elaborate to.
_PROBE = dedent("""
    import hashlib
    from amaranth.back import rtlil
    from shiftcore.golden.config import HardwareConfig
    from shiftcore.hw.accelerator import Accelerator
    configs = (
        HardwareConfig(3, 2, 5, 4, "bf16", accumulator_depth=4),
        HardwareConfig(2, 5, 3, 8, "fp32", accumulator_depth=4, scale_multiplier="lut"),
        HardwareConfig(3, 2, 4, 4, "bf16", "fixed33", accumulator_depth=4),
        HardwareConfig(2, 5, 3, 8, "bf16", "fixed20", accumulator_depth=4, scale_multiplier="lut"),
        HardwareConfig(1, 1, 2, 2, "e8m0", "fixed40", accumulator_depth=4),
    )
    texts = [rtlil.convert(Accelerator(c), emit_src=False) for c in configs]
    print(hashlib.sha256("".join(texts).encode()).hexdigest())
""")


def _copy(target: Path) -> Path:
    """A copy of the package that imports as ``shiftcore`` from `target`; returns its folder."""
    package = target / "shiftcore"
    for folder in _COPIED:
        shutil.copytree(
            ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("__init__.py", "pyproject.toml"):
        shutil.copyfile(ROOT / file, package / file)
    return package


def _python(package: Path, timeout: float | None, *arguments: str) -> tuple[int | None, str]:
    """Run Python in a copy; its exit status, None if it does not end in `timeout` seconds, and what
    it has printed."""
    variables = {
        "PYTHONPATH": str(package.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SHIFTCORE_SIMULATOR": "icarus",
        "SHIFTCORE_WAVES": "",
    }
    # A session of its own, so that a simulator that hangs ends with it.
    with subprocess.Popen(
        [sys.executable, "-P", *arguments],
        cwd=package,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output
        return process.returncode, output


def _probe(package: Path) -> str | None:
    status, output = _python(package, _LEAST_TIMEOUT, "-c", _PROBE)
    return output if status == 0 else None


def _test(package: Path, tests: Sequence[str], timeout: float | None) -> Outcome:
    """Run the `tests` in a copy. Raises ``RuntimeError`` if they cannot be run."""
    status, output = _python(package, timeout, "-m", "pytest", "-x", "-v", "-rfE", *tests)
    if status == 0:
        return Outcome("survived")
    if status is None:
        # Each test has a line, which begins with its name as soon as it runs.
        begun = re.findall(r"^(\S+::\S+)", output, flags=re.MULTILINE)
        if not begun:
            raise RuntimeError(f"pytest began no test within {timeout} s: {output[-2000:]}")
        return Outcome("killed", begun[-1], ends=False)
    failed = re.search(r"^FAILED (\S+)", output, flags=re.MULTILINE)
    if status != 1 or not failed:
        raise RuntimeError(f"pytest could not run {' '.join(tests)}: {output[-2000:]}")
    return Outcome("killed", failed[1])


def attempt(mutant: Mutant, tests: Sequence[str], original: Original | None = None) -> Outcome:
    """Plant a mutant in a copy of the package and run the `tests` there.

    Parameters
    ----------
    original : the unchanged gateware, see :func:`unchanged`; without it a mutant that changes
        nothing is not told apart, and the tests have two minutes

    Raises ``RuntimeError`` if the tests cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="shiftcore-mutant-") as folder:
        package = _copy(Path(folder))
        (package / mutant.file).write_text(mutant.source, encoding="utf-8")
        if original is not None and _probe(package) in (None, original.digest):
            return Outcome("stillborn")
        return _test(package, tests, _LEAST_TIMEOUT if original is None else original.timeout)


def unchanged(tests: Sequence[str]) -> Original:
    """The gateware as it is, after all `tests` have passed on a copy of it.

    Raises ``RuntimeError`` if one fails: then no mutant can be judged.
    """
    with tempfile.TemporaryDirectory(prefix="shiftcore-mutant-") as folder:
        package = _copy(Path(folder))
        digest = _probe(package)
        begin = time.monotonic()
        outcome = _test(package, tests, None)
        seconds = time.monotonic() - begin
    if digest is None or outcome.kind != "survived":
        raise RuntimeError(f"the gateware fails without any fault: {outcome.test}")
    return Original(digest, seconds)


def _fingerprint() -> str:
    """Hash of everything that an outcome depends on, apart from the mutant."""
    files = [path for folder in _COPIED for path in sorted((ROOT / folder).rglob("*.[ps][yv]"))]
    digest = hashlib.sha256()
    for path in files:
        if path != Path(__file__).resolve():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def chosen(
    region: Region, count: int, seed: int, judge: Callable[[Mutant], Outcome]
) -> Iterator[tuple[Mutant, Outcome]]:
    """The first `count` mutants of a region in random order that are faults, with their outcomes.

    A mutant that `judge` calls stillborn makes way for the next. Mutants known to be equivalent
    come along, but do not count.
    """
    order = mutants(region)
    random.Random(f"{seed} {region.name}").shuffle(order)
    outcomes = ((mutant, judge(mutant)) for mutant in order)
    faults = ((mutant, outcome) for mutant, outcome in outcomes if outcome.kind != "stillborn")
    taken = 0
    for mutant, outcome in faults:
        yield mutant, outcome
        taken += (mutant.file, mutant.change) not in EQUIVALENT
        if taken == count:
            return


def _table(rows: Sequence[tuple[Mutant, Outcome]]) -> Table:
    table = Table(title=f"{len(rows)} mutants")
    for heading in ("region", "place", "change", "killed by"):
        table.add_column(heading, overflow="fold")
    for mutant, outcome in rows:
        reason = EQUIVALENT.get((mutant.file, mutant.change))
        end = outcome.test.removeprefix("tests/hw/")
        if outcome.kind == "survived":
            end = f"[dim]equivalent: {reason}[/]" if reason else "[bold red]SURVIVED[/]"
        else:
            end = end.replace("[", r"\[") + ("" if outcome.ends else ", which does not end")
        change = mutant.change.replace("[", r"\[")
        table.add_row(mutant.region, f"{mutant.file}:{mutant.line}", change, end)
    return table


@click.command()
@click.option("--seed", default=1, show_default=True, help="Which mutants are drawn.")
@click.option("--count", default=5, show_default=True, help="Mutants of each region.")
@click.option("--region", "names", multiple=True, type=click.Choice([r.name for r in REGIONS]))
@click.option("--jobs", default=min(2, os.cpu_count() or 1), show_default=True)
@click.option("--list", "listing", is_flag=True, help="List the candidates and run nothing.")
def main(seed: int, count: int, names: tuple[str, ...], jobs: int, listing: bool) -> None:
    """Plant generated faults in the gateware; a named test must catch each.

    Outcomes are kept in out/mutants; a further run goes on where this one stopped, unless the
    gateware or its tests have changed.
    """
    if not (ROOT / "tests" / "hw").is_dir():
        raise click.ClickException(f"mutants need a checkout: there is no {ROOT / 'tests' / 'hw'}")
    console = Console()
    regions = [region for region in REGIONS if not names or region.name in names]
    if listing:
        for region in regions:
            console.print(
                f"[bold]{region.name}[/], tests: {', '.join(region.tests)}", soft_wrap=True
            )
            for mutant in mutants(region):
                console.print(f"  {mutant.file}:{mutant.line}  {mutant.change}", markup=False)
        return

    CACHE.mkdir(parents=True, exist_ok=True)
    fingerprint = _fingerprint()

    def remembered(kind: type[_Found], key: str, work: Callable[[], _Found]) -> _Found:
        name = hashlib.sha256(f"{fingerprint} {key}".encode()).hexdigest()[:24]
        path = CACHE / f"{name}.json"
        if path.exists():
            return kind(**json.loads(path.read_text(encoding="utf-8")))
        found = work()
        path.write_text(json.dumps(vars(found)), encoding="utf-8")
        return found

    def run(region: Region) -> list[tuple[Mutant, Outcome]]:
        key = f"{region.name} {region.tests}"
        original = remembered(Original, key, lambda: unchanged(region.tests))

        def judge(mutant: Mutant) -> Outcome:
            return remembered(
                Outcome, f"{key} {mutant.source}", lambda: attempt(mutant, region.tests, original)
            )

        return list(chosen(region, count, seed, judge))

    rows: list[tuple[Mutant, Outcome]] = []
    try:
        with ThreadPoolExecutor(jobs) as pool:
            for found in track(pool.map(run, regions), "regions", total=len(regions)):
                rows += found
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    console.print(_table(rows))
    survivors = [
        mutant
        for mutant, outcome in rows
        if outcome.kind == "survived" and (mutant.file, mutant.change) not in EQUIVALENT
    ]
    killed = sum(outcome.kind == "killed" for _, outcome in rows)
    console.print(f"{killed} killed, {len(survivors)} survived")
    if survivors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
