"""The ``shiftcore`` command: parses arguments, calls the library, prints."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import SafetensorError

from .golden.config import KEYS, HardwareConfig
from .golden.fixed import ACCUMULATORS
from .golden.floats import SCALE_FORMATS

if TYPE_CHECKING:
    from .estimate.network import Estimate
    from .quant.convert import QuantConfig

__all__ = ["main"]

_STATUS = Console(stderr=True)


class _Command(click.Group):
    """Turns the library's errors into one line and a non-zero exit."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (
            ValueError,
            RuntimeError,
            OSError,
            FloatingPointError,
            ModuleNotFoundError,
            SafetensorError,
        ) as error:
            if isinstance(error, click.exceptions.Exit):
                raise
            if isinstance(error, ModuleNotFoundError):
                message = f"{error.name} is not installed: pip install 'shiftcore[all]'"
            else:
                message = " ".join(str(error).split())
            raise click.ClickException(message) from error


def _as_json(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on standard output."
    )(function)


_PATH = click.Path(path_type=Path, dir_okay=False)
_ACCUMULATORS = f"{ACCUMULATORS[0]}, or {ACCUMULATORS[1]} to {ACCUMULATORS[-1]}"
_margin_bits = click.option(
    "--margin-bits",
    type=int,
    help="Room of fixed-point accumulators above the largest sum on the images.  [default: 3]",
)


def _print(as_json: bool, values: dict[str, Any], table: Table | None = None) -> None:
    if as_json:
        click.echo(json.dumps(values, default=str))
        return
    if table is None:
        table = Table(show_header=False, box=None)
        for key, value in values.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(key.replace("_", " "), shown)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


@contextmanager
def _busy(message: str) -> Iterator[None]:
    with _STATUS.status(message):
        yield


def _check_folder(path: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path}: cannot be written")


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shiftcore")
def main() -> None:
    """Trained CNNs to bit-exact, block-scaled integer accelerators for FPGAs."""


@main.command("import")
@click.argument("model", type=_PATH)
@_as_json
def import_(model: Path, as_json: bool) -> None:
    """Report which layers of MODEL (a torch.export archive, .pt2) run on the accelerator.

    MACs are those of convolutions and linear layers, for one image; on_array is the part of them
    that the accelerator computes, 0 to 1. Fails if any layer is not supported.
    """
    from .quant.coverage import coverage

    with _busy("reading"):
        found = coverage(model)
    values = {
        "layers": [asdict(layer) for layer in found.layers],
        "macs": found.macs,
        "on_array": found.on_array,
        "unsupported": [asdict(problem) for problem in found.unsupported],
    }
    table = Table(
        title=f"{model.name}: {len(found.layers)} layers, {found.macs:,} MACs an image, "
        f"{found.on_array:.1%} on the array"
    )
    for column in ("layer", "op", "shape", "MACs", "on array"):
        table.add_column(column, justify="right" if column == "MACs" else "left")
    for row in found.layers:
        shape = "x".join(map(str, row.shape))
        table.add_row(row.name, row.op, shape, f"{row.macs:,}", "yes" if row.on_array else "no")
    _print(as_json, values, table)
    if found.unsupported:
        for problem in found.unsupported:
            click.echo(
                f"layer {problem.name!r} {problem.op}: {problem.problem}; {problem.remedy}",
                err=True,
            )
        raise ValueError(f"{len(found.unsupported)} layers of {model} are not supported")


@main.command()
@click.argument("model", type=_PATH)
@click.option("--calib", required=True, type=_PATH, help="Images (npz, x: NCHW float32).")
@click.option("-o", "--output", required=True, type=_PATH, help="Network file to write.")
@click.option("--weight-bits", default=4, show_default=True)
@click.option("--act-bits", default=4, show_default=True)
@click.option("--block", default=16, show_default=True, help="Channels that share an exponent.")
@click.option("--scale", default="bf16", show_default=True, help=f"{', '.join(SCALE_FORMATS)}")
@click.option(
    "--method",
    default="compensated",
    show_default=True,
    type=click.Choice(["compensated", "joint", "kl", "l2"]),
    help="How codes and scales are chosen.",
)
@click.option("--accumulator", default="float32", show_default=True, help=_ACCUMULATORS)
@_margin_bits
@click.option(
    "--epochs",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Passes over the images to learn from the float network in, after that.",
)
@click.option("--rate", type=float, help="Learning rate, in weight codes.  [default: 0.002]")
@click.option("--batch", type=int, help="Images of a learning step.  [default: 64]")
@click.option("--seed", type=int, help="Of the order of the images.  [default: 0]")
@click.option("--checkpoint", type=_PATH, help="Where learning writes its state, and goes on from.")
@_as_json
def quantize(
    model: Path,
    calib: Path,
    output: Path,
    weight_bits: int,
    act_bits: int,
    block: int,
    scale: str,
    method: Literal["compensated", "joint", "kl", "l2"],
    accumulator: str,
    margin_bits: int | None,
    epochs: int,
    rate: float | None,
    batch: int | None,
    seed: int | None,
    checkpoint: Path | None,
    as_json: bool,
) -> None:
    """Quantize MODEL (a torch.export archive, .pt2) with DSConv.

    With --epochs the codes, scales and biases then learn to answer as MODEL does (distillation). No
    labels are read. Under torchrun several processes share that work.
    """
    from .quant.adapt import SHADOWS, distill_network
    from .quant.convert import QuantConfig, as_graph
    from .quant.convert import quantize as convert
    from .quant.data import load_images
    from .quant.report import measure
    from .quant.training import check_checkpoint, is_first_process

    _check_folder(output)
    images, _ = load_images(calib)
    config = QuantConfig(weight_bits, act_bits, block, scale, method, accumulator=accumulator)
    config = _with_margin(config, margin_bits)
    given = {"rate": rate, "batch": batch, "seed": seed, "checkpoint": checkpoint}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not epochs:
        raise ValueError(f"--{next(iter(given))} is for learning, which needs --epochs")
    learning = replace(SHADOWS, epochs=max(epochs, 1), **given)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
        if checkpoint.parent.is_dir():
            _check_folder(checkpoint)
    with _busy("reading"):
        graph = as_graph(model, images)
    with _busy("quantizing"):
        network = convert(graph, images, config)
    if epochs:
        network = distill_network(graph, network, images, learning)
        if not is_first_process():
            return
    with _busy("measuring"):
        report = measure(graph, network, images)
    network.save(output)
    values = {
        "layers": len(network.layers),
        "weight_bytes": report.weight_bytes,
        "float_bytes": report.float_bytes,
        "sqnr_db": report.sqnr_db,
    }
    if accumulator != "float32":
        values["saturated_sums"] = report.saturated_sums
    _print(as_json, values)


def _with_margin(config: "QuantConfig", margin_bits: int | None) -> "QuantConfig":
    """`config` with what ``--margin-bits`` says, if it was given."""
    if margin_bits is None:
        return config
    if config.accumulator == "float32":
        raise ValueError("--margin-bits is for fixed-point accumulators, as --accumulator fixed32")
    return replace(config, margin_bits=margin_bits)


class _Megahertz(click.FloatRange):
    """A clock; infinity and NaN are none."""

    def __init__(self) -> None:
        super().__init__(0, 10_000, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        clock = super().convert(value, param, ctx)
        if math.isnan(clock):
            self.fail(f"{value!r} is no clock", param, ctx)
        return clock


def _memory(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how fast the memory is."""
    latency = click.option(
        "--latency", default=20, show_default=True, type=click.IntRange(0, 100_000),
        help="Cycles to the first beat of memory.",
    )  # fmt: skip
    gap = click.option(
        "--gap", default=0, show_default=True, type=click.IntRange(0, 1_000),
        help="Cycles between beats: bus_bits/8/(1+gap) B/cycle.",
    )  # fmt: skip
    return latency(gap(function))


class _Numbers(click.ParamType):
    """Whole numbers with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} must be whole numbers with commas between them", param, ctx)


@main.command("search-bits")
@click.argument("model", type=_PATH)
@click.option("--calib", required=True, type=_PATH, help="Images (npz, x; labels y if present).")
@click.option("--budget-bytes", type=click.IntRange(1), help="Of codes, scales and biases.")
@click.option("--budget-cycles", type=click.IntRange(1), help="Of one image; needs --hw.")
@click.option(
    "--hw", type=_PATH,
    help="Hardware configuration (TOML), with rows = B and act_bits = m for each candidate.",
)  # fmt: skip
@click.option("--weight-bits", type=_Numbers(), default="2,3,4,8", show_default=True)
@click.option("--act-bits", type=_Numbers(), default="4,8", show_default=True)
@click.option("--blocks", type=_Numbers(), default="8,16,32", show_default=True)
@click.option(
    "--points", type=click.IntRange(2), default=8, show_default=True,
    help="Networks that are measured, about, beside the uniform ones.",
)  # fmt: skip
@click.option("--scale", help=f"{', '.join(SCALE_FORMATS)}.  [default: that of --hw, or bf16]")
@click.option("--accumulator", help=f"{_ACCUMULATORS}.  [default: that of --hw, or float32]")
@_margin_bits
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the chosen network, the table and the plot.",
)
@_as_json
def search_bits(
    model: Path,
    calib: Path,
    budget_bytes: int | None,
    budget_cycles: int | None,
    hw: Path | None,
    weight_bits: tuple[int, ...],
    act_bits: tuple[int, ...],
    blocks: tuple[int, ...],
    points: int,
    scale: str | None,
    accumulator: str | None,
    margin_bits: int | None,
    output: Path,
    as_json: bool,
) -> None:
    """Choose the bits of MODEL's layers within a budget.

    Weight bits b are each layer's own; activation bits m and the block B, which is the rows of the
    array, are the network's. One image in four is held out and measures what is shown: the KL
    divergence from the float network in nats, and top-1 if there are labels. With --hw, weights
    wider than the array's are left out. Leaves net.safetensors, front.json, front.md and front.svg.
    """
    from .estimate.network import network_cycles
    from .quant.convert import QuantConfig, as_graph
    from .quant.data import load_images
    from .quant.documents import check_plots
    from .quant.progress import progress_bars
    from .quant.search import Budget, search
    from .quant.search_report import figures, front_table, write_search

    if budget_bytes is None and budget_cycles is None:
        raise ValueError("a budget is missing: --budget-bytes, --budget-cycles or both")
    if budget_cycles is not None and hw is None:
        raise ValueError("--budget-cycles needs --hw, the hardware that they are counted on")
    _check_folder(output)
    check_plots()
    cycles = None
    if hw is not None:
        config = HardwareConfig.load(hw)
        narrow = tuple(bits for bits in weight_bits if bits <= config.weight_bits)
        if not narrow:
            raise ValueError(
                f"{hw} has {config.weight_bits}-bit weights: --weight-bits must name that or fewer"
            )
        weight_bits, cycles = narrow, partial(network_cycles, config)
        for name, given in (("scale", scale), ("accumulator", accumulator)):
            held = getattr(config, name)
            if given not in (None, held):
                raise ValueError(
                    f"{hw} has {name} = {held!r}: --{name} must be that, not {given!r}"
                )
        scale, accumulator = config.scale, config.accumulator
    quantization = QuantConfig(scale=scale or "bf16", accumulator=accumulator or "float32")
    quantization = _with_margin(quantization, margin_bits)
    images, labels = load_images(calib)
    with _busy("reading"):
        graph = as_graph(model, images)
    with progress_bars(_STATUS) as progress:
        found = search(
            graph,
            images,
            Budget(budget_bytes or math.inf, budget_cycles or math.inf),
            quantization,
            weight_bits=weight_bits,
            act_bits=act_bits,
            blocks=blocks,
            labels=labels,
            cycles=cycles,
            points=points,
            progress=progress,
        )
    with _busy("drawing"):
        write_search(output, model.name, found)
    chosen = figures(found.chosen)
    if as_json:
        _print(True, {"chosen": chosen, "front": [figures(point) for point in found.front]})
        return
    title, headings, rows = front_table(found)
    table = Table(title=f"{title}; * is in {output / 'net.safetensors'}")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    _print(False, {}, table)


class _Budget(click.ParamType):
    """What may be taken of a device: ``lut=60000,bram=100``."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        try:
            return {name: int(most) for name, most in (x.split("=") for x in value.split(","))}
        except ValueError:
            self.fail(f"{value!r} must be like lut=60000,bram=100", param, ctx)


@main.command()
@click.argument("network", type=_PATH)
@click.option("--target", required=True, help="Device, such as ecp5-85k-8.")
@click.option("--calib", type=_PATH, help="Images of a model (npz, x: NCHW float32).")
@click.option(
    "--budget", type=_Budget(),
    help="The most lut, ff, dsp, bram.  [default: what the device holds]",
)  # fmt: skip
@click.option(
    "--objective", "objectives", multiple=True, default=["images_per_s"], show_default=True,
    help="images_per_s, sqnr_db (more is better), cycles, lut, ff, dsp, bram (less is); "
    "of several the first one decides. The SQNR of a model is always one.",
)  # fmt: skip
@click.option(
    "--least-sqnr", default=12.0, show_default=True,
    help="Signal to noise of a model's scores, dB, that must be kept.",
)  # fmt: skip
@click.option(
    "--vary", multiple=True, metavar="KEY=A,B,...",
    help="Candidates of a key of the hardware configuration; one fixes it.",
)  # fmt: skip
@click.option("--hw", type=_PATH, help="Hardware configuration (TOML) of the keys that are fixed.")
@click.option("--trials", default=200, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--synthesize", default=3, show_default=True, type=click.IntRange(0),
    help="Points of the front, the best first, that are synthesized.",
)  # fmt: skip
@click.option(
    "--on", default="local", show_default=True,
    help="local: processes of this machine; here: this process; slurm, lsf, pbs, sge, oar, "
    "htcondor: jobs; or the address of a Dask scheduler.",
)  # fmt: skip
@click.option("--clock", type=_Megahertz(), help="MHz of the board.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1))
@_memory
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the study; the same command goes on with one that was interrupted.",
)  # fmt: skip
@_as_json
def explore(
    network: Path,
    target: str,
    calib: Path | None,
    budget: dict[str, int] | None,
    objectives: tuple[str, ...],
    least_sqnr: float,
    vary: tuple[str, ...],
    hw: Path | None,
    trials: int,
    seed: int,
    synthesize: int,
    on: str,
    workers: int,
    clock: float | None,
    latency: int,
    gap: int,
    output: Path,
    as_json: bool,
) -> None:
    """Search the hardware that runs NETWORK best within a budget.

    NETWORK is a model (a torch.export archive, .pt2), whose b, m and B vary too, or a network file,
    whose hardware varies only. Trials are estimated; the best of the front are synthesized. Leaves
    hw.toml, net.safetensors, front.json, front.md and front.html.
    """
    from .explore.pool import check_place, open_pool
    from .explore.report import figures, finish, front_table, write_exploration
    from .explore.resources import capacity, check_estimates, estimated, multipliers
    from .explore.space import parse
    from .explore.study import Settings, Study, confirm
    from .explore.study import explore as search
    from .explore.trial import File
    from .quant.progress import progress_bars
    from .toolchain.devices import find

    _check_folder(output)
    check_place(on)
    if (network.suffix == ".pt2") != (calib is not None):
        raise ValueError(f"{network}: --calib goes with a model (.pt2), and a model needs it")
    base = HardwareConfig(16, 16) if hw is None else HardwareConfig.load(hw)
    available = capacity(target, clock)
    varied = {**multipliers(target), **dict(map(parse, vary))}
    asked, base = base, base.on(find(target).family)
    fixed = {key: getattr(base, key) for key in KEYS if key not in varied}
    _tell_replaced(asked, replace(asked, **fixed), target)
    check_estimates(target, base, varied)
    settings = Settings(
        File.of(network),
        target,
        available | (budget or {}),
        None if calib is None else File.of(calib),
        objectives,
        least_sqnr,
        varied,
        base,
        seed,
        clock,
        latency,
        gap,
    )
    with Study.open(output, settings, estimated) as study, progress_bars(_STATUS) as progress:
        progress("workers", 0, 1)
        with open_pool(on, workers) as pool:
            progress("workers", 1, 1)
            found = search(study, pool, trials, progress)
            found = confirm(found, pool, synthesize, progress)
        progress("the chosen network", 0, 1)
        chosen = finish(found)
        write_exploration(output, f"{network.name} on {target}", found, chosen)
    if as_json:
        front = [figures(found, point) for point in found.front]
        own = {"cycles": chosen.cycles, "sqnr_db": chosen.sqnr_db}
        picked = figures(found, chosen.point) | {"network": own}
        _print(True, {"trials": len(found.points), "chosen": picked, "front": front})
        return
    title, headings, rows = front_table(found)
    table = Table(title=f"{title} of {len(found.points)} trials; * is in {output / 'hw.toml'}")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    _print(False, {}, table)


@main.command()
@click.argument("file", type=_PATH)
@click.option("--weight-bits", type=int, help="b, of a model.  [default: 4]")
@click.option("--block", type=int, help="B, of a model.  [default: 16]")
@click.option("--scale", help=f"Of a model: {', '.join(SCALE_FORMATS)}.  [default: bf16]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the tables (Markdown) and plots (SVG).",
)
@click.option(
    "--eta",
    type=click.FloatRange(0),
    default=0,
    show_default=True,
    help="Conversion of an activation for a MAC, by the time of an integer multiplication.",
)
@_as_json
def report(
    file: Path,
    weight_bits: int | None,
    block: int | None,
    scale: str | None,
    output: Path | None,
    eta: float,
    as_json: bool,
) -> None:
    """Account for the memory and the multiplications of FILE, layer by layer.

    FILE is a network file, whose bytes are counted as they are stored, or a model that is not yet
    quantized (a torch.export archive, .pt2), whose bytes follow from its shapes. Percentages are of
    the same layers in float32, those by the papers' formulas without biases. A speed-up is the
    time of float multiplications by that of integer and floating ones, if a floating one takes r
    times an integer one; the bound is that of infinite r. The largest T_int/T_FP is the time of an
    integer multiplication by that of a floating one from which on nothing is gained.
    """
    from .quant.account_report import figures, tables, write_account
    from .quant.accounting import account_file, account_graph, total
    from .quant.documents import check_plots

    given = {"weight_bits": weight_bits, "block": block, "scale": scale}
    given = {name: value for name, value in given.items() if value is not None}
    if output is not None:
        _check_folder(output)
        check_plots()
    if file.suffix == ".pt2":
        from .frontend.archive import read
        from .quant.convert import QuantConfig

        config = QuantConfig(**given)
        with _busy("reading"):
            graph = read(file)
        layers = account_graph(graph, config.weight_bits, config.block, config.scale_format)
    elif given:
        option = next(iter(given)).replace("_", "-")
        raise ValueError(f"--{option} is for a model (.pt2); {file} says how it is quantized")
    else:
        layers = account_file(file)
    if output is not None:
        with _busy("drawing"):
            write_account(output, file.name, layers, eta)
    values = {
        "file_bytes": file.stat().st_size,
        "layers": [figures(layer, eta) for layer in layers],
        "total": figures(total(layers), eta),
    }
    if as_json:
        _print(True, values)
        return
    for title, headings, rows in tables(layers, eta):
        shown = Table(title=title)
        shown.add_column(headings[0], overflow="fold")
        for heading in headings[1:]:
            shown.add_column(heading, justify="right")
        for number, row in enumerate(rows, 1):
            shown.add_row(*row, end_section=number == len(layers))
        _print(False, {}, shown)


@main.command()
@click.argument("network", type=_PATH)
@click.option("--data", required=True, type=_PATH, help="Images and labels (npz, x and y).")
@_as_json
def evaluate(network: Path, data: Path, as_json: bool) -> None:
    """Top-1 accuracy of NETWORK in hardware mode."""
    from .golden.network import QuantizedNetwork
    from .quant.data import load_images
    from .quant.hardware import evaluate as run

    quantized = QuantizedNetwork.load(network)
    images, labels = load_images(data)
    if labels is None:
        raise ValueError(f"{data} has no array 'y' of labels")
    with _busy(f"evaluating {len(images)} images"):
        result = run(quantized, images, labels)
    _print(as_json, result._asdict())


@main.command("compile")
@click.argument("network", type=_PATH)
@click.option("--hw", required=True, type=_PATH, help="Hardware configuration (TOML).")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Build folder to write.",
)
@_as_json
def compile_(network: Path, hw: Path, output: Path, as_json: bool) -> None:
    """Compile NETWORK to a program and its memory image, and predict where its cycles go.

    Cycles are those of `shiftcore estimate` with the default memory.
    """
    from .compiler.build import save_build
    from .compiler.network import compile_with_plan
    from .estimate.network import estimate
    from .golden.network import QuantizedNetwork

    config = HardwareConfig.load(hw)
    quantized = QuantizedNetwork.load(network)
    with _busy("compiling"):
        compiled = compile_with_plan(quantized, config)
        save_build(compiled.program, network, output)
        found = estimate(compiled.program, quantized.macs())
    values = {
        "instructions": len(compiled.program.instructions),
        "weight_bytes": len(compiled.program.weights),
        "dram_bytes": compiled.read_bytes + compiled.written_bytes,
        "read_bytes": compiled.read_bytes,
        "written_bytes": compiled.written_bytes,
        "tensors_on_chip": sum(layer.kept for layer in compiled.layers),
    }
    if as_json:
        figures = _figures(found)
        plans = {each.name: each for each in compiled.layers}
        for layer in figures["layers"]:
            plan = plans[layer["name"]]
            layer |= {"chunks": plan.chunks, "on_chip": plan.kept}
        _print(True, values | figures)
        return
    _print(False, {}, _layer_table(found, config))
    _print(False, values)


def _figures(found: "Estimate") -> dict[str, Any]:
    layers = [{"name": name} | asdict(layer) for name, layer in found.layers.items()]
    return asdict(found.total) | {"layers": layers}


_COLUMNS = {
    "MACs": "macs", "cycles": "cycles", "utilization": "utilization", "pixels": "pixels",
    "no tile": "stall_tile", "no ticket": "stall_ticket", "no pass": "stall_empty",
    "hazard": "stall_hazard",
}  # fmt: skip


def _layer_table(found: "Estimate", config: HardwareConfig) -> Table:
    """Where the predicted cycles of one image go, layer by layer and in all."""
    table = Table(title=f"Predicted cycles of one image on {config.rows}x{config.cols}")
    table.add_column("layer", overflow="fold")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right")
    rows = [*found.layers.items(), ("all", found.total)]
    for number, (name, cycles) in enumerate(rows, 1):
        values = (getattr(cycles, key) for key in _COLUMNS.values())
        cells = (f"{x:.1%}" if isinstance(x, float) else str(x) for x in values)
        table.add_row(name, *cells, end_section=number == len(found.layers))
    return table


@main.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@_memory
@click.option("--clock", type=_Megahertz(), help="MHz, for images_per_s.")
@click.option("--target", help="A device: what the accelerator takes there, and its clock.")
@click.option("--hw", type=_PATH, help="Instead of FOLDER: the hardware (TOML) by itself.")
@_as_json
def estimate(
    folder: Path | None,
    latency: int,
    gap: int,
    clock: float | None,
    target: str | None,
    hw: Path | None,
    as_json: bool,
) -> None:
    """Predict the cycles of the build folder FOLDER, layer by layer, without simulation.

    They are those that the RTL takes, exactly. A layer's cycles end when its last pixel enters the
    array. MACs are those of convolutions and linear layers. With --target it estimates what the
    accelerator takes there as well, or with --hw only that.
    """
    from .compiler.build import load_build
    from .estimate.network import estimate as predict
    from .toolchain.devices import find

    if (folder is None) == (hw is None):
        raise ValueError("estimate needs a build folder or --hw, one of them")
    if target is not None:
        find(target)
    if hw is not None:
        if target is None:
            raise ValueError("--hw needs --target, the device that it is estimated for")
        context = click.get_current_context()
        for name in ("clock", "latency", "gap"):
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise ValueError(f"--{name} is for the cycles of a build folder, not for --hw")
        config, table, values = HardwareConfig.load(hw), None, {}
    else:
        assert folder is not None
        program, network = load_build(folder)
        with _busy("predicting"):
            found = predict(program, network.macs(), latency=latency, gap=gap)
        config, table = program.config, _layer_table(found, program.config)
        values = _figures(found)
    taken = {}
    if target is not None:
        taken = _estimated(_suited(config, find(target).family, target), target)
        if excess := ", ".join(find(target).excess(taken)):
            name = hw or folder
            click.echo(f"{name} is estimated at more than {target} holds: {excess}", err=True)
    clock = taken.get("fmax_mhz") if clock is None else clock
    speed = {}
    if clock is not None and values:
        speed = {"images_per_s": clock * 1e6 / values["cycles"]}
    if as_json:
        _print(True, values | taken | speed)
        return
    if table is not None:
        _print(False, {}, table)
    if target is not None:
        _print(False, {}, _resource_table(f"Estimate for {target}", target, estimate=taken))
    fmax = taken.get("fmax_mhz")
    if fmax or speed:
        _print(False, ({"fmax_mhz": fmax} if fmax else {}) | speed)


@main.command()
@click.option("--channels", required=True, type=click.IntRange(1), help="Of the input.")
@click.option("--out-channels", type=click.IntRange(1), help="[default: as many]")
@click.option("--kernel", type=_Numbers(), default="3", show_default=True, help="K or Kh,Kw.")
@click.option("--stride", type=_Numbers(), default="1", show_default=True, help="One or two.")
@click.option("--stages", type=_Numbers(), help="N, or several to choose from.  [default: any]")
@click.option(
    "--objective", default="parameters", show_default=True,
    type=click.Choice(["parameters", "macs", "cycles"]),
    help="cycles: of an input of --size on --hw, for one to three stages unless given.",
)  # fmt: skip
@click.option("--size", type=_Numbers(), help="H or H,W of the input.")
@click.option("--hw", type=_PATH, help="Hardware configuration (TOML), for cycles.")
@_as_json
def separable(
    channels: int,
    out_channels: int | None,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    stages: tuple[int, ...] | None,
    objective: Literal["parameters", "macs", "cycles"],
    size: tuple[int, ...] | None,
    hw: Path | None,
    as_json: bool,
) -> None:
    """Design the grouped convolutions that see what a convolution sees, at the least cost.

    MACs are those of one output pixel, or of an input of --size. Nothing is trained.
    """
    from .separable.cycles import design_cycles, fastest_design
    from .separable.design import Design, best_design, pair

    def two(name: str, given: tuple[int, ...]) -> tuple[int, int]:
        return pair(name, given[0] if len(given) == 1 else given)  # pyright: ignore[reportArgumentType]

    outputs = out_channels or channels
    taps, strides = two("--kernel", kernel), two("--stride", stride)
    sides = None if size is None else two("--size", size)
    config = None if hw is None else HardwareConfig.load(hw)
    if config is not None and sides is None:
        raise ValueError("--hw needs --size, the height and width of the input")
    values: dict[str, Any] = {}
    if objective == "cycles":
        if config is None or sides is None:
            raise ValueError("--objective cycles needs --hw, the hardware that they are counted on")
        with _busy("compiling designs"):
            found = fastest_design(
                config, channels, outputs, taps, strides, size=sides, stages=stages or (1, 2, 3)
            )
        design = found.design
        values = {"cycles": found.cycles, "enumerated": found.enumerated, "timed": found.timed}
    else:
        design = best_design(
            channels, outputs, taps, strides, stages=stages, objective=objective, size=sides
        )
        if config is not None and sides is not None:
            values = {"cycles": design_cycles(design, config, sides)}
    replaced = channels, outputs, taps, strides
    values = {
        "stages": [asdict(stage) for stage in design.stages],
        "parameters": design.parameters,
        "macs": design.macs(sides),
        "conventional": Design.conventional(*replaced).parameters,
        "depthwise": Design.depthwise(*replaced).parameters,
        "spatial": Design.spatial(*replaced).parameters,
        **values,
    }
    _print(as_json, values if as_json else values | {"stages": str(design)})


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", required=True, type=_PATH, help="Images (npz, x; labels y if present).")
@click.option("--on", "machine", required=True, type=click.Choice(["golden", "rtl"]))
@click.option(
    "--simulator", default="verilator", show_default=True,
    type=click.Choice(["verilator", "icarus"]),
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@_memory
@click.option(
    "--waves", type=_PATH,
    help="Waveform (VCD) of some hundred cycles: around the first mismatch, else from the start.",
)  # fmt: skip
@_as_json
def run(
    folder: Path,
    data: Path,
    machine: str,
    simulator: Literal["verilator", "icarus"],
    limit: int | None,
    latency: int,
    gap: int,
    waves: Path | None,
    as_json: bool,
) -> None:
    """Execute the build folder FOLDER on images; the RTL is compared with the golden model."""
    from .compiler.build import load_build
    from .golden.machine import Machine
    from .golden.program import scores_of
    from .quant.data import load_images

    if waves is not None:
        _check_folder(waves)
    program, network = load_build(folder)
    images, labels = load_images(data)
    images = images[:limit]
    content = program.encode_input(network.encode_input(images))
    values: dict[str, Any] = {"images": len(images), "macs": program.macs}
    difference = None
    if machine == "golden":
        with _busy(f"executing {len(images)} images"):
            run = Machine(program).run(content)
        outputs = run.outputs
        values["saturated"] = int(run.saturated.sum())
    else:
        from .sim.accelerate import run_program

        with Progress(console=_STATUS, transient=True) as bar:
            task = bar.add_task("images through the RTL", total=len(images))
            found = run_program(
                program, content, simulator=simulator, latency=latency, gap=gap, waves=waves,
                progress=lambda done: bar.update(task, completed=done),
            )  # fmt: skip
        outputs, difference = found.outputs, found.difference
        values = found.figures(program)
    if labels is not None and len(outputs):
        scores = scores_of(program.decode_output(outputs))
        values["top1"] = 100 * float((scores.argmax(1) == labels[: len(outputs)]).mean())
    shown = values
    if not as_json and len(values.get("cycles", [])) > 1:
        shown = values | {"cycles": f"{min(values['cycles'])} to {max(values['cycles'])} an image"}
    _print(as_json, shown)
    if difference:
        raise RuntimeError(f"hardware and golden model differ: {difference}")


@main.command()
@click.option("--hw", required=True, type=_PATH, help="Hardware configuration (TOML).")
@click.option("-o", "--output", required=True, type=_PATH, help="Verilog file to write.")
@_as_json
def verilog(hw: Path, output: Path, as_json: bool) -> None:
    """Write the accelerator as one vendor-neutral Verilog file."""
    from .hw.verilog import TOP, accelerator_ports, accelerator_verilog
    from .quant.documents import write_text

    _check_folder(output)
    config = HardwareConfig.load(hw)
    with _busy("writing Verilog"):
        text = accelerator_verilog(config)
    write_text(output, text)
    ports = accelerator_ports(config)
    _print(as_json, {"top": TOP, "ports": ports, "lines": text.count("\n")})


@main.command()
@click.option("--hw", required=True, type=_PATH, help="Hardware configuration (TOML).")
@click.option(
    "--tool", required=True, help="vivado, quartus, gowin, radiant, diamond or fusesoc."
)  # fmt: skip
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the project, new or empty.",
)
@click.option("--part", help="Device, as the tool names it.  [default: one for each tool]")
@click.option(
    "--clock", type=_Megahertz(), help="MHz that the constraints ask for.  [default: 100]"
)
@_as_json
def project(
    hw: Path, tool: str, output: Path, part: str | None, clock: float | None, as_json: bool
) -> None:
    """Write the accelerator as a project of an FPGA tool, ready to open."""
    from .toolchain.projects import TOOLS, write_project

    _check_folder(output)
    config = HardwareConfig.load(hw)
    with _busy("writing the project"):
        files = write_project(config, tool, output, part=part, clock_mhz=clock)
    made = TOOLS[tool]
    written = HardwareConfig.load(output / "hardware.toml")
    _tell_replaced(config, written, part or made.part or f"a {tool} project")
    _print(as_json, {"part": part or made.part, "open": made.open, "files": files})


@main.command()
@click.option("--hw", required=True, type=_PATH, help="Hardware configuration (TOML).")
@click.option("--target", required=True, help="A device, ecp5-85k-8 for example, or a family.")
@click.option("--pnr", is_flag=True, help="Place and route too: the clock and its critical path.")
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1),
    help="Of place and route: so many runs, of which the median counts.",
)  # fmt: skip
@_as_json
def synth(hw: Path, target: str, pnr: bool, seeds: int, as_json: bool) -> None:
    """Count what the accelerator takes on a TARGET, with yosys; place and route it with nextpnr.

    Every port is placed between registers, so that the clock covers the paths to and from them.
    """
    from .estimate.resources import covers
    from .hw.verilog import TOP, accelerator_verilog
    from .toolchain.devices import KINDS, find
    from .toolchain.nextpnr import check_routable, place_and_route
    from .toolchain.yosys import ToolError, synthesize

    device = check_routable(target) if pnr else find(target)
    config = _suited(HardwareConfig.load(hw), device.family, target)
    with _busy("writing Verilog"):
        design = accelerator_verilog(config)
    with _busy(f"synthesizing for {target}"):
        resources = synthesize(design, TOP, target)
    counts = {kind: getattr(resources, kind) for kind in KINDS}
    timing = None
    excess = ", ".join(device.excess(counts))
    if pnr:
        if excess:
            raise ToolError(f"{hw} does not fit {target}: {excess}")
        with _busy(f"placing and routing for {target}, seeds 1 to {seeds}"):
            timing = place_and_route(design, TOP, target, seeds=range(1, seeds + 1))
    values: dict[str, Any] = {"target": target, **counts}
    values["utilization"] = {kind: _share(counts[kind], n) for kind, n in device.capacity.items()}
    values["fmax_mhz"] = timing and timing.median
    values["fmax_mhz_by_seed"] = timing and timing.fmax_mhz
    values["critical_path"] = timing and asdict(timing.critical_path)
    if excess:
        click.echo(f"{hw} takes more than {target} holds: {excess}", err=True)
    guess = _estimated(config, target) if covers(config, device.family) else None
    values["estimate"] = guess
    if as_json:
        _print(True, values)
        return
    table = _resource_table(f"{hw.name} on {target}", target, used=counts, estimate=guess or {})
    _print(False, {}, table)
    if timing:
        low, high = min(timing.fmax_mhz), max(timing.fmax_mhz)
        spread = f", {low:.1f} to {high:.1f} over {seeds} seeds" if seeds > 1 else ""
        click.echo(f"Fmax {timing.median:.1f} MHz{spread}\ncritical path {timing.critical_path}")


def _suited(config: HardwareConfig, family: str | None, target: str) -> HardwareConfig:
    """What a target of a family can have of `config`; says what is not as it was asked for."""
    found = config.on(family)
    _tell_replaced(config, found, target)
    return found


def _tell_replaced(asked: HardwareConfig, made: HardwareConfig, target: str) -> None:
    """One line on standard error, if forms were replaced by plain ones."""
    replaced = [
        f"{key} {getattr(made, key)!r} instead of {getattr(asked, key)!r}"
        for key in KEYS
        if getattr(made, key) != getattr(asked, key)
    ]
    if replaced:
        click.echo(f"for {target}: {', '.join(replaced)}; same numbers and cycles", err=True)


def _estimated(config: HardwareConfig, target: str) -> dict[str, Any]:
    """LUTs, flip-flops, DSP blocks, block RAMs and clock by the calibrated estimate."""
    from .explore.resources import estimated

    return asdict(estimated(config, target))


def _resource_table(title: str, target: str, **columns: Mapping[str, int]) -> Table:
    """What is used or estimated of each kind; of the first column the device's share, too."""
    from .toolchain.devices import KINDS, find

    capacity = find(target).capacity
    first, *others = columns
    table = Table(title=title)
    for heading in ("", first, *(("of", "share") if capacity else ()), *others):
        table.add_column(heading, justify="left" if not heading else "right")
    for kind in KINDS:
        cells = [kind.upper(), f"{columns[first][kind]:,}"]
        if capacity:
            share = _share(columns[first][kind], capacity[kind])
            cells += [f"{capacity[kind]:,}", "–" if share is None else f"{share:.1%}"]
        cells += [f"{columns[name][kind]:,}" if columns[name] else "" for name in others]
        table.add_row(*cells)
    return table


def _share(used: int, held: int) -> float | None:
    """Of what a device holds; ``None`` where it holds none."""
    return used / held if held else None


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--board", required=True, help="ulx3s-85f, icebreaker, ...; a wrong one lists all.")
@click.option(
    "--baud", default=1_000_000, show_default=True, type=click.IntRange(1),
    help="Of the serial line.",
)  # fmt: skip
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write.",
)
@_as_json
def bitstream(folder: Path, board: str, baud: int, output: Path, as_json: bool) -> None:
    """Make a standalone image of the build folder FOLDER for a BOARD, with the open tools.

    Program and weights are in block RAM; images come in and classes go out on the board's UART.
    """
    from .golden.program import Program
    from .host.standalone import at_clock
    from .hw.standalone import Standalone
    from .hw.verilog import TOP, emit, emit_rtlil
    from .toolchain.boards import find_board, implement

    chosen = find_board(board)
    _check_folder(output)
    program = Program.load(folder)
    program = replace(program, config=_suited(program.config, chosen.device.family, board))
    spec = at_clock(program, chosen.clock_mhz * 1e6, baud)
    if len(spec.memory.content) > chosen.memory_bytes:
        raise ValueError(
            f"{folder} does not fit {board}: program, weights and an image take "
            f"{len(spec.memory.content)} bytes of block RAM, there are {chosen.memory_bytes}"
        )
    with _busy("writing Verilog"):
        text, design = emit(Standalone(spec), TOP), emit_rtlil(Standalone(spec), TOP)
    with _busy(f"synthesizing, placing and routing for {board}"):
        image = implement(design, TOP, chosen)
    output.mkdir(exist_ok=True)
    (output / f"{TOP}.v").write_text(text, encoding="utf-8")
    file = output / f"{board}{image.suffix}"
    file.write_bytes(image.bitstream)
    values: dict[str, Any] = {"board": board, "file": str(file), "bytes": len(image.bitstream)}
    for name in ("fmax_mhz", "clock_mhz", "critical_path", "lut", "ff", "dsp", "bram"):
        values[name] = getattr(image, name)
    values["critical_path"] = asdict(image.critical_path) if as_json else str(image.critical_path)
    _print(as_json, values)


@main.command()
@click.option(
    "-o",
    "--output",
    default="out/demo",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
)
@click.option("--images", default=60, show_default=True, help="Images that go through the RTL.")
@_as_json
def demo(output: Path, images: int, as_json: bool) -> None:
    """Quantize a digits network, run it on the simulated RTL, compare every number."""
    from .examples.digits.demo import run_demo
    from .examples.digits.report import tables

    with _STATUS.status("starting") as status:

        def progress(message: str) -> None:
            _STATUS.print(message, highlight=False)
            status.update(message)

        result = run_demo(output, images, progress)
    if as_json:
        _print(True, asdict(result))
    else:
        titles = (
            f"{result.images} handwritten digits on a 16x16 accelerator, 4-bit weights and "
            "activations",
            f"Each layer by itself on the 16x16 engine, {result.engine_images} images",
            "Area of a 4x4 engine (yosys)",
        )
        for title, (header, rows) in zip(titles, tables(result), strict=True):
            table = Table(title=title)
            for name in header:
                left = name in ("layer", "output", "target")
                table.add_column(name, justify="left" if left else "right")
            for row in rows:
                table.add_row(*map(str, row))
            _print(False, {}, table)
        click.echo(
            f"an image takes {max(result.cycles)} cycles, predicted {result.predicted}; "
            f"utilization {result.utilization:.1%}\n"
            f"top-1 on the accelerator {result.top1:.2f} %; on all held-out images float "
            f"{result.float_top1:.2f} %, 4-bit hardware mode {result.hardware_mode_top1:.2f} %\n"
            f"{result.mismatches} mismatches in {result.compared} numbers; "
            f"see {output / 'report.md'}"
        )
    if result.difference:
        raise RuntimeError(f"hardware and golden model differ: {result.difference}")
    if not result.counters_exact:
        raise RuntimeError("predicted and measured counters differ")
    if not result.cycles_exact:
        raise RuntimeError("predicted and measured cycles of a layer by itself differ")


if __name__ == "__main__":
    main()
