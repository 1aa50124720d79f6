"""`Layer.accumulate` against a scalar model: integer dot products and rational arithmetic."""

from dataclasses import replace
from fractions import Fraction
from math import floor, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden.bfp import BlockFloat, BlockTensor, FixedPoint
from shiftcore.golden.fixed import FixedFormat, Grid, accumulator_format
from shiftcore.golden.floats import BF16, E8M0, FP16, FP32, SCALE_FORMATS
from shiftcore.golden.layers import Layer, Reduce, Term, block_product, steps
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.tests.golden.exact import nearest, pattern, power

LOWEST = np.float32(-((2 - 2.0**-23) * 2.0**127))


def unit(x: BlockTensor, image: int, block: int, row: int, column: int) -> Fraction:
    """What code 1 of a block stands for."""
    magnitude_bits = x.bits - 1 if x.signed[block] else x.bits
    return power(int(x.exponents[image, block, row, column]) - 127 - (magnitude_bits - 1))


def scale_slot(kernel: VariableQuantizedKernel, filter_: int, block: int) -> int:
    """Index among a filter's scales of the one for an activation block."""
    depth = kernel.codes.shape[1]
    first = filter_ // (kernel.codes.shape[0] // kernel.groups) * depth
    return block - first // kernel.block


def scalar_products(term: Term, x: BlockTensor, image: int, o: int, row: int, column: int):
    """Exact products, or None on padding, of one output in the order of accumulation."""
    kernel = term.kernel
    filters, depth, height, width = kernel.codes.shape
    first = o // (filters // kernel.groups) * depth
    blocks = -(-kernel.in_channels // kernel.block)
    for plane in range(x.planes):
        for block in range(blocks):
            lanes = [
                (lane, c - first)
                for lane in range(kernel.block)
                for c in [block * kernel.block + lane]
                if first <= c < first + depth
            ]
            if not lanes:
                continue
            index = plane * blocks + block
            for ky in range(height):
                for kx in range(width):
                    y = row * term.stride[0] + ky * term.dilation[0] - term.padding[0]
                    z = column * term.stride[1] + kx * term.dilation[1] - term.padding[2]
                    if not (0 <= y < x.codes.shape[3] and 0 <= z < x.codes.shape[4]):
                        yield None
                        continue
                    total = sum(
                        int(kernel.codes[o, c, ky, kx]) * int(x.codes[image, index, lane, y, z])
                        for lane, c in lanes
                    )
                    scale = kernel.scales[o, scale_slot(kernel, o, block), ky, kx]
                    yield total * Fraction(float(scale)) * unit(x, image, index, y, z)


def scalar_layer(layer: Layer, sources: dict[str, BlockTensor], size: tuple[int, int]):
    """Bit patterns of the accumulators, one number at a time."""
    images = sources[layer.terms[0].source].codes.shape[0]
    acc = np.zeros((images, layer.bias.size, *size), np.uint32)
    for image, o, row, column in np.ndindex(acc.shape):
        value = Fraction(float(layer.bias[o]))
        for term in layer.terms:
            for exact in scalar_products(term, sources[term.source], image, o, row, column):
                if layer.reduce == "add":
                    value = nearest(value + nearest(exact or Fraction(0)))
                elif exact is not None:
                    value = max(value, nearest(exact))
        acc[image, o, row, column] = pattern(value)
    return acc


def whole_product(exact: Fraction, form: FixedFormat) -> float:
    """The nearest whole number, halves up, or infinity where the whole part is out of range."""
    whole = floor(exact)
    if not -(2 ** (form.bits - 1)) <= whole < 2 ** (form.bits - 1):
        return inf if exact > 0 else -inf
    return floor(exact + Fraction(1, 2))


def scalar_fixed_layer(layer: Layer, sources: dict[str, BlockTensor], size: tuple[int, int]):
    """Fixed-point accumulators, one number at a time, and the number of steps that saturate."""
    assert layer.grid is not None
    form, unit = layer.grid.form, power(layer.grid.exponent)
    low, high = -(2 ** (form.bits - 1)), 2 ** (form.bits - 1) - 1
    images = sources[layer.terms[0].source].codes.shape[0]
    acc, saturated = np.zeros((images, layer.bias.size, *size)), 0
    for image, o, row, column in np.ndindex(acc.shape):
        value = float(Fraction(float(layer.bias[o])) / unit)
        assert value == int(value)
        for term in layer.terms:
            for exact in scalar_products(term, sources[term.source], image, o, row, column):
                if exact is None:
                    continue
                product = whole_product(exact / unit, form)
                found = value + product if layer.reduce == "add" else max(value, product)
                value = min(max(found, low), high)
                saturated += value != found
        acc[image, o, row, column] = value
    return acc, saturated


def on_grid(layer: Layer, form: FixedFormat, exponent: int) -> Layer:
    """The layer with biases and limits rounded to a grid of 2**exponent, or the nearest allowed."""
    grid = Grid(form, min(max(exponent, form.exponents[0]), form.exponents[-1]))
    limits = None if layer.limits is None else tuple(grid.constants(layer.limits).tolist())
    return replace(layer, bias=grid.constants(layer.bias), limits=limits, grid=grid)


@st.composite
def terms(draw: st.DrawFn, rng: np.random.Generator, source: str, filters: int | None, block: int):
    """A term with its source; without `filters` it is depthwise."""
    form = draw(st.sampled_from([BF16, BF16, FP16, FP32, E8M0]))
    bits = draw(st.integers(2, 8))
    if filters is None:
        groups, depth = draw(st.integers(1, 9)), 1
    else:
        groups = draw(st.sampled_from([g for g in (1, 1, 2, 3) if filters % g == 0]))
        depth = draw(st.integers(1, 6))
    taps = draw(st.sampled_from([(1, 1), (2, 2), (3, 1), (1, 3), (3, 3)]))
    limit = 1 << (bits - 1)
    codes = rng.integers(-limit, limit, (filters or groups, depth, *taps)).astype(np.int8)
    if draw(st.booleans()):  # some steps without any code, of a random scale
        codes *= rng.random((1, depth, *taps)) < 0.4
    kernel = VariableQuantizedKernel.quantize(
        codes, weight_bits=bits, block=block, groups=groups, scale_format=form
    )
    exponents = rng.integers(-8, 8, kernel.scales.shape)
    if draw(st.booleans()):
        exponents = rng.choice([-126, -60, 0, 127], kernel.scales.shape)
    scales = form.round(np.ldexp(rng.uniform(1, 2, kernel.scales.shape), exponents))
    if form.signed:
        scales *= rng.choice([1, -1], scales.shape).astype(np.float32)
    used = VariableQuantizedKernel.quantize(
        np.ones(codes.shape), weight_bits=bits, block=block, groups=groups
    ).scales.astype(bool)
    kernel = VariableQuantizedKernel(
        codes, np.where(used, scales, np.float32(0)), bits, block, groups, form
    )
    channels, act_bits = groups * depth, draw(st.integers(2, 8))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(*[st.integers(-1, 2)] * 4))
    # Digit planes are for sums only; they have no maximum.
    kind = draw(st.sampled_from(["unsigned", "signed"] + ["planes"] * (filters is not None)))
    return Term(source, kernel, stride, padding, dilation), (channels, act_bits, kind)


def source_tensor(
    rng: np.random.Generator, block: int, shape: tuple, act_bits: int, kind: str
) -> BlockTensor:
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-3, 4, (shape[0], 1, *shape[2:]))
    x[rng.random(shape) < 0.2] = 0
    if kind == "planes":
        return FixedPoint(-5, block, act_bits).compute(x.astype(np.float32))
    return BlockFloat(block, act_bits, kind == "signed").compute(x.astype(np.float32))


def output_length(length: int, before: int, after: int, taps: int, stride: int, dilation: int):
    return (length + before + after - dilation * (taps - 1) - 1) // stride + 1


@st.composite
def layers(draw: st.DrawFn, reduce: str) -> tuple[Layer, dict[str, BlockTensor], tuple[int, int]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    block = draw(st.integers(1, 5))
    filters = None if reduce == "max" else draw(st.integers(1, 6))
    term, (channels, act_bits, kind) = draw(terms(rng, "x", filters, block))
    taps = term.kernel.codes.shape[2:]
    least = [term.dilation[i] * (taps[i] - 1) + 1 for i in (0, 1)]
    top, bottom, left, right = term.padding
    cut = [sum(max(0, -n) for n in pair) for pair in ((top, bottom), (left, right))]
    height, width = (n + c + draw(st.integers(0, 2)) for n, c in zip(least, cut, strict=True))
    size = (
        output_length(height, top, bottom, taps[0], term.stride[0], term.dilation[0]),
        output_length(width, left, right, taps[1], term.stride[1], term.dilation[1]),
    )
    images = draw(st.integers(1, 2))
    sources = {"x": source_tensor(rng, block, (images, channels, height, width), act_bits, kind)}
    all_terms = [term]
    if reduce == "add" and draw(st.booleans()):
        # A projection or an identity: a 1x1 kernel on an input of the output's size.
        second, (channels, act_bits, kind) = draw(terms(rng, "y", filters, block))
        kernel = second.kernel
        kernel = VariableQuantizedKernel(
            kernel.codes[:, :, :1, :1],
            kernel.scales[:, :, :1, :1],
            kernel.weight_bits,
            block,
            kernel.groups,
            kernel.scale_format,
        )
        all_terms.append(Term("y", kernel))
        sources["y"] = source_tensor(rng, block, (images, channels, *size), act_bits, kind)
    if reduce == "max" and draw(st.booleans()):
        bias = np.full(term.kernel.out_channels, LOWEST)
    else:
        bias = rng.normal(size=term.kernel.out_channels).astype(np.float32)
    layer = Layer("layer", tuple(all_terms), bias, "max" if reduce == "max" else "add")
    return layer, sources, size


@given(st.sampled_from(["add", "add", "max"]).flatmap(layers))
def test_accumulation_against_a_scalar_model(case: tuple):
    layer, sources, size = case
    got = layer.accumulate(sources)
    assert got.dtype == np.float32
    assert np.array_equal(got.view(np.uint32), scalar_layer(layer, sources, size))


@given(
    st.sampled_from(["add", "add", "max"]).flatmap(layers),
    st.sampled_from([20, 24, 32, 40]),
    st.integers(-4, 24),
)
def test_fixed_accumulation_against_a_scalar_model(case: tuple, bits: int, room: int):
    layer, sources, size = case
    usual = layer.accumulate(sources)
    usual = np.where(np.abs(usual) < -LOWEST, usual, 0)
    exponent = np.frexp(np.abs(usual).max(initial=0))[1] - bits + 1 + room
    layer = on_grid(layer, FixedFormat(bits), int(exponent))
    got = layer.accumulate(sources)
    assert got.dtype == np.float64
    assert np.array_equal(got, scalar_fixed_layer(layer, sources, size)[0])


@pytest.mark.parametrize("bits", [20, 24, 32, 40])
def test_fixed_accumulators_saturate_at_each_step(bits: int):
    """Halves go up, sums end at the end of the range, and products past it stay there."""
    form = FixedFormat(bits)
    x = one_channel([1.0, 1.0])  # code 64 of unit 2**-6

    def result(scales: list[float], bias: float = 0.0, reduce: Reduce = "add") -> float:
        start = np.full(1, bias, np.float32)
        kernel = one_by_one([1] * len(scales), scales)
        layer = Layer("l", (Term("x", kernel),), start, reduce, grid=Grid(form, 0))
        return layer.accumulate({"x": x}).item()

    assert [result([n / 2, 0]) for n in (-3, -1, 1, 3)] == [-1, 0, 1, 2]
    end = 2.0 ** (bits - 1)
    assert result([end, -1.0]) == end - 2  # the order matters where it saturates
    assert result([-1.0, end]) == end - 1
    assert result([-end, -1.0]) == -end
    assert result([end * 2**60, -end]) == -1
    assert result([2 * end, 0], -1024.0) == end - 1  # out of range, though the sum is not
    assert result([-1.0, 2 * end], -1024.0, "max") == end - 1
    assert result([-2 * end, -3.0], -1024.0, "max") == -3


def test_fixed_results_are_clamped_and_stored_exactly():
    """A raw result loses what 32 bits of memory do not hold, a stored one does not."""
    scales = [2.0**20, 1.0 + 2.0**-5]
    term = Term("x", one_by_one([1, 1], scales))
    x = one_channel([1.0, 1.0])
    bias = np.zeros(1, np.float32)
    for bits, unit in ((28, -6), (40, -18), (40, -12)):
        layer = Layer("l", (term,), bias, grid=Grid(FixedFormat(bits), unit))
        raw = layer.compute({"x": x})
        dropped = power(unit + max(0, bits - 32))
        exact = Fraction(2**20 + 1) + power(-5)
        assert pattern(nearest(floor(exact / dropped) * dropped)) == raw.view(np.uint32).item()
        stored = replace(layer, output=BlockFloat(1, 8)).compute({"x": x})
        assert (stored.codes.item(), stored.exponents.item()) == (128, 127 + 20)
        clamped = replace(layer, limits=(-1.0, 2.5)).compute({"x": x})
        assert clamped.item() == 2.5


def one_channel(values: list[float], bits: int = 8) -> BlockTensor:
    """A signed tensor of one pixel with blocks of one channel."""
    return BlockFloat(1, bits, True).compute(np.array(values, np.float32)[None, :, None, None])


def one_by_one(codes: list[int], scales: list[float], form=FP32) -> VariableQuantizedKernel:
    return VariableQuantizedKernel(
        np.array(codes, np.int8).reshape(1, -1, 1, 1),
        np.array(scales, np.float32).reshape(1, -1, 1, 1),
        8,
        1,
        scale_format=form,
    )


def test_blocks_are_added_in_order():
    x = one_channel([1.0, 1.0, 1.0])
    scales = [2.0**24, 1.0, -(2.0**24)]

    def result(order: list[int]) -> float:
        kernel = one_by_one([1, 1, 1], [scales[i] for i in order])
        return Layer("l", (Term("x", kernel),), np.zeros(1, np.float32)).accumulate({"x": x}).item()

    # 2^24 + 1 is a tie and goes to the even 2^24, unless the large numbers meet first.
    assert result([0, 1, 2]) == 0.0
    assert result([0, 2, 1]) == 1.0
    assert result([1, 0, 2]) == 0.0


def test_the_bias_comes_first_and_the_terms_follow_in_order():
    terms = {
        "a": Term("x", one_by_one([1], [2.0**24])),
        "b": Term("x", one_by_one([1], [1.0])),
        "c": Term("x", one_by_one([1], [-(2.0**24)])),
    }

    def result(order: str, bias: float) -> float:
        layer = Layer("l", tuple(terms[name] for name in order), np.array([bias], np.float32))
        return layer.accumulate({"x": one_channel([1.0])}).item()

    assert [result(order, 0.0) for order in ("abc", "acb", "bac")] == [0.0, 1.0, 0.0]
    assert result("ac", 1.0) == 0.0  # 1 + 2^24 comes first; last, it would be 1
    assert result("ca", 1.0) == 1.0  # 1 - 2^24 has 24 bits and is exact
    assert result("b", 2.0**24) == 2.0**24


def test_planes_then_blocks_then_kernel_rows_then_columns():
    codes = np.zeros((1, 3, 2, 2), np.int8)
    kernel = VariableQuantizedKernel(codes, np.zeros((1, 2, 2, 2), np.float32), 4, 2)
    visited = [(s.block, s.ky, s.kx) for s in steps(Term("x", kernel), planes=2)]
    assert visited == [(b, y, x) for b in range(4) for y in range(2) for x in range(2)]


def test_steps_hold_the_filters_that_meet_the_block():
    kernel = VariableQuantizedKernel.quantize(
        np.ones((4, 3, 1, 1)), weight_bits=4, block=4, groups=4
    )
    found = [(s.block, s.filters) for s in steps(Term("x", kernel), planes=2)]
    assert found == list(enumerate([slice(0, 2), slice(1, 3), slice(2, 4)] * 2))
    shapes = {(s.codes.shape, s.scales.shape) for s in steps(Term("x", kernel))}
    assert shapes == {((2, 4), (2,))}


def test_products_are_rounded_once_before_they_are_added():
    # S = 127 * 127 has 14 bits and the scale 24: the product is rounded, then added.
    scale = np.float32(1 + 2.0**-23)
    x = one_channel([1.984375])
    exact = Fraction(127 * 127) * Fraction(float(scale)) * power(-6)
    product = nearest(exact)
    assert product != exact
    bias = np.array([-float(product)], np.float32)
    layer = Layer("l", (Term("x", one_by_one([127], [float(scale)])),), bias)
    assert layer.accumulate({"x": x}).item() == 0.0  # a fused sum would leave the rounding error


def test_products_flush_and_saturate():
    tiny = Layer("l", (Term("x", one_by_one([1], [2.0**-126])),), np.zeros(1, np.float32))
    assert tiny.accumulate({"x": one_channel([0.5])}).view(np.uint32).item() == 0
    huge = Layer(
        "l", (Term("x", one_by_one([127, -127], [2.0**127] * 2)),), np.zeros(1, np.float32)
    )
    # +MAX, then +MAX - MAX
    assert huge.accumulate({"x": one_channel([1.0, 1.0])}).view(np.uint32).item() == 0
    more = Layer("l", (Term("x", one_by_one([127, 127], [2.0**127] * 2)),), np.zeros(1, np.float32))
    assert more.accumulate({"x": one_channel([1.0, 1.0])}).view(np.uint32).item() == 0x7F7FFFFF


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**22), 2**22),
            st.sampled_from(list(SCALE_FORMATS)),
            st.integers(0, 2**32 - 1),
            st.integers(-140, 128),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_block_product_is_exact_rounding(cases: list[tuple]):
    sums, scales, units = [], [], []
    for total, name, code, unit in cases:
        form = SCALE_FORMATS[name]
        code %= 1 << form.storage_bits
        top = (1 << form.exponent_bits) - 1 << form.fraction_bits
        sums.append(float(total))
        scales.append(form.decode(0 if code & top == top else code).item())
        units.append(unit)
    got = block_product(np.array(sums), np.array(scales, np.float32), np.array(units, np.int32))
    expected = [
        pattern(nearest(Fraction(total) * Fraction(scale) * power(unit)))
        for total, scale, unit in zip(sums, scales, units, strict=True)
    ]
    assert got.view(np.uint32).tolist() == expected


def test_padding_does_not_take_part_in_a_maximum():
    x = BlockFloat(2, 4, True).compute(-np.ones((1, 2, 2, 2), np.float32))
    kernel = VariableQuantizedKernel.depthwise(2, (2, 2), 1, 1.0, weight_bits=4, block=2)
    term = Term("x", kernel, padding=(1, 0, 1, 0))
    highest = Layer("l", (term,), np.full(2, LOWEST), "max").accumulate({"x": x})
    assert highest.tolist() == [[[[-1.0, -1.0], [-1.0, -1.0]]] * 2]
    # The same sum counts padding as zero.
    summed = Layer("l", (term,), np.zeros(2, np.float32)).accumulate({"x": x})
    assert summed.tolist() == [[[[-1.0, -2.0], [-2.0, -4.0]]] * 2]


def test_a_bias_of_minus_zero_is_zero():
    x = one_channel([-1.0])
    bias = np.array([-0.0], np.float32)
    layer = Layer("l", (Term("x", one_by_one([1], [1.0])),), bias, "max")
    assert layer.accumulate({"x": x}).view(np.uint32).item() == 0


def test_digit_planes_have_no_maximum():
    kernel = VariableQuantizedKernel.depthwise(2, (1, 1), 1, 1.0, weight_bits=4, block=2)
    layer = Layer("pool", (Term("x", kernel),), np.zeros(2, np.float32), "max")
    x = np.ones((1, 2, 2, 2), np.float32)
    layer.accumulate({"x": FixedPoint(-4, 2, 8).compute(x)})  # one plane is a number of its own
    message = "^layer 'pool' takes the maximum of 'x', whose digit planes have no maximum of their"
    with pytest.raises(ValueError, match=message):
        layer.accumulate({"x": FixedPoint(-4, 2, 4).compute(x)})


def test_max_pool_is_the_largest_stored_value():
    rng = np.random.default_rng(0)
    x = BlockFloat(3, 5, True).compute(rng.normal(size=(2, 7, 6, 6)).astype(np.float32))
    kernel = VariableQuantizedKernel.depthwise(7, (2, 2), 1, 1.0, weight_bits=4, block=3)
    pooled = Layer("l", (Term("x", kernel, (2, 2)),), np.full(7, LOWEST), "max").accumulate(
        {"x": x}
    )
    expected = x.values().reshape(2, 7, 3, 2, 3, 2).max((3, 5))
    assert np.array_equal(pooled, expected.astype(np.float32))


def test_an_identity_shortcut_adds_the_stored_tensor():
    rng = np.random.default_rng(1)
    x = BlockFloat(4, 4, False).compute(rng.normal(size=(1, 6, 3, 3)).astype(np.float32))
    kernel = VariableQuantizedKernel.depthwise(6, (1, 1), 1, 1.0, weight_bits=2, block=4)
    bias = rng.normal(size=6).astype(np.float32)
    added = Layer("l", (Term("x", kernel),), bias).accumulate({"x": x})
    assert np.array_equal(added, x.values().astype(np.float32) + bias[:, None, None])


def test_a_linear_layer_is_a_1x1_convolution():
    rng = np.random.default_rng(2)
    weight = rng.integers(-8, 8, (5, 11))
    x = rng.integers(0, 16, (3, 11))
    kernel = VariableQuantizedKernel(
        weight.astype(np.int8)[:, :, None, None], np.ones((5, 3, 1, 1), np.float32), 4, 4
    )
    # With exponent field 130 and 4 bits unsigned, code 1 stands for 1.
    codes = np.zeros((3, 3, 4, 1, 1), np.int16)
    codes.reshape(3, 12)[:, :11] = x
    tensor = BlockTensor(codes, np.full((3, 3, 1, 1), 130, np.uint8), (False,) * 3, 4, 11)
    layer = Layer("fc", (Term("x", kernel),), np.arange(5, dtype=np.float32))
    assert np.array_equal(layer.accumulate({"x": tensor})[:, :, 0, 0], x @ weight.T + np.arange(5))


def test_the_output_is_stored_in_the_given_format():
    rng = np.random.default_rng(3)
    x = BlockFloat(4, 4).compute(rng.normal(size=(2, 6, 3, 3)).astype(np.float32))
    kernel = VariableQuantizedKernel.quantize(rng.normal(size=(5, 6, 1, 1)), weight_bits=4, block=4)
    terms, bias = (Term("x", kernel),), rng.normal(size=5).astype(np.float32)
    plain = Layer("l", terms, bias)
    raw = plain.accumulate({"x": x})
    assert np.array_equal(plain.compute({"x": x}), raw)  # pyright: ignore[reportArgumentType]
    for signed in (False, True):
        form = BlockFloat(4, 3, signed)
        stored, expected = Layer("l", terms, bias, output=form).compute({"x": x}), form.compute(raw)
        assert isinstance(stored, BlockTensor)
        assert np.array_equal(stored.codes, expected.codes)
        assert np.array_equal(stored.exponents, expected.exponents)
        assert stored.signed == (signed, signed)


KERNEL = VariableQuantizedKernel.depthwise(4, (3, 2), 1, 1.0, weight_bits=4, block=2)


def test_output_size_and_macs():
    term = Term("x", KERNEL, stride=(2, 3), padding=(1, 0, 2, 1), dilation=(2, 1))
    assert term.kernel_size == (3, 2)
    # rows: 9 + 1 padded, 5 spanned; columns: 7 + 3 padded, 2 spanned
    assert term.output_size(9, 7) == (3, 3)
    layer = Layer("l", (term, term), BIAS)
    assert layer.macs(3, 5) == 3 * 5 * 2 * KERNEL.codes.size == 15 * 2 * 24
    assert replace(layer, macs_per_pixel=7).macs(3, 5) == 15 * 7
    assert replace(layer, macs_per_pixel=0).macs(3, 5) == 0
    with pytest.raises(ValueError, match=r"^a \(3, 2\) kernel does not fit an input of \(3, 7\)$"):
        term.output_size(3, 7)


BIAS = np.zeros(4, np.float32)
GRID = Grid(FixedFormat(20), -1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Term("x", KERNEL, stride=(0, 1)),
            r"stride and dilation must be at least 1, not \(0, 1\), \(1, 1\)",
        ),
        (
            lambda: Term("x", KERNEL, dilation=(1, 0)),
            r"stride and dilation must be at least 1, not \(1, 1\), \(1, 0\)",
        ),
        (
            lambda: Layer("l", (Term("x", KERNEL),), BIAS, macs_per_pixel=-1),
            r"macs_per_pixel of layer 'l' must be at least 0, not -1",
        ),
        (lambda: Layer("l", (), BIAS), r"layer 'l' must have at least one term"),
        (
            lambda: Layer("l", (Term("x", KERNEL),), BIAS + np.float32(0.25), grid=GRID),
            r"biases of layer 'l' must be whole numbers of its accumulators' grid, 2\*\*-1, in "
            "their range",
        ),
        (
            lambda: Layer("l", (Term("x", KERNEL),), BIAS, limits=(0.0, 2.0**18), grid=GRID),
            r"limits of layer 'l' must be whole numbers of its accumulators' grid, 2\*\*-1, in "
            "their range",
        ),
        (
            lambda: Grid(FixedFormat(24), 105),
            r"the exponent of 24-bit accumulators must be -126 to 104, not 105",
        ),
        (lambda: FixedFormat(41), r"bits must be 20 to 40, not 41"),
        (
            lambda: accumulator_format("fixed16"),
            r"accumulator must be one of 'float32', 'fixed20' to 'fixed40', not 'fixed16'",
        ),
        (
            lambda: Layer("l", (Term("x", KERNEL),), BIAS, "min"),  # pyright: ignore[reportArgumentType]
            r"reduce must be 'add' or 'max', not 'min'",
        ),
        (
            lambda: Layer("l", (Term("x", KERNEL),) * 2, BIAS, "max"),
            r"max layer 'l' must have one term, not 2",
        ),
        (
            lambda: Layer("l", (Term("x", KERNEL),), BIAS[:3]),
            r"layer 'l' has 3 biases but a kernel of 4 filters",
        ),
        (
            lambda: Layer("l", (Term("x", KERNEL),), BIAS + np.float32(np.nan)),
            r"biases of layer 'l' must be normal float32 numbers or 0",
        ),
        (
            lambda: Layer("l", (Term("x", KERNEL),), BIAS + np.float32(2.0**-127)),
            r"biases of layer 'l' must be normal float32 numbers or 0",
        ),
        *(
            (
                lambda limits=limits: Layer("l", (Term("x", KERNEL),), BIAS, limits=limits),
                r"limits of layer 'l' must be normal float32 numbers or 0, the lower one first, "
                r"not \(.*\)",
            )
            for limits in [
                (1, 0),
                (0, 0.1),
                (-np.inf, 1),
                (np.nan, 1),
                (-0.0, 1),
                (0, 2.0**-127),
                (0, 2**128),
            ]
        ),
    ],
)
def test_parameters_are_checked(make, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_limits_clamp_what_is_stored() -> None:
    x = BlockFloat(2, 8, True).compute(np.linspace(-8, 7, 16, dtype=np.float32).reshape(1, 4, 2, 2))
    identity = VariableQuantizedKernel.depthwise(4, (1, 1), 1, 1.0, weight_bits=4, block=2)
    plain = Layer("l", (Term("x", identity),), BIAS)
    clamped = replace(plain, limits=(-2.5, 3.0))
    assert np.array_equal(clamped.accumulate({"x": x}), plain.accumulate({"x": x}))
    raw = clamped.compute({"x": x})
    assert isinstance(raw, np.ndarray)
    assert np.array_equal(raw, np.clip(x.values(), -2.5, 3).astype(np.float32))
    stored = replace(clamped, output=BlockFloat(2, 4, True)).compute({"x": x})
    assert isinstance(stored, BlockTensor)
    assert np.array_equal(stored.codes, BlockFloat(2, 4, True).compute(raw).codes)
    relu6 = replace(plain, limits=(0.0, 6.0), output=BlockFloat(2, 4)).compute({"x": x})
    assert isinstance(relu6, BlockTensor)
    assert (relu6.values().min(), relu6.values().max()) == (0, 6)


def test_steps_without_codes_are_left_out_of_sums() -> None:
    codes = np.zeros((4, 4, 1, 3), np.int8)
    codes[1, 3, 0, 1] = 1
    kernel = VariableQuantizedKernel(codes, np.ones((4, 2, 1, 3), np.float32), 4, 2)
    layer = Layer("l", (Term("x", kernel), Term("y", kernel)), BIAS)

    def visited(layer: Layer) -> list[tuple]:
        return [(t.source, s.block, s.kx) for t, s in layer.steps({"x": 1, "y": 2})]

    assert visited(layer) == [("x", 1, 1), ("y", 1, 1), ("y", 3, 1)]
    most = Layer("l", (Term("x", kernel),), BIAS, "max")
    assert len(visited(most)) == 6
    # Accumulators start with a step, also where there is nothing to add.
    empty = replace(kernel, codes=np.zeros_like(codes))
    assert visited(replace(layer, terms=(Term("y", empty),) * 2)) == [("y", 0, 0)]


def test_sources_must_fit():
    layer = Layer("l", (Term("x", KERNEL),), BIAS)
    x = np.zeros((1, 6, 4, 4), np.float32)
    message = "^layer 'l' expects 4 channels in blocks of 2, but 'x' has {}$"
    with pytest.raises(ValueError, match=message.format("6 in 2")):
        layer.compute({"x": BlockFloat(2, 4).compute(x)})
    with pytest.raises(ValueError, match=message.format("4 in 3")):
        layer.compute({"x": BlockFloat(3, 4).compute(x[:, :4])})
    two = Layer("l", (Term("x", KERNEL), Term("y", KERNEL, padding=(1, 1, 0, 0))), BIAS)
    tensor = BlockFloat(2, 4).compute(x[:, :4])
    with pytest.raises(
        ValueError, match=r"^terms of layer 'l' differ in size: \[\(2, 3\), \(4, 3\)"
    ):
        two.compute({"x": tensor, "y": tensor})


def test_maximum_over_digit_planes_is_refused() -> None:
    image = FixedPoint(exponent=-4, block=4, act_bits=4).compute(np.zeros((1, 2, 4, 4), np.float32))
    kernel = VariableQuantizedKernel.depthwise(2, (2, 2), 1, 1.0, weight_bits=4, block=4)
    bias = np.full(2, LOWEST)
    layer = Layer("pool", (Term("input", kernel, (2, 2)),), bias, "max")
    with pytest.raises(ValueError, match=r"'pool' takes the maximum of 'input', whose digit"):
        layer.compute({"input": image})
