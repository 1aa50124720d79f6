"""From a model to cycles saved: ``python -m shiftcore.examples.separate``.

Takes a network's convolutions, lets the designer replace each by the separable one of fewest cycles
on a hardware configuration, and prints parameters, MACs and cycles of every layer before and after.
The digits network is then trained on its images, quantized and compiled; with ``--rtl`` one image
runs on the simulated accelerator, every stored word compared.

The same steps serve another network: :func:`plan`, :func:`replace_`, training, ``quantize``.
"""

import argparse
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from ..compiler.network import compile_network
from ..estimate.network import estimate, network_cycles
from ..golden.config import ConfigError, HardwareConfig
from ..quant.convert import QuantConfig, quantize
from ..quant.hardware import HardwareNetwork, evaluate
from ..separable.convert import separate_
from ..separable.cycles import design_cycles, fastest_design
from ..separable.design import Design
from ..sim.accelerate import run_program
from .digits import data
from .digits.model import DigitsNet
from .digits.train import accuracy, train
from .zoo.resnet20 import ResNet20

__all__ = ["Choice", "main", "plan", "replace_"]

NETWORKS = {"digits": (DigitsNet, (1, 8, 8)), "resnet20": (ResNet20, (3, 32, 32))}
"""The network and its images (C, H, W)."""
CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Choice:
    """A convolution and the design for it; cycles are those of :func:`.design_cycles`.

    Parameters
    ----------
    name, size : of the convolution, and the (H, W) of its input
    before, cycles_before : the convolution itself
    after, cycles_after : the design
    """

    name: str
    size: tuple[int, int]
    before: Design
    cycles_before: int
    after: Design
    cycles_after: int

    @property
    def faster(self) -> bool:
        return self.cycles_after < self.cycles_before


def _input_sizes(model: nn.Module, image: torch.Tensor) -> dict[str, tuple[int, int]]:
    """The (H, W) of what every convolution reads."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes[name] = (inputs[0].shape[2], inputs[0].shape[3])

    hooks = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    return sizes


@cache
def _choice(
    config: HardwareConfig, size: tuple[int, int], before: Design, stages: tuple[int, ...]
) -> tuple[int, Design, int]:
    """Cycles of a convolution, the design in its place, and the cycles of that."""
    shape = before.in_channels, before.out_channels, before.kernel, before.stride
    found = fastest_design(config, *shape, size=size, stages=stages)
    return design_cycles(before, config, size), found.design, found.cycles


def plan(
    model: nn.Module,
    image: torch.Tensor,
    config: HardwareConfig,
    *,
    least_channels: int = 8,
    stages: tuple[int, ...] = (1, 2, 3),
) -> list[Choice]:
    """The designs of fewest cycles for the convolutions of several taps of a network.

    Parameters
    ----------
    image : an example, (1, C, H, W)
    least_channels : of a convolution, in and out
    stages : numbers of stages that are tried
    """
    choices = []
    modules = dict(model.named_modules())
    for name, size in _input_sizes(model, image).items():
        conv = modules[name]
        assert isinstance(conv, nn.Conv2d)
        channels = conv.in_channels, conv.out_channels
        if conv.groups > 1 or conv.kernel_size == (1, 1) or min(channels) < least_channels:
            continue
        (kh, kw), (sy, sx) = conv.kernel_size, conv.stride
        before = Design.conventional(*channels, (kh, kw), (sy, sx))
        cycles, after, fewer = _choice(config, size, before, stages)
        choices.append(Choice(name, size, before, cycles, after, fewer))
    return choices


def replace_(model: nn.Module, choices: Sequence[Choice]) -> set[str]:
    """Put the designs that are faster into the network, in place, with new weights; the names of
    the convolutions that they replaced."""
    replaced = set()
    for choice in choices:
        if choice.faster:
            found = separate_(
                model,
                lambda *_, design=choice.after: design,
                least_channels=1,
                filter_fn=lambda _, name, chosen=choice.name: name == chosen,
            )
            replaced |= {each.name for each in found if each.design is not None}
    return replaced


def _rows(choices: Sequence[Choice], replaced: Container[str]) -> list[dict[str, Any]]:
    return [
        {
            "layer": choice.name,
            "parameters": [choice.before.parameters, choice.after.parameters],
            "macs": [choice.before.macs(choice.size), choice.after.macs(choice.size)],
            "cycles": [choice.cycles_before, choice.cycles_after],
            "design": str(choice.after),
            "replaced": choice.name in replaced,
        }
        for choice in choices
    ]


def _table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for heading in ("layer", "parameters", "MACs", "cycles", "design"):
        table.add_column(heading, justify="left" if heading in ("layer", "design") else "right")
    for row in rows:
        figures = ["{:,} → {:,}".format(*row[name]) for name in ("parameters", "macs", "cycles")]
        design = row["design"] if row["replaced"] else f"left, instead of {row['design']}"
        table.add_row(row["layer"], *figures, design)
    return table


def _cycles(model: nn.Module, images: NDArray[np.float32], config: HardwareConfig) -> int:
    """Of one image, whatever the weights are."""
    options = QuantConfig(config.weight_bits, config.act_bits, config.rows, config.scale, "l2")
    return network_cycles(config, quantize(model.eval(), images[:1], options))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="digits")
    parser.add_argument("--hw", type=Path, help="TOML; by default examples/array16.toml")
    parser.add_argument("--epochs", type=int, default=20, help="of training, digits only")
    parser.add_argument("--stages", type=int, default=3, help="of a design, at most")
    parser.add_argument("--rtl", action="store_true", help="simulate one image, digits only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if min(options.epochs, options.stages) < 1:
        parser.error(
            f"--epochs and --stages must be from 1, not {options.epochs}, {options.stages}"
        )
    try:
        with as_file(files("shiftcore.examples") / "array16.toml") as path:
            config = HardwareConfig.load(options.hw or path)
    except ConfigError as error:
        parser.error(str(error))
    make, shape = NETWORKS[options.network]
    console, progress = Console(width=140), Console(stderr=True)
    images = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    torch.manual_seed(0)
    model = make()
    before = _cycles(model, images, config)
    with progress.status("designing …"):
        stages = tuple(range(1, options.stages + 1))
        choices = plan(model, torch.from_numpy(images), config, stages=stages)
    rows = _rows(choices, replace_(model, choices))
    found: dict[str, Any] = {
        "network": options.network,
        "layers": rows,
        "cycles_before": before,
        "cycles": _cycles(model, images, config),
    }
    if options.network == "digits":
        assert isinstance(model, DigitsNet)
        with progress.status("training …"):
            found |= _trained(model, config, options.epochs, options.rtl)
    if options.json:
        print(json.dumps(found))
    else:
        title = f"{options.network} on {config.rows}×{config.cols}"
        console.print(_table(rows, title))
        for name, value in found.items():
            if name not in ("network", "layers"):
                text = f"{value:,}" if isinstance(value, int) else f"{value:.2f} %"
                console.print(f" {name.replace('_', ' '):16} {text}")
    if found.get("mismatches") or found.get("simulated", found["cycles"]) != found["cycles"]:
        raise SystemExit(1)


def _trained(model: DigitsNet, config: HardwareConfig, epochs: int, rtl: bool) -> dict[str, Any]:
    """Accuracy in percent of all held-out digits, cycles of the compiled program, and the RTL."""
    training, held_out = data.load()
    train(training, epochs, network=model)
    options = QuantConfig(config.weight_bits, config.act_bits, config.rows, config.scale)
    network = quantize(model, training.x[:CALIBRATION_IMAGES], options)
    program = compile_network(network, config)
    found: dict[str, Any] = {
        "epochs": epochs,
        "top1_float": accuracy(model, held_out),
        "top1": evaluate(HardwareNetwork(network), held_out.x, held_out.y).top1,
        "cycles": estimate(program, network.macs()).total.cycles,
    }
    if rtl:
        run = run_program(program, program.encode_input(network.encode_input(held_out.x[:1])))
        found["simulated"] = run.cycles[0]
        found["compared"], found["mismatches"] = run.compared, run.mismatches
    return found


if __name__ == "__main__":
    main()
