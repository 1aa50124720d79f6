"""`VariableQuantizedKernel`: recipes, scales, blocks and packing, against naive references."""

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden.floats import BF16, E8M0, FP16, FP32, SCALE_FORMATS, ScaleFormat
from shiftcore.golden.vqk import Recipe, VariableQuantizedKernel, pack, unpack, weight_blocks
from shiftcore.tests.golden.exact import nearest
from shiftcore.tests.kernels import kernels

RECIPES: list[Recipe] = ["R", "P", "O"]
quantize = VariableQuantizedKernel.quantize


def naive_codes(block: list[float], bits: int, recipe: str) -> list[int]:
    """Spec: the scale that brings a block to the limits, round half to even, clamp."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    biggest, smallest = max(block), min(block)
    if recipe == "R":
        extreme = smallest if -smallest >= biggest else biggest
        factor = low / extreme if extreme else 0.0
    elif recipe == "P":
        extreme = max(biggest, -smallest)
        factor = high / extreme if extreme else 0.0
    else:
        ends = [high / biggest] if biggest > 0 else []
        ends += [low / smallest] if smallest < 0 else []
        factor = min(ends, default=0.0)
    return [min(max(round(weight * factor), low), high) for weight in block]


def naive_blocks(shape: tuple[int, ...], block: int, groups: int) -> dict:
    """(filter, ky, kx) to lists of channels, one list for each activation block met."""
    filters, depth, height, width = shape
    blocks = {}
    for o in range(filters):
        first = o // (filters // groups) * depth
        for ky in range(height):
            for kx in range(width):
                parts = defaultdict(list)
                for c in range(depth):
                    parts[(first + c) // block].append(c)
                blocks[o, ky, kx] = list(parts.values())
    return blocks


def assert_same(a: VariableQuantizedKernel, b: VariableQuantizedKernel) -> None:
    assert np.array_equal(a.codes, b.codes)
    assert np.array_equal(a.scales.view(np.uint32), b.scales.view(np.uint32))


@given(kernels(), st.integers(2, 8), st.sampled_from(RECIPES))
def test_recipes_against_a_naive_loop(case: tuple, bits: int, recipe: Recipe):
    weight, block, groups = case
    kernel = quantize(weight, weight_bits=bits, block=block, groups=groups, recipe=recipe)
    blocks = naive_blocks(weight.shape, block, groups)
    slots = max(map(len, blocks.values()))
    assert kernel.scales.shape == (weight.shape[0], slots, *weight.shape[2:])
    assert kernel.codes.dtype == np.int8
    assert kernel.scales.dtype == np.float32
    for (o, ky, kx), parts in blocks.items():
        expected = [Fraction(0)] * slots
        for index, channels in enumerate(parts):
            weights = weight[o, channels, ky, kx].tolist()
            codes = naive_codes(weights, bits, recipe)
            assert kernel.codes[o, channels, ky, kx].tolist() == codes
            energy = sum(q * q for q in codes)
            product = sum(
                (Fraction(w) * q for w, q in zip(weights, codes, strict=True)), Fraction(0)
            )
            if energy:
                expected[index] = nearest(product / energy, 8, 7)
        assert [Fraction(s) for s in kernel.scales[o, :, ky, kx].tolist()] == expected


def squared_error(weights: list[Fraction], codes: list[int], scale: float) -> Fraction:
    errors = [Fraction(scale) * q - w for w, q in zip(weights, codes, strict=True)]
    return sum((error**2 for error in errors), Fraction(0))


@given(kernels(), st.integers(2, 8), st.sampled_from(RECIPES), st.sampled_from([BF16, FP16, FP32]))
def test_the_stored_scale_is_the_best_one(
    case: tuple, bits: int, recipe: Recipe, form: ScaleFormat
):
    weight, block, groups = case
    kernel = quantize(
        weight, weight_bits=bits, block=block, groups=groups, recipe=recipe, scale_format=form
    )
    for (o, ky, kx), parts in naive_blocks(weight.shape, block, groups).items():
        for index, channels in enumerate(parts):
            weights = [Fraction(w) for w in weight[o, channels, ky, kx].tolist()]
            codes = kernel.codes[o, channels, ky, kx].tolist()

            scale = float(kernel.scales[o, index, ky, kx])
            if any(codes):
                code = int(form.encode(scale))
                below, above = form.decode([code - 1, code + 1]).tolist()
                least = squared_error(weights, codes, scale)
                for other in (below, above):
                    assert least <= squared_error(weights, codes, other)
                for factor in (0.99, 1.01):
                    assert least < squared_error(weights, codes, scale * factor)
            else:
                assert scale == 0


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_scale_is_that_of_least_squares(bits: int, recipe: Recipe):
    weight = np.random.default_rng(bits).normal(size=(50, 24, 1, 1))
    kernel = quantize(weight, weight_bits=bits, block=24, recipe=recipe, scale_format=FP32)
    solved = [
        np.linalg.lstsq(q[:, None].astype(float), w, rcond=None)[0][0]
        for w, q in zip(weight[:, :, 0, 0], kernel.codes[:, :, 0, 0], strict=True)
    ]
    assert np.array_equal(kernel.scales[:, 0, 0, 0], FP32.round(solved))


@given(kernels(), st.integers(2, 8))
def test_an_unsigned_scale_is_the_best_power_of_two(case: tuple, bits: int):
    weight, block, groups = case
    kernel = quantize(weight, weight_bits=bits, block=block, groups=groups, scale_format=E8M0)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    exponents = np.arange(-22, 6)
    for (o, ky, kx), parts in naive_blocks(weight.shape, block, groups).items():
        for index, channels in enumerate(parts):
            weights = weight[o, channels, ky, kx]
            scales = 2.0 ** exponents[:, None]
            codes = np.clip(np.rint(weights / scales), low, high)
            errors = ((codes * scales - weights) ** 2).sum(1)
            scale = kernel.scales[o, index, ky, kx]
            ours = kernel.codes[o, channels, ky, kx] * np.float64(scale)
            assert ((ours - weights) ** 2).sum() == errors.min()
            assert scale > 0 or not weights.any()


@pytest.mark.parametrize(("others", "scale"), [(0.3, 0.25), (0.125, 0.125)])
def test_an_unsigned_scale_may_clamp_an_outlier(others: float, scale: float):
    # One 1 among many small weights: with 2 bits it is best to hold those and clamp the 1.
    weight = np.full((1, 128, 1, 1), others)
    weight[0, 5] = 1.0
    kernel = quantize(weight, weight_bits=2, block=128, scale_format=E8M0)
    assert kernel.scales.item() == scale
    assert kernel.codes.tolist() == np.ones((1, 128, 1, 1)).tolist()


def test_recipe_r_clamps_what_would_not_fit():
    # The extreme 4 becomes -4; -3.6 has the other sign, would become +4, and is clamped.
    weight = np.array([4.0, -3.6, 0.5, 1.5, -2.5]).reshape(1, 5, 1, 1)
    kernel = quantize(weight, weight_bits=3, block=5, recipe="R", scale_format=FP32)
    assert kernel.codes.reshape(-1).tolist() == [-4, 3, 0, -2, 2]
    # -(4*4 + 3*3.6 + 2*1.5 + 2*2.5) / (16 + 9 + 4 + 4)
    assert kernel.scales.item() == np.float32(-34.8 / 33)


def test_recipes_by_hand():
    weight = np.array([-1.0, 0.9, 0.4]).reshape(1, 3, 1, 1)
    codes = {
        recipe: quantize(weight, weight_bits=4, block=3, recipe=recipe).codes.reshape(-1).tolist()
        for recipe in RECIPES
    }
    # R: 8 per unit, 7.2 fits; P: 7 per unit; O: the smaller of 8 and 7 / 0.9 = 7.78 per unit.
    assert codes == {"R": [-8, 7, 3], "P": [-7, 6, 3], "O": [-8, 7, 3]}
    weight[0, 1] = 1.0
    kernel = quantize(weight, weight_bits=4, block=3, recipe="O")
    assert kernel.codes.reshape(-1).tolist() == [-7, 7, 3]


@given(kernels(), st.integers(2, 8), st.sampled_from(RECIPES), st.integers(-20, 20))
def test_powers_of_two_pass_into_the_scale(case: tuple, bits: int, recipe: Recipe, exponent: int):
    weight, block, groups = case
    for form in (BF16, FP32, E8M0):
        options = {"weight_bits": bits, "block": block, "groups": groups, "recipe": recipe}
        plain = quantize(weight, **options, scale_format=form)
        scaled = quantize(weight * 2.0**exponent, **options, scale_format=form)
        assert np.array_equal(plain.codes, scaled.codes)
        assert np.array_equal(np.ldexp(plain.scales, exponent), scaled.scales)


@pytest.mark.parametrize("form", SCALE_FORMATS.values(), ids=SCALE_FORMATS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_zero_blocks(recipe: Recipe, form: ScaleFormat):
    weight = np.random.default_rng(0).normal(size=(3, 10, 2, 2))
    weight[1, 4:8, 0, 1] = 0
    weight[2] = 0
    kernel = quantize(weight, weight_bits=4, block=4, recipe=recipe, scale_format=form)
    zero = kernel.scales == 0
    assert zero.sum() == 1 + 3 * 4
    assert zero[1, 1, 0, 1]
    assert zero[2].all()
    assert not kernel.codes[1, 4:8, 0, 1].any()
    assert not kernel.codes[2].any()
    assert kernel.codes[0].any(axis=0).all()


@given(kernels(), st.integers(2, 8), st.sampled_from(RECIPES))
def test_codes_stay_within_the_recipe(case: tuple, bits: int, recipe: Recipe):
    weight, block, groups = case
    codes = quantize(weight, weight_bits=bits, block=block, groups=groups, recipe=recipe).codes
    limit = 2 ** (bits - 1)
    assert codes.max() < limit
    assert codes.min() >= (1 - limit if recipe == "P" else -limit)


POR: list[Recipe] = ["P", "O", "R"]


@pytest.mark.parametrize(
    ("block", "table"),
    [
        (8, {2: (0.191, 0.143, 0.072), 3: (0.0253, 0.0205, 0.0159), 4: (0.0047, 0.0042, 0.0038)}),
        (32, {2: (0.323, 0.266, 0.122), 3: (0.0473, 0.0398, 0.029), 4: (0.0091, 0.0081, 0.0071)}),
        (128, {2: (0.452, 0.396, 0.161), 3: (0.0693, 0.0605, 0.0416), 4: (0.0135, 0.0123, 0.0105)}),
    ],
)
def test_error_on_gaussian_blocks(block: int, table: dict):
    """Relative squared errors of recipes P, O and R, as published measurements have them."""
    weight = np.random.default_rng(0).normal(size=(100_000 // block, block, 1, 1))
    for bits, published in table.items():
        errors = []
        for recipe, value in zip(POR, published, strict=True):
            kernel = quantize(
                weight, weight_bits=bits, block=block, recipe=recipe, scale_format=FP32
            )
            error = ((kernel.reconstruct() - weight) ** 2).sum() / (weight**2).sum()
            assert 0.95 * value < error < 1.05 * value
            errors.append(error)
        assert errors[0] > errors[1] > errors[2]


def test_blocks_are_cut_at_group_boundaries():
    # Four groups of three channels on blocks of four: 0 1 2 | 3 . 4 5 | 6 7 . 8 | 9 10 11
    parts = [[tuple(part) for part in weight_blocks(3, group, 4)] for group in range(4)]
    assert parts == [
        [(0, 0, 0, 3)],
        [(0, 3, 0, 1), (1, 0, 1, 2)],
        [(1, 2, 0, 2), (2, 0, 2, 1)],
        [(2, 1, 0, 3)],
    ]
    assert [tuple(part) for part in weight_blocks(10, 0, 4)] == [
        (0, 0, 0, 4),
        (1, 0, 4, 4),
        (2, 0, 8, 2),
    ]
    kernel = quantize(np.ones((4, 3, 1, 1)), weight_bits=4, block=4, groups=4)
    assert [kernel.group_filters(g) for g in range(4)] == [slice(g, g + 1) for g in range(4)]
    # Groups 0 and 3 have one block; their second scale is not used.
    assert (kernel.scales[:, :, 0, 0] != 0).tolist() == [
        [True, False],
        [True, True],
        [True, True],
        [True, False],
    ]


@given(kernels(), st.integers(2, 8))
def test_block_weights_are_the_kernel(case: tuple, bits: int):
    weight, block, groups = case
    kernel = quantize(weight, weight_bits=bits, block=block, groups=groups)
    filters, depth, *taps = weight.shape
    blocks = -(-depth * groups // block)
    met = np.zeros((filters, blocks * block, *taps))
    for index in range(blocks):
        part = kernel.block_weights(index)
        assert part.codes.shape == (part.codes.shape[0], block, *taps)
        lanes = part.codes * part.scales[:, None].astype(np.float64)
        met[part.filters, index * block : (index + 1) * block] = lanes
        # No filter is listed that the block does not meet.
        for o in range(filters):
            first = o // (filters // groups) * depth
            meets = first < (index + 1) * block and index * block < first + depth
            assert meets == (part.filters.start <= o < part.filters.stop)
    expected = np.zeros_like(met)
    values = kernel.reconstruct()
    for o in range(filters):
        first = o // (filters // groups) * depth
        expected[o, first : first + depth] = values[o]
    assert np.array_equal(met, expected)
    assert (kernel.in_channels, kernel.out_channels) == (depth * groups, filters)


def test_reconstruction_is_code_times_scale():
    codes = np.array([[1, -2, 3, -4, 5]], np.int8).reshape(1, 5, 1, 1)
    scales = np.array([[0.5, -0.25, 3.0]], np.float32).reshape(1, 3, 1, 1)
    kernel = VariableQuantizedKernel(codes, scales, 4, 2)
    assert kernel.reconstruct().reshape(-1).tolist() == [0.5, -1.0, -0.75, 1.0, 15.0]


def test_depthwise_constant():
    kernel = VariableQuantizedKernel.depthwise(5, (2, 3), 1, 0.25, weight_bits=2, block=4)
    assert (kernel.in_channels, kernel.out_channels, kernel.groups) == (5, 5, 5)
    assert kernel.scales.shape == (5, 1, 2, 3)
    assert (kernel.reconstruct() == 0.25).all()
    for block, filters in ((0, slice(0, 4)), (1, slice(4, 5))):
        part = kernel.block_weights(block)
        assert part.filters == filters
        count = filters.stop - filters.start
        assert np.array_equal(part.codes[:, :, 1, 2], np.eye(count, 4, dtype=np.int8))


@given(st.integers(2, 8), st.integers(0, 40), st.integers(0, 2**32))
def test_packing(bits: int, count: int, seed: int):
    limit = 1 << (bits - 1)
    codes = np.random.default_rng(seed).integers(-limit, limit, count).astype(np.int8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == -(-count * bits // 8)
    word = int.from_bytes(packed.tobytes(), "little")
    fields = [word >> index * bits & ((1 << bits) - 1) for index in range(count)]
    assert [field - 2 * limit * (field >= limit) for field in fields] == codes.tolist()
    assert word >> count * bits == 0
    assert np.array_equal(unpack(packed, bits, (count,)), codes)
    assert unpack(packed, bits, (count,)).dtype == np.int8


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_of_a_kernel_of_odd_shape(bits: int):
    limit = 1 << (bits - 1)
    codes = np.random.default_rng(bits).integers(-limit, limit, (3, 5, 1, 3)).astype(np.int8)
    packed = pack(codes, bits)
    assert packed.size == (45 * bits + 7) // 8
    assert np.array_equal(unpack(packed, bits, codes.shape), codes)
    # A view in another memory order has the same elements and therefore the same bytes.
    assert np.array_equal(pack(np.asfortranarray(codes), bits), packed)
    with pytest.raises(ValueError, match=f"^45 codes of {bits} bits do not fill {packed.size + 1}"):
        unpack(np.append(packed, np.uint8(0)), bits, codes.shape)


ALEXNET = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]


@pytest.mark.parametrize(
    ("bits", "form", "published"),
    [
        (2, FP16, [22.92, 7.03, 6.77, 6.64, 6.64, 6.88]),
        (3, FP16, [26.04, 10.16, 9.90, 9.77, 9.77, 10.00]),
        (4, FP32, [45.83, 14.06, 13.54, 13.28, 13.28, 13.75]),
    ],
)
def test_packed_size_of_alexnet(bits: int, form: ScaleFormat, published: list[float]):
    """DSConv v1, table 4 at B = 128: percent of the float32 size, per layer and overall."""
    stored, floats = [], []
    for filters, depth, k in ALEXNET:
        codes = np.zeros((filters, depth, k, k), np.int8)
        scales = np.zeros((filters, -(-depth // 128), k, k), np.float32)
        kernel = VariableQuantizedKernel(codes, scales, bits, 128, scale_format=form)
        stored.append(pack(kernel.codes, bits).size + kernel.scales.size * form.storage_bits // 8)
        floats.append(4 * codes.size)
    percent = [100 * a / b for a, b in zip(stored, floats, strict=True)]
    percent.append(100 * sum(stored) / sum(floats))
    assert [round(p, 2) for p in percent] == published


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_refused(value: float):
    weight = np.ones((2, 3, 1, 1), np.float32)
    weight[1, 2] = value
    with pytest.raises(ValueError, match=r"^a non-finite weight cannot be quantized$"):
        quantize(weight, weight_bits=4, block=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_bits": 1}, r"weight_bits must be 2 to 8, not 1"),
        ({"weight_bits": 9}, r"weight_bits must be 2 to 8, not 9"),
        ({"block": 0}, r"block must be at least 1, not 0"),
        ({"block": -1}, r"block must be at least 1, not -1"),
        ({"groups": 3}, r"groups must divide the 4 filters, not 3"),
        ({"groups": 0}, r"groups must divide the 4 filters, not 0"),
        ({"recipe": "Q"}, r"recipe must be 'R', 'P' or 'O', not 'Q'"),
        (
            {"recipe": "Q", "scale_format": E8M0},
            r"recipe must be 'R', 'P' or 'O', not 'Q'",
        ),
        (
            {"weight": np.ones((4, 6))},
            r"a kernel must be \(Co, Ci/groups, Kh, Kw\), none 0, not \(4, 6\)",
        ),
        (
            {"weight": np.ones((4, 0, 1, 1))},
            r"a kernel must be \(Co, Ci/groups, Kh, Kw\), none 0, not \(4, 0, 1, 1\)",
        ),
    ],
)
def test_parameters_are_checked(change: dict, message: str):
    options = {"weight": np.ones((4, 6, 1, 1)), "weight_bits": 4, "block": 4} | change
    with pytest.raises(ValueError, match=f"^{message}$"):
        quantize(options.pop("weight"), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.full((4, 6, 1, 1), 8, np.int8)}, r"codes must lie in -8 to 7"),
        ({"codes": np.full((4, 6, 1, 1), -9, np.int8)}, r"codes must lie in -8 to 7"),
        (
            {"scales": np.ones((4, 1, 1, 1), np.float32)},
            r"scales must be \(4, 2, 1, 1\), not \(4, 1, 1, 1\)",
        ),
        (
            {"scales": np.full((4, 2, 1, 1), 1.001, np.float32)},
            r"scales must be representable as bf16; round them first",
        ),
        ({"weight_bits": 0}, r"weight_bits must be 2 to 8, not 0"),
        ({"block": 0}, r"block must be at least 1, not 0"),
        ({"groups": 3}, r"groups must divide the 4 filters, not 3"),
    ],
)
def test_a_kernel_is_checked(change: dict, message: str):
    good = {
        "codes": np.full((4, 6, 1, 1), 7, np.int8),
        "scales": np.ones((4, 2, 1, 1), np.float32),
        "weight_bits": 4,
        "block": 4,
    }
    VariableQuantizedKernel(**good)
    with pytest.raises(ValueError, match=f"^{message}$"):
        VariableQuantizedKernel(**(good | change))
