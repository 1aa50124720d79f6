"""Layers lowered to passes and drains give, on the model of the engine, the layer's own bits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftcore.compiler.lower import LayerProgram, check, lower
from shiftcore.golden.bfp import BlockFloat, BlockTensor, FixedPoint, Rounding
from shiftcore.golden.compare import same_numbers
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fixed import FixedFormat, Grid
from shiftcore.golden.floats import FLOAT32, SCALE_FORMATS
from shiftcore.golden.layers import Layer, Reduce, Term
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.passes import Drain, Engine, Pass
from shiftcore.golden.vqk import VariableQuantizedKernel

LOWEST = np.float32(-FLOAT32.largest)


def run(layer: Layer, sources: dict[str, BlockTensor], config: HardwareConfig):
    program = lower(layer, sources, config)
    return program.collect(Engine(config.engine).run(program.work))


@st.composite
def kernels(draw: st.DrawFn, config: HardwareConfig, kind: str, filters: int):
    """A kernel of the configuration's widths; random codes and scales, some blocks zero."""
    bits = draw(st.integers(2, config.weight_bits))
    if kind == "depthwise":
        depth, groups = 1, filters
    else:
        depth = draw(st.integers(1, 2 * config.rows + 1))
        groups = draw(st.sampled_from([g for g in (1, 1, 2, 3) if filters % g == 0]))
    taps = draw(st.sampled_from([(1, 1), (2, 2), (3, 1), (2, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    limit = 1 << (bits - 1)
    codes = rng.integers(-limit, limit, (filters, depth, *taps)).astype(np.int8)
    if draw(st.booleans()):  # some steps without any code
        codes *= rng.random((1, depth, *taps)) < draw(st.sampled_from([0, 0.4]))
    form = SCALE_FORMATS[config.scale]
    kernel = VariableQuantizedKernel.quantize(
        codes, weight_bits=bits, block=config.rows, groups=groups, scale_format=form
    )
    scales = form.round(np.ldexp(rng.uniform(1, 2, kernel.scales.shape), -4))
    if form.signed:
        scales *= rng.choice([1, -1], scales.shape).astype(np.float32)
    scales[kernel.scales == 0] = 0
    return replace(kernel, codes=codes, scales=scales)


@st.composite
def sources(
    draw: st.DrawFn, config: HardwareConfig, shape: tuple[int, ...], reduce: Reduce = "add"
) -> BlockTensor:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(size=shape).astype(np.float32) * 2
    x[rng.random(shape) < 0.2] = 0
    kind = draw(
        st.sampled_from(["unsigned", "signed", "negative"] + ["planes"] * (reduce == "add"))
    )
    if kind == "planes":
        return FixedPoint(-4, config.rows, config.act_bits).compute(x)
    if kind == "negative":
        x = -np.abs(x)
    return BlockFloat(config.rows, config.act_bits, kind != "unsigned").compute(x)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layer, dict[str, BlockTensor], HardwareConfig]:
    rows = draw(st.integers(1, 6))
    cols = draw(st.one_of(st.integers(1, rows), st.integers(rows + 1, 2 * rows + 4)))
    config = HardwareConfig(
        rows,
        cols,
        draw(st.integers(2, 8)),
        draw(st.integers(2, 8)),
        draw(st.sampled_from(list(SCALE_FORMATS))),
        accumulator_depth=max(2, -(-rows // cols)) + draw(st.sampled_from([0, 5, 30, 200])),
    )
    reduce: Reduce = draw(st.sampled_from(["add", "add", "max"]))
    kind = "depthwise" if reduce == "max" else draw(st.sampled_from(["dense", "depthwise"]))
    filters = draw(st.integers(1, 14))
    kernel = draw(kernels(config, kind, filters))
    if reduce == "max" and draw(st.booleans()):
        kernel = replace(kernel, codes=np.abs(kernel.codes.clip(-1)), scales=np.abs(kernel.scales))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(*[st.integers(-1, 2)] * 4))
    term = Term("x", kernel, stride, padding, dilation)
    taps = kernel.codes.shape[2:]
    height, width = (
        d * (k - 1) + draw(st.integers(1, 3)) - min(pad[0], 0) - min(pad[1], 0)
        for d, k, pad in zip(dilation, taps, (padding[:2], padding[2:]), strict=True)
    )
    tensors = {"x": draw(sources(config, (1, kernel.in_channels, height, width), reduce))}
    terms = [term]
    if reduce == "add" and draw(st.booleans()):
        second = draw(kernels(config, draw(st.sampled_from(["dense", "depthwise"])), filters))
        second = replace(
            second, codes=second.codes[:, :, :1, :1], scales=second.scales[:, :, :1, :1]
        )
        size = term.output_size(height, width)
        terms.append(Term("y", second))
        tensors["y"] = draw(sources(config, (1, second.in_channels, *size)))
    if reduce == "max" and draw(st.booleans()):
        bias = np.full(filters, LOWEST)
    else:
        bias = np.random.default_rng(filters).normal(size=filters).astype(np.float32)
    output = draw(
        st.sampled_from([None, *(BlockFloat(rows, config.act_bits, s) for s in (False, True))])
    )
    return Layer("layer", tuple(terms), bias, reduce, output), tensors, config


@given(cases())
@settings(max_examples=200)
def test_a_lowered_layer_is_the_layer(case: tuple):
    layer, tensors, config = case
    assert same_numbers(run(layer, tensors, config), layer.compute(tensors))


@given(cases())
def test_work_fits_the_hardware(case: tuple):
    """Every pass has a tile that can be sent; accumulators start once, and before they continue."""
    layer, tensors, config = case
    started: set[int] = set()
    for item in lower(layer, tensors, config).work:
        if isinstance(item, Drain):
            assert item.addresses.size
            assert set(item.addresses.tolist()) <= started
            if item.form != "raw":
                assert item.addresses.size % config.requantizer.beats_per_block == 0
            started -= set(item.addresses.tolist())
            continue
        assert len(config.tile.pack(item.codes, item.scales, item.biases)) == (
            config.tile.beats(item.start)
        )
        addresses = item.addresses.tolist()
        assert 1 <= len(addresses) == len(set(addresses)) <= config.accumulator_depth
        assert started.isdisjoint(addresses) if item.start else started.issuperset(addresses)
        started.update(addresses)
        for operand in (item.lanes, item.exponents, item.keep):
            assert len(operand) == item.pixels
    assert not started


def convolution(
    depth: int, filters: int, size: int, config: HardwareConfig, raw: bool = False, groups: int = 1
) -> LayerProgram:
    """The program of a 3x3 convolution with padding, which computes what it should."""
    rng = np.random.default_rng(0)
    kernel = VariableQuantizedKernel.quantize(
        rng.normal(size=(filters, depth // groups, 3, 3)),
        weight_bits=4,
        block=config.rows,
        groups=groups,
    )
    x = BlockFloat(config.rows, 4).compute(
        rng.normal(size=(1, depth, size, size)).astype(np.float32)
    )
    output = None if raw else BlockFloat(config.rows, 4)
    bias = rng.normal(size=filters).astype(np.float32)
    layer = Layer("conv", (Term("x", kernel, padding=(1, 1, 1, 1)),), bias, output=output)
    assert same_numbers(run(layer, {"x": x}, config), layer.compute({"x": x}))
    return lower(layer, {"x": x}, config)


def summary(program: LayerProgram) -> list[str]:
    """One letter an item: a starting pass, a continuing pass, a drain; with their pixels."""
    return [
        f"d{item.addresses.size}"
        if isinstance(item, Drain)
        else f"{'s' if item.start else 'c'}{item.pixels}"
        for item in program.work
    ]


def test_column_tiles_take_turns():
    config = HardwareConfig(4, 4, accumulator_depth=32)
    program = convolution(8, 8, 4, config)
    # 16 pixels, two column tiles together: 2 blocks x 9 kernel positions, each for both tiles
    assert summary(program) == ["s16"] * 2 + ["c16"] * 34 + ["d16"] * 2
    passes = [item for item in program.work if isinstance(item, Pass)]
    assert [item.addresses[0] for item in passes] == [0, 16] * 18
    # The tiles of one step see the same pixels.
    for first, second in zip(passes[::2], passes[1::2], strict=True):
        assert np.array_equal(first.lanes, second.lanes)
        assert np.array_equal(first.exponents, second.exponents)


def test_few_accumulators_cut_the_pixels():
    config = HardwareConfig(4, 4, accumulator_depth=12)
    one_tile = ["s12", *["c12"] * 17, "d12"]
    rest = ["s4", *["c4"] * 17, "d4"]
    assert summary(convolution(8, 8, 4, config)) == one_tile * 2 + rest * 2


def test_narrow_columns_make_a_block_of_several_rows():
    config = HardwareConfig(4, 2, accumulator_depth=64)
    program = convolution(4, 6, 4, config)
    # Blocks of 4 and 2 filters: column tiles of 2, 2 and 2, and an empty one for the last lanes.
    assert summary(program) == ["s16"] * 3 + ["c16"] * 24 + ["s16"] + ["d32"] * 2
    drain = next(item for item in program.work if isinstance(item, Drain))
    assert drain.addresses[:6].tolist() == [0, 16, 1, 17, 2, 18]


def test_wide_columns_make_several_blocks_of_a_row():
    config = HardwareConfig(4, 9, accumulator_depth=64)
    program = convolution(4, 12, 4, config)
    # Two blocks of four fit nine columns; the ninth is not used.
    assert summary(program) == ["s16"] * 2 + ["c16"] * 16 + ["d16"] * 2
    assert [place.start for place, _ in program.places] == [0, 2]
    assert not any(item.codes[:, 8].any() for item in program.work if isinstance(item, Pass))


def test_a_raw_result_uses_every_column():
    config = HardwareConfig(4, 9, accumulator_depth=64)
    program = convolution(4, 12, 4, config, raw=True)
    assert summary(program) == ["s16"] * 2 + ["c16"] * 16 + ["d16"] * 2
    assert [(place.start, place.stop) for place, _ in program.places] == [(0, 9), (9, 12)]


def test_groups_pass_only_where_they_meet_a_tile():
    config = HardwareConfig(4, 4, accumulator_depth=64)
    program = convolution(8, 8, 2, config, groups=8)
    assert summary(program) == [*["s4"], *["c4"] * 8] * 2 + ["d4"] * 2


def pool(config: HardwareConfig, signed: bool, filters: int, output: BlockFloat | None):
    rng = np.random.default_rng(1)
    x = rng.uniform(1, 2, (1, filters, 4, 4)).astype(np.float32) * (-1 if signed else 1)
    kernel = VariableQuantizedKernel.depthwise(
        filters, (2, 2), 1, 1.0, weight_bits=4, block=config.rows
    )
    layer = Layer("pool", (Term("x", kernel, (2, 2)),), np.full(filters, LOWEST), "max", output)
    return layer, {"x": BlockFloat(config.rows, config.act_bits, signed).compute(x)}


@pytest.mark.parametrize(("rows", "cols", "filters"), [(2, 8, 8), (4, 11, 9), (4, 3, 6), (4, 2, 6)])
@pytest.mark.parametrize("raw", [False, True])
def test_a_maximum_of_negative_numbers_is_negative(rows: int, cols: int, filters: int, raw: bool):
    # A column that another block's step does not touch must not see the product 0.
    config = HardwareConfig(rows, cols)
    layer, tensors = pool(config, True, filters, None if raw else BlockFloat(rows, 4, True))
    result = run(layer, tensors, config)
    assert same_numbers(result, layer.compute(tensors))
    values = result if isinstance(result, np.ndarray) else result.values()
    assert values.max() < 0


def test_a_maximum_of_unsigned_numbers_uses_every_column():
    config = HardwareConfig(2, 8)
    for signed, drains in ((False, 1), (True, 4)):
        layer, tensors = pool(config, signed, 8, BlockFloat(2, 4, True))
        work = lower(layer, tensors, config).work
        assert sum(isinstance(item, Drain) for item in work) == drains


def test_a_signed_maximum_whose_groups_cut_a_block_is_refused():
    config = HardwareConfig(4, 4)
    kernel = VariableQuantizedKernel.quantize(
        np.ones((6, 3, 1, 1)), weight_bits=4, block=4, groups=2
    )
    layer = Layer("pool", (Term("x", kernel),), np.zeros(6, np.float32), "max")
    x = BlockFloat(4, 4, True).compute(np.ones((1, 6, 2, 2), np.float32))
    with pytest.raises(
        ValueError, match=r"^max layer 'pool': groups must not cut an output block$"
    ):
        lower(layer, {"x": x}, config)


def test_one_image_at_a_time():
    layer, tensors = pool(HardwareConfig(4, 4), False, 4, None)
    two = BlockFloat(4, 4).compute(np.ones((2, 4, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"^a program is made for one image, not \[2\]$"):
        lower(layer, {"x": two}, HardwareConfig(4, 4))
    assert lower(layer, tensors, HardwareConfig(4, 4)).size == (2, 2)


def test_accumulators_for_one_block_are_enough():
    config = HardwareConfig(8, 2, accumulator_depth=4)
    layer, tensors = pool(config, False, 8, BlockFloat(8, 4))
    assert same_numbers(run(layer, tensors, config), layer.compute(tensors))


def network(rounding: Rounding = "nearest") -> QuantizedNetwork:
    kernel = VariableQuantizedKernel.quantize(np.ones((6, 3, 1, 1)), weight_bits=5, block=4)
    last = VariableQuantizedKernel.quantize(np.ones((2, 6, 1, 1)), weight_bits=3, block=4)
    bias = np.zeros(6, np.float32)
    return QuantizedNetwork(
        FixedPoint(0, 4, 4),
        (3, 2, 2),
        (
            Layer(
                "stem", (Term("input", kernel),), bias, output=BlockFloat(4, 4, rounding=rounding)
            ),
            Layer("fc", (Term("stem", last),), bias[:2]),
        ),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rows": 8},
            "the network has blocks of 4 channels but the array has 8 rows: quantize with block=8 "
            "or set rows = 4",
        ),
        (
            {"act_bits": 5},
            "the network has 4-bit activations, the hardware 5: quantize with act_bits=5 or set "
            "act_bits = 4",
        ),
        (
            {"weight_bits": 4},
            "the network has 5-bit weights, the hardware 4: set weight_bits = 5",
        ),
        (
            {"scale": "fp16"},
            "layer 'stem' has bf16 scales, the hardware fp16: set scale = 'bf16'",
        ),
        (
            {"accumulator": "fixed32"},
            "the network has float32 accumulators, the hardware fixed32: quantize with "
            "accumulator='fixed32' or set accumulator = 'float32'",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(change: dict, message: str):
    config = HardwareConfig(4, 3, weight_bits=5)
    check(network(), config)
    check(network(), replace(config, weight_bits=8))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check(network(), replace(config, **change))
    assert str(error.value) == message


def on_grid(network: QuantizedNetwork, grid: Grid) -> QuantizedNetwork:
    """The network with fixed-point accumulators of one grid."""
    layers = (replace(x, grid=grid, bias=grid.constants(x.bias)) for x in network.layers)
    return replace(network, layers=tuple(layers))


def test_scales_that_do_not_fit_a_grid_are_refused():
    config = HardwareConfig(4, 3, weight_bits=5, accumulator="fixed24")
    check(on_grid(network(), Grid(FixedFormat(24), -20)), config)
    for exponent in (-126, 104):
        message = (
            r"^layer '\w+' has bf16 scales that this format does not hold in units of its "
            rf"accumulators' grid, 2\*\*{exponent}: quantize with accumulator='float32'"
        )
        too_far = on_grid(network(), Grid(FixedFormat(24), exponent))
        kernels = [term.kernel for term in too_far.layers[0].terms]
        scale = np.float32(2.0**100 if exponent < 0 else 2.0**-100)
        scales = np.where(kernels[0].scales == 0, 0, scale).astype(np.float32)
        term = replace(too_far.layers[0].terms[0], kernel=replace(kernels[0], scales=scales))
        first = replace(too_far.layers[0], terms=(term, *too_far.layers[0].terms[1:]))
        with pytest.raises(ValueError, match=message):
            check(replace(too_far, layers=(first, *too_far.layers[1:])), config)


def test_the_engine_alone_takes_no_fixed_point():
    config = HardwareConfig(4, 3, weight_bits=5)
    plain = network()
    sources = {"input": plain.encode_input(np.zeros((1, *plain.input_shape), np.float32))}
    fixed = on_grid(plain, Grid(FixedFormat(24), -20)).layers[0]
    for layer, hardware, message in (
        (fixed, config, "^layer 'stem' has fixed24 accumulators, which the engine"),
        (plain.layers[0], replace(config, accumulator="fixed20"), "^the hardware has fixed20 acc"),
    ):
        with pytest.raises(ValueError, match=message):
            lower(layer, sources, hardware)


def test_truncation_is_refused():
    message = (
        "layer 'stem' truncates its output, the hardware rounds: quantize with rounding='nearest'"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(network("truncate"), HardwareConfig(4, 3, weight_bits=5))


def test_limits_are_refused():
    net = network()
    clamped = replace(net, layers=(replace(net.layers[0], limits=(0.0, 6.0)), net.layers[1]))
    message = "^layer 'stem' clamps its result to 0 ... 6, which the engine cannot: use ReLU$"
    x = clamped.encode_input(np.zeros((1, 3, 2, 2), np.float32))
    with pytest.raises(ValueError, match=message):
        lower(clamped.layers[0], {"input": x}, HardwareConfig(4, 3, weight_bits=5))
