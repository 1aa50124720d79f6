"""Compiled networks compute, on the model of the machine, what their layers say, word for word."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shiftcore.compiler.network import Compiled, compile_network, compile_with_plan
from shiftcore.estimate.network import estimate
from shiftcore.examples.digits import data, model
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Drain, Load, Pass, Region, Weights
from shiftcore.golden.layers import Layer, Term
from shiftcore.golden.network import INPUT, QuantizedNetwork
from shiftcore.golden.program import Program
from shiftcore.golden.tickets import accesses
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.tests.compiler.compare import assert_computes
from shiftcore.tests.compiler.random_networks import Builder, random_config, random_network

SEEDS = range(60)
ARRAY16 = Path(__file__).parents[2] / "examples" / "array16.toml"


def loads(program: Program, region: Region) -> list[Load]:
    return [i for i in program.instructions if isinstance(i, Load) and i.region == region]


def passes(program: Program) -> list[Pass]:
    return [item for item in program.instructions if isinstance(item, Pass)]


@cache
def case(seed: int) -> tuple[QuantizedNetwork, Compiled, bool]:
    """A random network, compiled, and whether the buffer had to be made larger for it."""
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    network = random_network(rng, config)
    try:
        return network, compile_with_plan(network, config), False
    except ValueError as error:
        found = re.search(r"set buffer_depth = (\d+) or more$", str(error))
        if found is None:
            raise
        enough = replace(config, buffer_depth=int(found[1]))
        return network, compile_with_plan(network, enough), True


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_runs(seed: int):
    network, compiled, _ = case(seed)
    assert_computes(compiled.program, network, interleaving=np.random.default_rng(seed))


def test_the_random_networks_meet_everything():
    met: Counter[str] = Counter()
    for seed in SEEDS:
        network, compiled, refused = case(seed)
        program, config = compiled.program, compiled.program.config
        layers = network.layers
        terms = [term for layer in layers for term in layer.terms]
        met += Counter(
            {
                "refused, then enough": refused,
                "kept": any(layer.kept for layer in compiled.layers),
                "spilled": bool(loads(program, Region.SCRATCH)),
                "both": any(layer.kept for layer in compiled.layers)
                and bool(loads(program, Region.SCRATCH)),
                "chunks": any(layer.chunks > 1 for layer in compiled.layers),
                "parts of a row": any(place.column for place in program.places),
                "narrow": config.cols < config.rows,
                "wide": config.cols >= 2 * config.rows,
                "uneven": config.rows % config.cols > 0 and config.cols % config.rows > 0,
                "maximum": any(layer.reduce == "max" for layer in layers),
                "two terms": any(len(layer.terms) > 1 for layer in layers),
                "groups": any(term.kernel.groups > 1 for term in terms),
                "one tile": any(not item.tile_level for item in passes(program)),
                "spread": any(
                    not item.tile_level and item.loops[2].count > 1 for item in passes(program)
                ),
                "raw": layers[-1].output is None,
                "planes": program.input_shape[0] > 1,
            }
        )
    assert min(met.values()) >= 1, met


def bottleneck(config: HardwareConfig, size: int = 8) -> QuantizedNetwork:
    """Stem, max pool, residual blocks with projection and identity, global pool, classifier."""
    builder = Builder((3, size, size), config, np.random.default_rng(0))
    x = builder.convolution(INPUT, 8, (3, 3))
    pool = Term(x, builder.constant(8, (3, 3)), (2, 2), (1, 1, 1, 1))
    x = builder.add(pool, reduce="max", bias=np.zeros(8, np.float32))
    for filters, stride in ((16, 1), (16, 1), (24, 2)):
        a = builder.convolution(x, filters // 2, (1, 1))
        a = builder.convolution(a, filters // 2, (3, 3), stride=(stride, stride))
        channels = builder.shapes[x][0]
        if channels == filters and stride == 1:
            shortcut = builder.identity(x)
        else:
            kernel = builder.kernel(filters, channels, (1, 1))
            shortcut = Term(x, kernel, (stride, stride))
        x = builder.convolution(a, filters, (1, 1), shortcut)
    depth, height, width = builder.shapes[x]
    kernel = builder.constant(depth, (height, width), 1 / 4)
    x = builder.add(Term(x, kernel), bias=np.zeros(depth, np.float32))
    builder.add(Term(x, builder.kernel(10, depth, (1, 1))), raw=True)
    return builder.network()


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (8, 3), (2, 8), (4, 6)])
@pytest.mark.parametrize("depth", [16, 20, 33, 64, 100, 256, 4096])
def test_any_buffer_will_do(rows: int, cols: int, depth: int):
    config = HardwareConfig(rows, cols, buffer_depth=depth, accumulator_depth=40)
    network = bottleneck(config)
    program = compile_network(network, config)
    assert_computes(program, network, images=1)
    used = [accesses(item, config) for item in program.instructions]
    written = [a.buffer_writes.max() for a in used if a.buffer_writes.size]
    assert max(written) < depth


def test_a_smaller_buffer_moves_more():
    moved = []
    for depth in (16, 64, 256, 4096):
        config = HardwareConfig(4, 4, buffer_depth=depth)
        compiled = compile_with_plan(bottleneck(config), config)
        moved.append(sum(i.words * i.rows * i.blocks for i in loads(compiled.program, Region(2))))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] == 0 < moved[-3]


@pytest.mark.parametrize("depth", [2, 3, 5, 16, 2048])
def test_any_number_of_accumulators_will_do(depth: int):
    config = HardwareConfig(4, 4, accumulator_depth=depth)
    network = bottleneck(config)
    assert_computes(compile_network(network, config), network, images=1)


def test_the_digits_network():
    from shiftcore.quant.convert import quantize

    network = quantize(model.load(), data.load()[0].x[:256])
    config = HardwareConfig.load(ARRAY16)
    compiled = compile_with_plan(network, config)
    assert_computes(compiled.program, network, images=20)
    assert all(layer.kept for layer in compiled.layers[:-1])
    for depth in (64, 200):
        small = replace(config, buffer_depth=depth)
        assert_computes(compile_network(network, small), network)


def resnet20(config: HardwareConfig) -> QuantizedNetwork:
    """Its shapes, with a folded stem and random weights."""
    builder = Builder((27, 32, 32), config, np.random.default_rng(0))
    rng = builder.rng
    builder.rng = np.random.default_rng(3)
    x = builder.convolution(INPUT, 16, (1, 1))
    for filters in (16, 32, 64):
        for block in range(3):
            channels = builder.shapes[x][0]
            stride = (1, 1) if block or filters == 16 else (2, 2)
            a = builder.convolution(x, filters, (3, 3), stride=stride, padding=(1, 1, 1, 1))
            shortcut = builder.identity(x)
            if channels != filters:
                chosen = np.zeros((filters, channels, 1, 1))
                chosen[filters // 4 + np.arange(channels), np.arange(channels)] = 1
                kernel = VariableQuantizedKernel.quantize(chosen, weight_bits=4, block=16)
                shortcut = Term(x, kernel, stride)
            x = builder.convolution(a, filters, (3, 3), shortcut)
    builder.rng = rng
    x = builder.add(Term(x, builder.constant(64, (8, 8), 1 / 64)), bias=np.zeros(64, np.float32))
    builder.add(Term(x, builder.kernel(10, 64, (1, 1))), raw=True)
    return builder.network()


def test_resnet20_keeps_the_array_busy():
    config = HardwareConfig.load(ARRAY16)
    network = resnet20(config)
    compiled = compile_with_plan(network, config)
    assert_computes(compiled.program, network, images=1)
    assert not loads(compiled.program, Region.SCRATCH)
    assert all(layer.kept for layer in compiled.layers[:-1])
    assert estimate(compiled.program, network.macs()).total.utilization > 0.93
    # Of the passes of a convolution only the last blocks need what was drained last.
    drains, previous = 0, 0
    for item in compiled.program.instructions:
        if isinstance(item, Drain):
            drains += 1
        elif isinstance(item, Pass):
            needs_last = item.after_drain == drains > previous
            if needs_last and item.start and drains < len(compiled.program.places) - 6:
                raise AssertionError(f"pass after drain {drains} starts with what it wrote")
            previous = max(previous, item.after_drain)


def test_a_group_is_drained_beside_the_next():
    config = HardwareConfig(4, 4, accumulator_depth=64)
    program = compile_network(bottleneck(config, 12), config)
    groups: list[set[int]] = [set()]
    for item in program.instructions:
        if isinstance(item, Pass):
            groups[-1] |= set(accesses(item, config).accumulator_writes.tolist())
        elif isinstance(item, Drain) and groups[-1]:
            groups.append(set())
    met = sum(bool(a & b) for a, b in pairwise(groups))
    assert len(groups) > 40
    assert met <= 0.1 * len(groups)


def test_chunks_share_their_tiles():
    config = HardwareConfig(4, 4, accumulator_depth=32)
    builder = Builder((4, 8, 8), config, np.random.default_rng(0), input_bits=4)
    builder.rng = np.random.default_rng(5)
    builder.convolution(INPUT, 8, (3, 3), raw=True)
    program = compile_network(builder.network(), config)
    weights = [item for item in program.instructions if isinstance(item, Weights)]
    assert [item.tiles for item in weights] == [9] * 8
    first, second, *others = (item.offset for item in weights)
    assert others == [first, second] * 3
    assert first == len(program.instructions) * 8
    assert len(program.weights) == 2 * (9 * config.tile.beats(False) + config.tile.bias_beats) * 8


def test_pools_take_one_tile():
    config = HardwareConfig(4, 4)
    builder = Builder((4, 7, 7), config, np.random.default_rng(0))
    builder.rng = np.random.default_rng(5)
    x = builder.convolution(INPUT, 20, (1, 1))
    pool = Term(x, builder.constant(20, (3, 3)), (1, 1), (1, 1, 1, 1))
    x = builder.add(pool, reduce="max", bias=np.zeros(20, np.float32))
    x = builder.add(Term(x, builder.constant(20, (7, 7), 1 / 32)), bias=np.zeros(20, np.float32))
    builder.add(Term(x, builder.kernel(3, 20, (1, 1))), raw=True)
    network = builder.network()
    program = compile_network(network, config)
    assert_computes(program, network)
    pools = [item for item in passes(program) if not item.tile_level]
    assert [item.pixels for item in pools] == [9 * 49] * 5 + [49 * 5]
    # The accumulators of all blocks take turns.
    assert pools[-1].loops[2].accumulator_step == 1


@pytest.mark.parametrize("bus_bits", [32, 256])
def test_the_same_network_gives_the_same_bytes(tmp_path: Path, bus_bits: int):
    config = HardwareConfig(4, 4, buffer_depth=64, bus_bits=bus_bits)
    compile_network(bottleneck(config), config).save(tmp_path / "here")
    script = (
        "import sys; from shiftcore.golden.config import HardwareConfig;"
        "from shiftcore.compiler.network import compile_network;"
        "from shiftcore.tests.compiler.test_network import bottleneck;"
        f"config = HardwareConfig(4, 4, buffer_depth=64, bus_bits={bus_bits});"
        "compile_network(bottleneck(config), config).save(sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path / "there")],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    for name in ("model.bin", "program.json", "hardware.toml", "manifest.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    loaded = Program.load(tmp_path / "here")
    assert_computes(loaded, bottleneck(config), images=1)


def test_a_tensor_that_nobody_reads_is_written():
    config = HardwareConfig(4, 4)
    builder = Builder((4, 5, 5), config, np.random.default_rng(0))
    builder.convolution(INPUT, 6, (3, 3), raw=True)
    builder.convolution(INPUT, 6, (3, 3))
    builder.convolution(INPUT, 6, (3, 3))
    program = compile_network(builder.network(), config)
    assert_computes(program, builder.network())
    regions = [item.region for item in program.instructions if isinstance(item, Drain)]
    assert regions == [Region.SCRATCH] * 4 + [Region.OUTPUT] * 2


def single(
    config: HardwareConfig, shape: tuple[int, int, int], taps: tuple[int, int], **options: object
) -> QuantizedNetwork:
    rng = np.random.default_rng(0)
    builder = Builder(shape, config, rng)
    kernel = VariableQuantizedKernel.quantize(
        rng.normal(size=(2, shape[0], *taps)), weight_bits=4, block=config.rows
    )
    term = Term(INPUT, kernel, **options)  # pyright: ignore[reportArgumentType]
    layer = Layer("stem", (term,), np.zeros(2, np.float32))
    return QuantizedNetwork(builder.input, shape, (layer,))


@pytest.mark.parametrize(
    ("shape", "taps", "options", "message"),
    [
        (
            (1, 1, 2048),
            (1, 1),
            {},
            "layer 'stem' reads a picture of 1 x 2048 pixels and its padding: at most 2047 in a "
            "row or column can be addressed",
        ),
        (
            (1, 300, 1),
            (1, 1),
            {"stride": (128, 1)},
            "layer 'stem' has stride (128, 1) and dilation (1, 1): each must be at most 127",
        ),
        (
            (1, 9, 9),
            (9, 9),
            {},
            "layer 'stem' needs 81 words of the activation buffer for one output pixel, but there "
            "are 80: set buffer_depth = 81 or more",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, int, int], taps: tuple[int, int], options: dict, message: str
):
    config = HardwareConfig(4, 4, buffer_depth=80)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compile_network(single(config, shape, taps, **options), config)


def test_memory_that_cannot_be_addressed_is_refused():
    shape = 1, 100, 100
    config = HardwareConfig(4, 4, buffer_depth=1 << 14)
    sizes = compile_network(single(config, shape, (1, 1)), config).sizes
    need = sum(-(-8 * size // 4096) for size in sizes) * 4096
    bits = (need - 1).bit_length()
    fits, short = (replace(config, address_bits=b) for b in (bits, bits - 1))
    assert compile_network(single(fits, shape, (1, 1)), fits).sizes == sizes
    message = (
        f"^the network takes {need} bytes of memory for one image, address_bits = {bits - 1} has "
        f"{1 << bits - 1}: it must be at least {bits}$"
    )
    with pytest.raises(ValueError, match=message):
        compile_network(single(short, shape, (1, 1)), short)


def test_a_network_for_other_hardware_is_refused():
    config = HardwareConfig(4, 4)
    with pytest.raises(ValueError, match=r"^the network has blocks of 4 channels but the array"):
        compile_network(bottleneck(config), HardwareConfig(8, 4))


def test_enough_is_enough():
    config = HardwareConfig(4, 4, buffer_depth=81)
    network = single(config, (1, 9, 9), (9, 9))
    assert_computes(compile_network(network, config), network)
