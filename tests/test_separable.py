"""Separable convolution: designs against a search without bounds, layers against their design."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import islice, product, takewhile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

from shiftcore import cli
from shiftcore.benchmarks import separable as benchmark
from shiftcore.benchmarks import separable_rtl, separable_training
from shiftcore.benchmarks.separable import support, unbounded, without_shuffle
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.network import estimate
from shiftcore.examples import separate
from shiftcore.examples.zoo.resnet20 import ResNet20
from shiftcore.frontend.archive import read
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.floats import SCALE_FORMATS
from shiftcore.quant.accounting import account_graph, account_network
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.dsconv import DSConv2d, DSConvConfig, quantize_
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.lower import lower
from shiftcore.separable.convert import separate_
from shiftcore.separable.cycles import design_cycles, fastest_design, least_cycles
from shiftcore.separable.design import (
    Design,
    Stage,
    best_design,
    closed_form,
    designs,
    free_bound,
)
from shiftcore.separable.module import SeparableConv2d, ShuffleChannels
from shiftcore.sim.accelerate import run_program
from shiftcore.tests.networks import CONFIG

loose: Any = best_design
loose_stage: Any = Stage
"""the same, for arguments of wrong types"""
SPLIT = "split"
"""Kx1, then 1xK"""
POINT = "1x1 first"
"""1x1, then KxK"""
# K, C, parameters, groups, kernels, 2KC^1.5, ratio, times fewer than depthwise, spatial, full
TWO_STAGES = [
    (3, 64, 3072, (8, 8), SPLIT, "3072", "1.000", "1.52", "8.0", "12"),
    (3, 128, 8704, (4, 32), POINT, "8689", "1.002", "2.01", "11.3", "16.9"),
    (3, 256, 24576, (16, 16), SPLIT, "24576", "1.000", "2.76", "16", "24"),
    (3, 384, 45312, (6, 64), POINT, "45149", "1.004", "3.33", "19.5", "29.3"),
    (3, 512, 69632, (8, 64), POINT, "69511", "1.002", "3.83", "22.6", "33.9"),
    (3, 768, 129024, (8, 96), POINT, "127701", "1.010", "4.62", "27.4", "41.1"),
    (3, 1024, 196608, (32, 32), SPLIT, "196608", "1.000", "5.38", "32", "48"),
    (5, 64, 5120, (8, 8), SPLIT, "5120", "1.000", "1.11", "8", "20"),
    (5, 128, 14592, (2, 64), POINT, "14482", "1.008", "1.34", "11.2", "28.1"),
    (5, 256, 40960, (16, 16), SPLIT, "40960", "1.000", "1.76", "16", "40"),
    (5, 512, 116736, (4, 128), POINT, "115852", "1.008", "2.36", "22.5", "56.1"),
    (5, 1024, 327680, (32, 32), SPLIT, "327680", "1.000", "3.28", "32", "80"),
    (7, 64, 7168, (8, 8), SPLIT, "7168", "1.000", "1.01", "8", "28"),
    (7, 128, 20736, (2, 64), POINT, "20274", "1.023", "1.09", "11.1", "38.7"),
    (7, 256, 57344, (16, 16), SPLIT, "57344", "1.000", "1.36", "16", "56"),
    (7, 512, 165888, (4, 128), POINT, "162193", "1.023", "1.73", "22.1", "77.4"),
    (7, 1024, 458752, (32, 32), SPLIT, "458752", "1.000", "2.40", "32", "112"),
]


def as_printed(value: float, printed: str) -> bool:
    """Whether a number is printed so, with as many digits."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


@pytest.mark.parametrize("row", TWO_STAGES, ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_best_two_stages(row) -> None:
    kernel, channels, parameters, groups, form, theory, ratio, depthwise, spatial, full = row
    found = best_design(channels, kernel=kernel, stages=2)
    assert (found.parameters, found.groups) == (parameters, groups)
    kernels = [(kernel, 1), (1, kernel)] if form == SPLIT else [(1, 1), (kernel, kernel)]
    assert [stage.kernel for stage in found.stages] == kernels
    assert found.is_full
    assert found.widths == (channels,) * 3
    bound = closed_form(channels, kernel, 2)
    assert as_printed(bound, theory)
    assert as_printed(parameters / bound, ratio)
    same = channels, channels, kernel
    for made, printed in (
        (Design.depthwise(*same), depthwise),
        (Design.spatial(*same), spatial),
        (Design.conventional(*same), full),
    ):
        assert as_printed(made.parameters / parameters, printed)


@pytest.mark.parametrize("kernel", benchmark.KERNELS)
def test_no_split_of_the_kernel_and_no_groups_are_better(kernel: int) -> None:
    rows = []
    for channels in benchmark.CHANNELS:
        found = best_design(channels, kernel=kernel, stages=2).parameters
        assert found == unbounded(channels, kernel)
        assert 1 <= found / closed_form(channels, kernel, 2) + 1e-12 <= 1.028
        rows.append({"kernel": kernel, "channels": channels, "parameters": found})
    assert benchmark.exponents(rows)[kernel] == pytest.approx(1.5, abs=0.01)


def test_any_number_of_stages() -> None:
    for kernel, octaves in product((3, 5, 7), range(6, 11)):
        found = best_design(1 << octaves, kernel=kernel)
        assert found.parameters == (2 * kernel + 2 * octaves) << octaves
        assert found.parameters >= free_bound(1 << octaves, kernel)
        assert found.is_full
        assert len(found.stages) in (5, 6, 7)
    three = [best_design(channels, stages=3).parameters for channels in (64, 256, 1024)]
    assert three == [1600, 10240, 65536]


@pytest.mark.parametrize("channels", [12, 17, 24, 63])
def test_three_stages_against_a_search_without_bounds(channels: int) -> None:
    """All groups; taps as factors of a 3x5 kernel that any one stage may have, or split."""
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    depths = [each for each in product(divisors, repeat=3) if math.prod(each) >= channels]

    def shares(taps: int) -> list[tuple[int, int, int]]:
        ends = range(1, taps + 1)
        return [(a, b, c) for a, b, c in product(ends, repeat=3) if a + b + c == taps + 2]

    costs = {
        tuple(h * v for h, v in zip(*both, strict=True)) for both in product(shares(3), shares(5))
    }
    fewest = min(
        sum(n * t for n, t in zip(depth, taps, strict=True)) for depth in depths for taps in costs
    )
    # The designer's stages each mix something; stages that do not are not cheaper than none.
    counts = best_design(channels, kernel=(3, 5), stages=(1, 2, 3)).parameters
    assert counts == fewest * channels


def test_all_designs_by_ascending_cost() -> None:
    found = list(takewhile(lambda each: each.parameters <= 1600, designs(16, 32, 3, 2, stages=2)))
    costs = [(each.parameters, each.macs()) for each in found]
    assert costs == sorted(costs)
    assert len(set(found)) == len(found)
    assert all(each.is_full and each.kernel == (3, 3) and each.stride == (2, 2) for each in found)
    expected = set()
    for width, n1 in product((16, 32), (1, 2, 4, 8, 16)):
        for n2, (h, v) in product((1, 2, 4, 8, 16, 32), product((1, 3), repeat=2)):
            g1, g2 = 16 // n1, width // n2
            taps = h * v, (4 - h) * (4 - v)
            if n2 > width or n1 * n2 < 16 or width % g1 or 32 % g2:
                continue
            cost = width * n1 * taps[0] + 32 * n2 * taps[1]
            if cost <= 1600 and n1 * taps[0] > 1 and n2 * taps[1] > 1:
                expected.add((g1, g2, width, h, v))
    shapes = [(*each.groups, each.widths[1], *each.stages[0].kernel) for each in found]
    assert set(shapes) == expected
    assert len(shapes) == len(expected) > 20


@pytest.mark.parametrize(
    ("channels", "filters", "parameters", "groups"),
    [(64, 128, 4352, (2, 32)), (128, 256, 12288, (8, 16)), (256, 512, 34816, None),
     (512, 256, 34816, None)],
)  # fmt: skip
def test_other_channels_out_than_in(channels, filters, parameters, groups) -> None:
    found = best_design(channels, filters, stages=2)
    assert found.parameters == parameters
    assert found.widths == (channels, min(channels, filters), filters)
    assert found.is_full
    assert groups in (None, found.groups)


def test_the_named_separations_are_points_of_the_search() -> None:
    assert best_design(32, 64, (3, 5), stages=1) == Design.conventional(32, 64, (3, 5))
    for made in (Design.depthwise(32, 64, (3, 5), 2), Design.spatial(32, 64, (3, 5), 2)):
        assert made.is_full
        upto = takewhile(
            lambda each, most=made.parameters: each.parameters <= most,
            designs(32, 64, (3, 5), 2, stages=2),
        )
        assert made in list(upto)
    assert Design.depthwise(9, 9, 3).parameters == closed_form(9, 3, 2)  # where C = K²
    assert Design.depthwise(64, 64, 3).parameters > closed_form(64, 3, 2)


def test_a_stride_is_where_its_axis_has_its_taps() -> None:
    """Parameters are the same whichever stage is first; what a stride saves is not."""
    found = best_design(64, 128, 3, 2, stages=2)
    assert [(stage.kernel, stage.stride) for stage in found.stages] == [
        ((3, 3), (2, 2)),
        ((1, 1), (1, 1)),
    ]
    assert found.macs() == found.parameters == 4352
    other = Design((Stage(64, 64, 2, shuffle=2), Stage(64, 128, 32, (3, 3), (2, 2))))
    assert (other.parameters, other.macs()) == (4352, 4 * 2048 + 2304)
    assert other.macs((7, 8)) == 7 * 8 * 2048 + 4 * 4 * 2304
    fewest = best_design(64, 128, 3, (2, 1), objective="macs", size=(9, 9))
    every = designs(64, 128, 3, (2, 1), stages=range(1, 9))
    assert fewest.macs((9, 9)) == min(each.macs((9, 9)) for each in islice(every, 300))
    assert fewest.stride == (2, 1)


DESIGNS = {
    "two": best_design(64, stages=2),
    "three": best_design(32, kernel=5, stages=3),
    "any": best_design(64),
    "wider": best_design(16, 48, (3, 5), stages=2),
    "narrower": best_design(48, 16, stages=3),
    "odd": best_design(45, 27, stages=2),
    "prime": best_design(17, 17, stages=3),
    "pointwise": best_design(36, kernel=1),
    "depthwise": Design.depthwise(12, 20, 3),
    "spatial": Design.spatial(12, 20, (5, 3)),
    "large": best_design(256, kernel=7, stages=2),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_a_layer_sees_everything_and_not_without_a_shuffle(name: str) -> None:
    design = DESIGNS[name]
    layer = SeparableConv2d(design, norm=None)
    assert sum(parameter.numel() for parameter in layer.parameters()) == design.parameters
    whole = design.in_channels * design.out_channels * math.prod(design.kernel)
    assert support(design) == whole
    shuffles = [number for number, stage in enumerate(design.stages) if stage.shuffle > 1]
    for number in shuffles:
        without = without_shuffle(design, number)
        assert not without.is_full
        assert support(without) < whole
    assert bool(shuffles) == (name not in {"depthwise", "spatial", "prime"})


def test_the_jacobian_is_that_of_autograd() -> None:
    """All of it, for all outputs, and the same entries as :func:`support` counts."""
    design = best_design(16, 24, 3, stages=3)
    for one in (design, without_shuffle(design, 0)):
        torch.manual_seed(0)
        layer = SeparableConv2d(one, 0, norm=None)
        jacobian = torch.autograd.functional.jacobian(layer, torch.randn(1, 16, 3, 3))
        assert isinstance(jacobian, torch.Tensor)
        assert jacobian.shape == (1, 24, 1, 1, 1, 16, 3, 3)
        assert int(jacobian.count_nonzero()) == support(one)
        seen = (jacobian != 0).any(-1).any(-1)[0, :, 0, 0, 0]
        assert np.array_equal(seen.numpy(), one.sees)


@pytest.mark.parametrize(
    ("design", "padding", "dilation"),
    [
        (best_design(16, 24, (3, 5), (2, 1), stages=2), None, 1),
        (best_design(16, 8, 3, 2), 1, 1),
        (best_design(12, stages=3), (0, 1), 1),
        (best_design(12, stages=2), (2, 4), (2, 3)),
        (Design.depthwise(6, 10, 5, (1, 2)), 2, 1),
        (best_design(12, kernel=1, stride=2), 1, 1),
    ],
)
def test_linear_stages_are_one_convolution(design, padding, dilation) -> None:
    """Of the weight that unit vectors show, with its stride, padding and dilation."""
    torch.manual_seed(1)
    layer = SeparableConv2d(design, padding, dilation, bias=True, norm=None).double()
    bias = nn.init.normal_(layer.get_parameter(f"conv{len(design.stages) - 1}.bias"))
    (kh, kw), channels = design.kernel, design.in_channels
    dy, dx = (dilation, dilation) if isinstance(dilation, int) else dilation
    spans = dy * (kh - 1), dx * (kw - 1)
    plain = [replace(stage, stride=(1, 1)) for stage in design.stages]
    dense = SeparableConv2d(Design(tuple(plain)), spans, dilation, True, norm=None).double()
    dense.load_state_dict(layer.state_dict())
    units = torch.eye(channels, dtype=torch.float64)[:, :, None, None]
    answers = dense(units) - bias[:, None, None]
    weight = answers.flip(2, 3)[:, :, ::dy, ::dx].transpose(0, 1)
    assert weight.shape == (design.out_channels, channels, kh, kw)
    x = torch.randn(2, channels, 11, 10, dtype=torch.float64)
    pad = (spans[0] // 2, spans[1] // 2) if padding is None else padding
    expected = functional.conv2d(x, weight, bias, design.stride, pad, dilation)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("activation", "within"), [(None, 0.03), (nn.ReLU, 0.3)])
def test_initial_weights_keep_the_variance(activation, within: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 256, 12, 12)
    layer = SeparableConv2d(best_design(256), 0, norm=None, activation=activation)
    assert len(layer.design.stages) == 6
    assert float(layer(x).detach().square().mean()) == pytest.approx(1, abs=within)


def test_what_is_between_the_stages() -> None:
    design = best_design(16, stages=2)

    def kinds(**options) -> list[str]:
        return [name for name, _ in SeparableConv2d(design, **options).named_children()]

    assert kinds() == ["conv0", "norm0", "shuffle0", "conv1", "norm1"]
    assert kinds(last_norm=False) == ["conv0", "norm0", "shuffle0", "conv1"]
    assert kinds(norm=None) == ["conv0", "shuffle0", "conv1"]
    full = kinds(activation=nn.ReLU)
    assert full == ["conv0", "norm0", "act0", "shuffle0", "conv1", "norm1"]
    x = torch.arange(6.0)[None, :, None, None]
    assert ShuffleChannels(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    state = SeparableConv2d(design).state_dict()
    assert SeparableConv2d(design).load_state_dict(state, strict=True)


def small_designer(channels: int, filters: int, kernel, stride) -> Design:
    """Any number of stages where the widths are equal, else two."""
    return best_design(channels, filters, kernel, stride, stages=None if channels == filters else 2)


@pytest.mark.parametrize(
    ("designer", "total"),
    [
        (Design.conventional, 267_264),
        (Design.depthwise, 35_312),
        (partial(best_design, stages=2), 25_184),
        (small_designer, 11_744),
        (best_design, 10_496),
    ],
    ids=["conventional", "depthwise", "two", "any or two", "any"],
)
def test_resnet20_in_one_call(designer, total: int) -> None:
    network = ResNet20().eval()
    before = sum(parameter.numel() for parameter in network.parameters())
    found = separate_(network, designer, norm=None)
    assert [each.name for each in found if each.design is None] == (
        ["conv1"] if total < 267_264 else [each.name for each in found]
    )
    assert found[0].reason == "it takes 3 channels to 16, fewer than 8"
    assert sum(each.parameters for each in found[1:]) == 267_264
    assert sum(each.left for each in found[1:]) == total
    after = sum(parameter.numel() for parameter in network.parameters())
    assert before - after == 267_264 - total
    assert not any(module.training for module in network.modules())
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


class Odd(nn.Conv2d):
    """A convolution that may do anything."""


def test_what_is_left_and_why() -> None:
    def conv(*shape, **options) -> nn.Conv2d:
        return nn.Conv2d(*shape, padding=options.pop("padding", 1), **options)

    network = nn.ModuleDict(
        {
            "plain": conv(16, 32, 3, stride=2, dilation=2),
            "same": nn.Conv2d(16, 16, (3, 5), padding="same", bias=False),
            "subclass": Odd(16, 16, 3),
            "hooked": conv(16, 16, 3),
            "point": nn.Conv2d(16, 16, 1),
            "grouped": conv(16, 16, 3, groups=4),
            "stem": conv(3, 16, 3),
            "mirrored": conv(16, 16, 3, padding_mode="reflect"),
            "even": nn.Conv2d(16, 16, 4, padding="same"),
            "chosen": conv(16, 16, 3),
            "tied": conv(16, 16, 3),
            "other": conv(16, 16, 3),
        }
    )
    network["hooked"].register_forward_hook(lambda *_: None)
    network["tied"].weight = network["other"].weight
    network["again"] = network["plain"]
    network["plain"].double().requires_grad_(False)
    found = separate_(network, filter_fn=lambda module, name: name != "chosen")
    assert {each.name: each.reason for each in found if each.design is None} == {
        "subclass": "it is a Odd, which may compute something else than a Conv2d",
        "hooked": "it has hooks, which would be lost",
        "point": "it has one tap",
        "grouped": "it has 4 groups already",
        "stem": "it takes 3 channels to 16, fewer than 8",
        "mirrored": "it pads with 'reflect', not with zeros",
        "even": "its padding 'same' is not the same on both sides",
        "chosen": "filter_fn leaves it out",
        "tied": "it shares a parameter with another layer",
        "other": "it shares a parameter with another layer",
    }
    assert network["again"] is network["plain"]
    assert isinstance(network["plain"], SeparableConv2d)
    parameters = list(network["plain"].parameters())
    assert all(x.dtype == torch.float64 and not x.requires_grad for x in parameters)
    assert network["plain"][-1].bias is not None
    shape = nn.Conv2d(16, 32, 3, 2, 1, 2)(torch.zeros(1, 16, 9, 9)).shape
    assert network["plain"](torch.zeros(1, 16, 9, 9, dtype=torch.float64)).shape == shape
    assert network["same"](torch.zeros(1, 16, 9, 8)).shape == (1, 16, 9, 8)
    assert network["same"][-1].bias is None
    with pytest.raises(ValueError, match=r"^separate_ replaces the convolutions inside of a"):
        separate_(nn.Conv2d(16, 16, 3))


class Small(nn.Sequential):
    """A layer before, separable convolutions of many shapes, one after."""

    def __init__(self, *parts: nn.Module, channels: int) -> None:
        super().__init__(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), *parts,
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip


def small(*made: Design) -> nn.Module:
    """A network of the designs, in evaluation mode, whose statistics are real."""
    torch.manual_seed(0)
    layers = [part for design in made for part in (SeparableConv2d(design), nn.ReLU())]
    network = Small(*layers, channels=made[0].in_channels)
    with torch.no_grad():
        network(torch.randn(8, 3, 9, 9))
    return network.eval()


def test_from_torch_to_the_rtl() -> None:
    """Separable layers with every kind of shuffle: float, hardware mode, golden, machine, RTL."""
    model = small(
        best_design(24, 40, 3, 2, stages=2), best_design(40, stages=3), best_design(40, 20)
    )
    images = np.random.default_rng(0).normal(size=(6, 3, 9, 9)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))
    program = torch.export.export(
        model, (torch.zeros(2, 3, 9, 9),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    layers = lower(read(program))
    (tensors,) = float_tensors(layers, images)
    torch.testing.assert_close(tensors[layers[-1].name].flatten(1), expected, rtol=1e-4, atol=1e-4)
    network = quantize(program, images, QuantConfig(block=CONFIG.rows))
    golden = network.compute(images)
    for compiled in (True, False):
        mode = HardwareNetwork(network, compiled=compiled)
        assert not different_tensors(mode.compute(images), golden)
    compiled = compile_network(network, CONFIG)
    content = compiled.encode_input(network.encode_input(images[:1]))
    run = run_program(compiled, content)
    assert (run.mismatches, run.first) == (0, None)
    assert run.compared > 1000
    assert run.cycles[0] == estimate(compiled, network.macs()).total.cycles


DSCONV = {
    "two": best_design(32, stages=2),
    "three": best_design(32, 24, 3, 2, stages=3),
    "free": best_design(32, kernel=5),
    "depthwise": Design.depthwise(32, 40, 3),
    "groups across blocks": Design((Stage(24, 24, 2, (3, 1), shuffle=2), Stage(24, 36, 3, (1, 3)))),
}


@pytest.mark.parametrize("name", DSCONV)
def test_dsconv_layers_on_the_rtl(name: str) -> None:
    """4-bit codes that torch chose, 4-bit activations: hardware mode, golden, machine, RTL."""
    model = small(DSCONV[name])
    quantize_(model, DSConvConfig(weight_bits=4, block=16, scale="bf16"))
    images = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)
    network = quantize(model, images, QuantConfig(weight_bits=4, act_bits=4, block=CONFIG.rows))
    layers = {layer.name: layer for layer in network.layers}
    for number, stage in enumerate(DSCONV[name].stages):
        (term,) = layers[f"2.conv{number}"].terms
        codes = model.get_submodule(f"2.conv{number}").get_buffer("codes")
        assert np.count_nonzero(term.kernel.codes) == np.count_nonzero(codes) > 0
        assert layers[f"2.conv{number}"].macs_per_pixel == stage.parameters
    golden = network.compute(images)
    assert not different_tensors(HardwareNetwork(network).compute(images), golden)
    program = compile_network(network, CONFIG)
    run = run_program(program, program.encode_input(network.encode_input(images[:1])))
    assert (run.mismatches, run.first) == (0, None)
    assert run.compared > 1000
    assert run.cycles[0] == estimate(program, network.macs()).total.cycles


def formula_bits(stage: Stage, weight_bits: int, scale_bits: int, block: int) -> float:
    """Bits of a weight, codes and scales: b + s ceil(n / B) / n for groups of n channels."""
    return weight_bits + scale_bits * -(-stage.depth // block) / stage.depth


@pytest.mark.parametrize(("scale", "width"), [("bf16", 16), ("fp32", 32)])
def test_the_report_counts_the_scales_of_short_groups(scale: str, width: int, tmp_path) -> None:
    """The more, the fewer channels a group has: as the formula, the file and the report say."""
    stages = [Stage(32, 32, 32 // depth, (3, 1)) for depth in (32, 16, 8, 4, 1)]
    expected = [formula_bits(stage, 4, width, 16) for stage in stages]
    assert expected == {16: [5, 5, 6, 8, 20], 32: [6, 6, 8, 12, 36]}[width]
    model = small(Design(tuple(stages)))
    images = np.zeros((1, 3, 9, 9), np.float32)
    config = QuantConfig(method="l2", scale=scale, block=16)
    quantize(model, images, config).save(tmp_path / "net.safetensors")
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 9, 9),)), tmp_path / "net.pt2")
    for name, options in (("net.safetensors", []), ("net.pt2", ["--scale", scale])):
        run = CliRunner().invoke(cli.main, ["report", str(tmp_path / name), *options, "--json"])
        assert run.exit_code == 0, run.output
        layers = {each["name"]: each for each in json.loads(run.stdout)["layers"]}
        found = [layers[f"2.conv{number}"] for number in range(len(stages))]
        assert [each["bits_per_weight"] for each in found] == expected
        by_formula = [each["percent_by"]["fp16" if width == 16 else "fp32"] for each in found]
        assert by_formula == pytest.approx([100 * bits / 32 for bits in expected])


def test_what_shuffles_and_cut_groups_add_to_the_formula() -> None:
    """A block of the array has one exponent: a group that meets two has a scale for each."""
    design = DSCONV["groups across blocks"]  # 12 channels a group, then 8, in blocks of 16
    images = np.random.default_rng(0).normal(size=(1, 3, 9, 9)).astype(np.float32)
    network = quantize(small(design), images, QuantConfig(method="l2"))
    rows = {row.name: row for row in account_network(network)}
    assert formula_bits(design.stages[0], 4, 16, 16) == pytest.approx(4 + 16 / 12)
    assert rows["2.conv0"].bits_per_weight == pytest.approx(4 + 2 * 16 / 12)
    assert rows["2.conv1"].bits_per_weight == formula_bits(design.stages[1], 4, 16, 16) == 6
    # One tap on shuffled channels: all 32 of them are stored, 28 codes of 0, and two scales.
    pointwise = Design((Stage(32, 32, 8, (3, 1), shuffle=8), Stage(32, 32, 8)))
    network = quantize(small(pointwise), images, QuantConfig(method="l2"))
    rows = {row.name: row for row in account_network(network)}
    assert rows["2.conv0"].bits_per_weight == formula_bits(pointwise.stages[0], 4, 16, 16) == 8
    assert rows["2.conv1"].bits_per_weight == (32 * 4 + 2 * 16) / 4
    graph = read(small(pointwise), torch.zeros(1, 3, 9, 9))
    before = {row.name: row for row in account_graph(graph, 4, 16, SCALE_FORMATS["bf16"])}
    assert before["2.conv1"].bits_per_weight == 8


def test_one_tap_takes_shuffled_channels_from_where_they_are() -> None:
    """No layer gathers them; several taps would each have to."""
    design = Design(
        (
            Stage(32, 32, 8, (3, 1), shuffle=8),
            Stage(32, 32, 8, shuffle=8),
            Stage(32, 32, 4, (1, 3)),
        )
    )
    graph = read(small(design), torch.zeros(1, 3, 8, 8))
    layers = {layer.name: layer for layer in lower(graph)}
    assert [name for name in layers if "gather" in name] == ["2.conv2.gather"]
    (term,) = layers["2.conv1"].terms
    assert (term.weight.shape, term.groups) == ((32, 32, 1, 1), 1)
    assert np.count_nonzero(term.weight) == 32 * 4
    assert layers["2.conv1"].macs_per_pixel == 32 * 4


def test_codes_of_a_dsconv_layer_keep_their_values_where_they_are_folded() -> None:
    model = small(Design((Stage(32, 32, 8, (3, 3), shuffle=8), Stage(32, 48, 4))))
    quantize_(model, DSConvConfig(block=16, scale="bf16"))
    layer = model.get_submodule("2.conv1")
    assert isinstance(layer, DSConv2d)
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    network = quantize(model, images, QuantConfig(block=16))
    found = next(each for each in network.layers if each.name == "2.conv1")
    (term,) = found.terms
    dense = term.kernel.reconstruct()[:, :, 0, 0]
    expected = layer.codes[:, :, 0, 0].numpy()
    for filter_, row in enumerate(term.kernel.codes[:, :, 0, 0]):
        group = filter_ // 12
        places = [channel % 8 * 4 + channel // 8 for channel in range(group * 8, group * 8 + 8)]
        assert row[places].tolist() == expected[filter_].tolist()
        assert np.count_nonzero(dense[filter_]) == np.count_nonzero(expected[filter_])


def test_cycles_are_those_of_the_exported_layer() -> None:
    for design in (best_design(24, 40, 3, 2, stages=2), best_design(32), Design.spatial(16, 16, 3)):
        config = HardwareConfig(8, 4)
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, design.in_channels, 1), nn.ReLU(), SeparableConv2d(design), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        ).eval()  # fmt: skip
        images = np.random.default_rng(0).normal(size=(1, 1, 9, 10)).astype(np.float32)
        network = quantize(model, images, QuantConfig(block=8, method="l2"))
        shares = estimate(compile_network(network, config), network.macs()).layers
        own = sum(share.cycles for name, share in shares.items() if name.startswith("2."))
        assert design_cycles(design, config, (9, 10)) == own


@pytest.mark.parametrize(("rows", "cols"), [(16, 16), (8, 16), (16, 4)])
def test_the_fastest_design_is_the_fastest(rows: int, cols: int) -> None:
    config, size = HardwareConfig(rows, cols), (6, 6)
    found = fastest_design(config, 16, size=size, stages=2, most_parameters=800)
    every = list(takewhile(lambda each: each.parameters <= 800, designs(16, stages=2)))
    every.append(best_design(16))  # of any number of stages
    cycles = [design_cycles(each, config, size) for each in every]
    assert found.enumerated == len(every) > 15
    assert found.timed <= len(every)
    ranked = sorted((taken, each.parameters) for taken, each in zip(cycles, every, strict=True))
    assert (found.cycles, found.design.parameters) == ranked[0]
    for each, taken in zip(every, cycles, strict=True):
        assert least_cycles(each, config, size) <= taken


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: best_design(0), "in_channels must be a whole number from 1, not 0"),
        (lambda: loose(8, 2.5), "out_channels must be a whole number from 1, not 2.5"),
        (lambda: best_design(8, kernel=0),
         "kernel must be from 1, a whole number or a pair, not 0"),
        (lambda: best_design(8, stride=(1, 0)),
         "stride must be from 1, a whole number or a pair, not (1, 0)"),
        (lambda: best_design(8, stages=0), "stages must be a whole number from 1, not 0"),
        (lambda: best_design(8, stages=()), "stages must be a whole number from 1, not None"),
        (lambda: best_design(8, widths=[]), "widths must be a whole number from 1, not None"),
        (lambda: loose(8, objective="area"),
         "objective must be one of parameters, macs, not 'area'"),
        (lambda: best_design(1, stages=iter((3, 4))),
         "no design of 3 or 4 stages takes 1 channels to 1 in which each stage mixes channels or "
         "pixels"),
        (lambda: best_design(1, kernel=1),
         "no design of any number of stages takes 1 channels to 1 in which each stage mixes "
         "channels or pixels"),
        (lambda: best_design(1, stages=3),
         "no design of 3 stages takes 1 channels to 1 in which each stage mixes channels or "
         "pixels"),
        (lambda: Stage(8, 6, 4), "groups must divide 8 and 6 channels, not 4"),
        (lambda: Stage(8, 8, shuffle=3), "shuffle must divide 8 channels, not 3"),
        (lambda: loose_stage(8, 8, kernel=3), "kernel must be a pair, not 3"),
        (lambda: Stage(8, 8, 0), "groups must be a whole number from 1, not 0"),
        (lambda: Design(()), "a design must have at least one stage"),
        (lambda: Design((Stage(8, 4), Stage(8, 8))), "stage 2 takes 8 channels, stage 1 gives 4"),
        (lambda: Design((Stage(8, 8, shuffle=2),)), "the last stage must not shuffle its channels"),
        (lambda: Design((Stage(8, 8, stride=(2, 1)), Stage(8, 8, 1, (3, 1)))),
         "stage 2 has a kernel of (3, 1) after a stride of 2"),
        (lambda: SeparableConv2d(best_design(8), -1),
         "padding must be from 0, a whole number or a pair, not (-1, -1)"),
        (lambda: fastest_design(CONFIG, 8, size=(4, 4), most_parameters=5),
         "no design of 1, 2 or 3 stages has at most 5 parameters"),
    ],
)  # fmt: skip
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make()
    assert str(error.value) == message


def test_the_command(tmp_path: Path) -> None:
    run = CliRunner().invoke(cli.main, ["separable", "--channels", "64", "--stages", "2", "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    names = ("parameters", "macs", "conventional", "depthwise", "spatial")
    assert [found[name] for name in names] == [3072, 3072, 36864, 4672, 24576]
    assert [stage["groups"] for stage in found["stages"]] == [8, 8]
    hardware = tmp_path / "hw.toml"
    hardware.write_text("rows = 8\ncols = 8\n")
    options = ["--channels", "16", "--stages", "1,2", "--size", "6", "--hw", str(hardware)]
    few = CliRunner().invoke(cli.main, ["separable", *options, "--json"])
    fast = CliRunner().invoke(cli.main, ["separable", *options, "--objective", "cycles", "--json"])
    assert fast.exit_code == few.exit_code == 0, fast.output + few.output
    assert json.loads(fast.stdout)["cycles"] <= json.loads(few.stdout)["cycles"]
    shown = CliRunner().invoke(cli.main, ["separable", "--channels", "16", "--kernel", "3,5"])
    assert "16: " in shown.stdout
    for wrong, message in (
        (["--kernel", "3,3,3"], "--kernel must be from 1, a whole number or a pair, not (3, 3, 3)"),
        (["--objective", "cycles"], "--objective cycles needs --hw, the hardware that they are"),
        (["--hw", str(hardware)], "--hw needs --size, the height and width of the input"),
    ):
        run = CliRunner().invoke(cli.main, ["separable", "--channels", "16", *wrong])
        assert run.exit_code == 1
        assert message in run.stderr


def test_a_missed_limit_fails_the_tables(monkeypatch) -> None:
    row = benchmark.measure_design(64, 3)
    assert not benchmark.design_failed(row)
    for change in (
        {"parameters": row["parameters"] + 64}, {"closed_form": 2900.0}, {"free": row["free"] + 64},
        {"support": 0.99}, {"support_without": [1.0]}, {"free_bound": row["free"] + 1.0},
    ):  # fmt: skip
        assert benchmark.design_failed(row | change), change
    monkeypatch.setattr(benchmark, "CHANNELS", (64, 256))
    monkeypatch.setattr(benchmark, "KERNELS", (3,))
    monkeypatch.setattr(
        benchmark, "measure_design", lambda c, k: row | {"channels": c, "parameters": c}
    )
    monkeypatch.setattr(benchmark, "design_failed", lambda row: False)
    run = CliRunner().invoke(benchmark.main, ["designs"])
    assert run.exit_code == 1  # the exponent is 1
    assert "1.000 (K=3)" in run.stdout

    case = benchmark.measure_cycles(16, 3, 6, 8, 8)
    assert not benchmark.cycles_failed(case)
    assert benchmark.cycles_failed(case | {"two": case["cycles"] - 1})
    monkeypatch.setattr(benchmark, "CASES", ((16, 3, 6, 8, 8),) * 3)
    for faster, code in ((3, 0), (2, 1)):
        slow = [case | dict.fromkeys(("two", "three", "any"), case["cycles"] + 1)] * faster
        rows = slow + [case | dict.fromkeys(("two", "three", "any"), case["cycles"])] * (3 - faster)
        monkeypatch.setattr(benchmark, "measure_cycles", lambda *_, rtl, rows=rows: rows.pop())
        assert CliRunner().invoke(benchmark.main, ["cycles"]).exit_code == code


def test_the_tables_of_simulated_cycles(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "HardwareConfig", lambda rows, cols: CONFIG)
    monkeypatch.setattr(benchmark, "CASES", ((8, 3, 4, 4, 4),))
    monkeypatch.setattr(benchmark, "FASTER", 0)
    run = CliRunner().invoke(benchmark.main, ["cycles", "--rtl", "--json"])
    assert run.exit_code == 0, run.output
    (row,) = json.loads(run.stdout)
    rtl = row["rtl"]
    assert (rtl["differences"], rtl["mismatches"]) == (0, 0)
    assert rtl["compared"] > 1000
    # Of whole networks, which differ in the stages alone.
    before = {rtl["cycles"][name] - row[name] for name in ("two", "three", "any", "cycles")}
    assert min(before) > 0
    for change in ({"differences": 1}, {"mismatches": 1}):
        assert benchmark.cycles_failed(row | {"rtl": rtl | change}), change
    monkeypatch.setattr(benchmark, "measure_cycles", lambda *_, rtl: row)
    shown = CliRunner().invoke(benchmark.main, ["cycles", "--rtl"])
    assert f"{rtl['cycles']['cycles']:,}" in shown.stdout
    assert "of whole networks faster in" in shown.stdout


def test_utilization_of_groups(monkeypatch) -> None:
    row = separable_rtl.measure(8, channels=32, size=8, layers=2)
    assert (row["difference"], row["mismatches"]) == (0, 0)
    assert row["compared"] > 6000
    assert row["macs"] == 2 * 64 * 32 * 8 * 9
    assert (row["ceiling"], row["apart"]) == (0.5, 0.25)
    assert 0.25 < row["utilization"] < row["layers_only"] <= 0.5
    assert separable_rtl.failed(row)  # it is too small for its limit
    kept = row | {"utilization": 0.45}
    assert not separable_rtl.failed(kept)
    for change in ({"difference": 1}, {"mismatches": 1}):
        assert separable_rtl.failed(kept | change)
    monkeypatch.setattr(separable_rtl, "DEPTHS", (8,))
    for found, code in ((kept, 0), (row, 1)):
        monkeypatch.setattr(separable_rtl, "measure", lambda depth, found=found: found)
        run = CliRunner().invoke(benchmark.main, ["utilization"])
        assert run.exit_code == code
        assert "45.00%" in run.stdout


def test_the_example_from_a_model_to_cycles_saved(capsys) -> None:
    arguments = ["--epochs", "1", "--stages", "2", "--rtl"]
    separate.main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in found["layers"]][::4] == ["conv2", "block2.conv2"]
    for row in found["layers"]:
        before, after = row["cycles"]
        assert row["replaced"] == (after < before)
        assert row["parameters"][0] > row["parameters"][1]
    assert found["simulated"] == found["cycles"] < found["cycles_before"]
    assert found["mismatches"] == 0
    assert found["compared"] > 5000
    with pytest.raises(SystemExit):
        separate.main(["--hw", "missing.toml"])
    assert "error: missing.toml: cannot be read" in capsys.readouterr().err


def test_the_table_of_trainings_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    """A network of one convolution on 40 images: versions, seeds, and what a second call reads."""
    rng = np.random.default_rng(0)
    for split, count in (("train-20k", 40), ("test", 20)):
        np.savez(
            tmp_path / f"cifar10-{split}.npz", x=rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
            y=rng.integers(0, 10, count).astype(np.uint8),
        )  # fmt: skip
    trained, train = [], separable_training.fit

    def counting(*arguments, **options) -> None:
        trained.append(torch.initial_seed())
        train(*arguments, **options)

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 4, 1), nn.BatchNorm2d(16),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip

    measured = partial(separable_training.measure, make=make)
    monkeypatch.setattr(separable_training, "measure", measured)
    monkeypatch.setattr(separable_training, "fit", counting)
    monkeypatch.setattr(separable_training, "failed", lambda row: False)
    monkeypatch.setenv("SHIFTCORE_DATA", str(tmp_path))
    command = ["train", "--epochs", "1", "--version", "two", "--version", "conventional"]
    command += ["-o", str(tmp_path / "out"), "--json"]
    first = CliRunner().invoke(benchmark.main, command)
    assert first.exit_code == 0, first.output
    two, conventional = json.loads(first.stdout)
    assert (two["version"], two["seeds"], len(two["top1"])) == ("two", [0, 1], 2)
    own = {"conventional": 16 * 16 * 9, "two": best_design(16, stages=2).parameters}
    assert conventional["parameters"] == own["conventional"] + 3 * 16 + 160
    assert two["parameters"] == own["two"] + 3 * 16 + 160
    assert two["bits"] > 4 * two["parameters"]
    assert trained == [0, 0, 1, 1]
    second = CliRunner().invoke(benchmark.main, command)
    assert json.loads(second.stdout) == [two, conventional]
    assert len(trained) == 4
    shown = CliRunner().invoke(benchmark.main, command[:-1])
    assert "1 epochs of 40 training images" in shown.stdout
    assert "a short schedule" in shown.stdout
    monkeypatch.setattr(separable_training, "hardware", lambda network: CONFIG)
    simulated = CliRunner().invoke(benchmark.main, [*command, "--rtl", "2"])
    assert simulated.exit_code == 0, simulated.output
    rows = json.loads(simulated.stdout)
    assert [(row["version"], row["images"]) for row in rows] == [("two", 2), ("conventional", 2)]
    assert all(row["cycles"] == [row["predicted"]] * 2 for row in rows)
    assert all(row["compared"] > 2 * 8 * 8 * 16 and row["mismatches"] == 0 for row in rows)
    assert len(trained) == 4


@pytest.mark.parametrize(
    ("changed", "failed"),
    [({}, False), ({"mismatches": 1}, True), ({"cycles": [7, 8]}, True)],
)
def test_a_simulation_that_differs_fails(changed: dict, failed: bool) -> None:
    row = {"mismatches": 0, "cycles": [7, 7], "predicted": 7} | changed
    assert separable_training.simulation_failed(row) == failed


def test_a_training_of_another_recipe_is_refused(tmp_path: Path, monkeypatch) -> None:
    found = {"recipe": "batches of 1", "device": "cpu", "float_top1": 50.0, "top1": 49.0}
    (tmp_path / "two-0-1-40.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "two-0-1-40.safetensors").touch()
    data = np.zeros((40, 3, 32, 32), np.float32), np.zeros(40, np.int64)
    with pytest.raises(click.ClickException, match="is that of a training with batches of 1, not"):
        separable_training.measure("two", 0, 1, data, data, tmp_path)
    kept = tmp_path / f"two-0-1-{len(data[0])}.json"
    kept.write_text(json.dumps(found | {"recipe": separable_training.RECIPE, "modules": "others"}))
    with pytest.raises(click.ClickException, match=r"of a network of other modules; remove it$"):
        separable_training.measure("two", 0, 1, data, data, tmp_path)


def test_a_designer_of_other_layers_is_refused_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3))
    before = list(model)
    designs = iter([best_design(16), best_design(8)])
    with pytest.raises(ValueError, match=r"design for 1 must have .*stride \(16, 16, "):
        separate_(model, lambda *_: next(designs))
    assert list(model) == before


def test_stages_are_not_separated_again() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3))
    assert [each.name for each in separate_(model, partial(best_design, stages=2))] == ["0"]
    assert separate_(model, partial(best_design, stages=2)) == []


@pytest.mark.parametrize("size", [(128, 70), (5, 200)])
def test_results_larger_than_the_buffer_are_timed(size: tuple[int, int]) -> None:
    config = HardwareConfig(16, 16, buffer_depth=4096)
    design = best_design(16, stages=2)
    cycles = design_cycles(design, config, size)
    assert cycles >= least_cycles(design, config, size)
    assert cycles < 2 * least_cycles(design, config, size)


def test_every_number_of_stages_has_a_fastest_design_and_any_number_competes() -> None:
    config = HardwareConfig(16, 16)
    one = fastest_design(config, 16, size=(8, 8), stages=1)
    assert one.enumerated == 2  # of one stage, and of any number
    assert one.cycles <= design_cycles(best_design(16), config, (8, 8))
    with pytest.raises(ValueError, match="no design of 1, 2 or 3 stages has at most 5 parameters"):
        fastest_design(config, 16, size=(8, 8), most_parameters=5)


def test_the_example_says_what_it_replaced() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1),
    )  # fmt: skip
    image = torch.zeros(1, 4, 16, 16)
    choices = separate.plan(model, image, HardwareConfig(4, 4), least_channels=4)
    faster = {choice.name for choice in choices if choice.faster}
    replaced = separate.replace_(model, choices)
    assert "2" in faster
    assert replaced == faster - {"2"}
    assert {n for n, m in model.named_children() if not isinstance(m, (nn.ReLU, nn.Conv2d))} == (
        replaced
    )


def test_a_training_that_learns_nothing_fails() -> None:
    assert separable_training.failed({"float_top1": [10.0, 10.4]})
    assert not separable_training.failed({"float_top1": [55.0, 60.0]})
