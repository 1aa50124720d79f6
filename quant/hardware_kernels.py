"""Compiled loops of the hardware mode: a layer, images innermost.

The kernel computes :data:`FILTERS` filters times :data:`VECTOR` neighbouring numbers of a row at
once, in registers: the sum of a block is an outer product per lane, exact in whatever way the
processor multiplies and adds. Its product with the scale and the sum with the accumulator are
rounded once each, as the operations of :mod:`..golden.layers` are. Fixed-point accumulators are
whole numbers in float64, in memory.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

__all__ = ["FILTERS", "VECTOR", "accumulate", "requantize"]

FILTERS = 8
"""filters that the kernel computes at once"""
VECTOR = 16
"""numbers of a row that it computes at once"""


# The register tile, FILTERS vectors of VECTOR float32 numbers, and what is done with it. LLVM maps
# the vectors to the registers that the processor has.

_operation: Any = intrinsic
"""type checkers do not see that it takes the typing context off"""


class _TileType(types.Type):
    def __init__(self) -> None:
        super().__init__("Tile")


_tile = _TileType()
_vector = ir.VectorType(ir.FloatType(), VECTOR)


@register_model(_TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, ir.ArrayType(_vector, FILTERS))


def _pointer(context, builder, kind, array, index):
    """Of one element of a one-dimensional array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [index])


def _vector_at(context, builder, kind, array, index):
    """Pointer to VECTOR elements."""
    return builder.bitcast(_pointer(context, builder, kind, array, index), _vector.as_pointer())


def _splat(builder, number):
    """A vector of one number."""
    undefined = ir.Constant(_vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), None)
    return builder.shuffle_vector(first, undefined, zeros)


def _splat_at(context, builder, kind, array, index, number):
    """A vector of element ``index + number``."""
    at = builder.add(index, ir.Constant(index.type, number))
    return _splat(builder, builder.load(_pointer(context, builder, kind, array, at)))


@_operation
def _zeros(typing_context):
    """A tile of zeros."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(ir.ArrayType(_vector, FILTERS), None)

    return _tile(), generate


@_operation
def _load(typing_context, array, index, step):
    """The tile whose filters are `step` elements apart."""

    def generate(context, builder, signature, arguments):
        array, index, step = arguments
        tile = ir.Constant(ir.ArrayType(_vector, FILTERS), ir.Undefined)
        for j in range(FILTERS):
            at = _vector_at(context, builder, signature.args[0], array, index)
            tile = builder.insert_value(tile, builder.load(at, align=4), j)
            index = builder.add(index, step)
        return tile

    return _tile(array, types.intp, types.intp), generate


@_operation
def _store(typing_context, array, index, step, tile):
    """Writes the tile where :func:`_load` reads it."""

    def generate(context, builder, signature, arguments):
        array, index, step, tile = arguments
        for j in range(FILTERS):
            at = _vector_at(context, builder, signature.args[0], array, index)
            builder.store(builder.extract_value(tile, j), at, align=4)
            index = builder.add(index, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _tile), generate


@_operation
def _add_outer(typing_context, tile, weights, first, values, index):
    """``tile + outer(weights[first :], values[index :])``, fused where the processor can."""

    def generate(context, builder, signature, arguments):
        tile, weights, first, values, index = arguments
        at = _vector_at(context, builder, signature.args[3], values, index)
        vector = builder.load(at, align=4)
        for j in range(FILTERS):
            weight = _splat_at(context, builder, signature.args[1], weights, first, j)
            product = builder.fmul(vector, weight, flags=("contract",))
            total = builder.extract_value(tile, j)
            total = builder.fadd(total, product, flags=("contract",))
            tile = builder.insert_value(tile, total, j)
        return tile

    return _tile(_tile, weights, types.intp, values, types.intp), generate


@_operation
def _add_scaled(typing_context, tile, sums, scales, first):
    """``tile + scales[first :] * sums``, product and sum rounded."""

    def generate(context, builder, signature, arguments):
        tile, sums, scales, first = arguments
        for j in range(FILTERS):
            scale = _splat_at(context, builder, signature.args[2], scales, first, j)
            product = builder.fmul(builder.extract_value(sums, j), scale)
            total = builder.fadd(builder.extract_value(tile, j), product)
            tile = builder.insert_value(tile, total, j)
        return tile

    return _tile(_tile, _tile, scales, types.intp), generate


@_operation
def _max_scaled(typing_context, tile, sums, scales, first, absent, outside, index):
    """The larger of the tile and ``scales[first :] * sums``.

    Numbers take part where ``absent[first :]`` and ``outside[index :]`` are 0, not -infinity.
    """

    def generate(context, builder, signature, arguments):
        tile, sums, scales, first, absent, outside, index = arguments
        at = _vector_at(context, builder, signature.args[5], outside, index)
        border = builder.load(at, align=4)
        for j in range(FILTERS):
            scale = _splat_at(context, builder, signature.args[2], scales, first, j)
            missing = _splat_at(context, builder, signature.args[4], absent, first, j)
            product = builder.fmul(builder.extract_value(sums, j), scale)
            # Adding 0 makes a -0, of no code times a negative scale, the +0 of the rules.
            product = builder.fadd(product, builder.fadd(border, missing))
            before = builder.extract_value(tile, j)
            larger = builder.fcmp_ordered(">", product, before)
            tile = builder.insert_value(tile, builder.select(larger, product, before), j)
        return tile

    kinds = (_tile, _tile, scales, types.intp, absent, outside, types.intp)
    return _tile(*kinds), generate


@njit(cache=True, nogil=True, error_model="numpy")
def _arrange(codes, fields, units, padding, first, stride, images, values):
    """Fill `values` (blocks, B, rows, stride, numbers) with padded rows from `first` on.

    Columns are dealt out by turns, so that those that one kernel position meets are neighbours.
    """
    blocks, lanes, height, numbers = codes.shape
    top, left, right = padding
    width = numbers // images
    # Runs of neighbouring columns that stay neighbours.
    run = width if stride == 1 else 1
    begin, end = max(0, -left), min(width, width + right)
    scale = np.empty(numbers, np.float32)
    for block in range(blocks):
        for row in range(max(0, top - first), min(values.shape[2], top - first + height)):
            y = first + row - top
            for k in range(numbers):
                scale[k] = units[block, fields[block, y, k]]
            for lane in range(lanes):
                for x in range(begin, end, run):
                    turn, phase = divmod(x + left, stride)
                    used = slice(x * images, min(x + run, end) * images)
                    source, factor = codes[block, lane, y][used], scale[used]
                    target = values[block, lane, row, phase][turn * images :]
                    for k in range(len(source)):
                        target[k] = source[k] * factor[k]


@njit(cache=True, nogil=True, error_model="numpy")
def _update_whole(
    totals, place, filter_step, sums, scales, first, maximum, absent, border, column, ends, counts
):
    """Add ``scales[first :] * sums`` to a tile of whole numbers, or take the larger.

    `counts`, one for each number of a row, grow where a result would leave the range.
    """
    low, high = ends
    for j in range(FILTERS):
        scale, missing = scales[first + j], absent[first + j]
        target = totals[place + j * filter_step :]
        source = sums[j * VECTOR :]
        for k in range(VECTOR):
            exact = np.float64(source[k]) * scale
            product = np.floor(exact + 0.5)
            if exact >= high + 1:
                product = np.inf
            if exact < low:
                product = -np.inf
            if maximum:
                before = target[k]
                taken = product > before and missing + border[column + k] == 0
                total = product if taken else before
            else:
                total = target[k] + product
            kept = min(max(total, low), high)
            counts[k] += kept != total
            target[k] = kept


@njit(cache=True, nogil=True, error_model="numpy")
def accumulate(
    codes: NDArray[np.float32],
    fields: NDArray[np.int32],
    units: NDArray[np.float32],
    images: int,
    padding: tuple[int, int, int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    kernel_size: tuple[int, int],
    starts: NDArray[np.int64],
    steps: NDArray[np.int64],
    weights: NDArray[np.float32],
    scales: NDArray[np.floating],
    absent: NDArray[np.float32],
    maximum: bool,
    biases: NDArray[np.floating],
    accumulators: NDArray[np.floating],
    rows: tuple[int, int],
    groups: tuple[int, int],
    used: int,
    ends: tuple[float, ...],
    watch: bool,
) -> float:
    """One term of a layer, for some rows of some filters.

    Gives the largest magnitude that a float32 accumulator had after any step if `watch` is set, and
    of fixed-point accumulators the number of steps whose result left the range.

    Parameters
    ----------
    codes : (blocks, B, H, W * N) the source tensor, its images innermost
    fields : (blocks, H, W * N) its exponent fields
    units : (blocks, 256) what code 1 stands for under each field
    images : N
    padding, stride, dilation, kernel_size : as of ``Term``
    starts : (groups + 1,) where the steps of each group of FILTERS filters begin
    steps : (steps, 6) block, ky, kx, first lane, number of lanes, index of the first weight
    weights : the codes of the lanes of every step, FILTERS a lane
    scales : (steps * FILTERS,); float64 and in units of the grid for fixed-point accumulators
    absent : (steps * FILTERS,) 0, or -infinity where the filter does not meet the block
    maximum : whether the layer takes the maximum of the products
    biases : (groups * FILTERS,) where accumulators start; empty if they go on
    accumulators : (groups * FILTERS, Ho, numbers), Wo * N numbers up to a multiple of VECTOR, in
        float32, or float64 if they are fixed-point
    rows, groups : (first, last + 1) of those that are computed
    used : Wo * N
    ends : smallest and largest fixed-point number; () for float32
    watch : whether the largest magnitude is wanted
    """
    blocks, lanes, height, numbers = codes.shape
    _, out_height, out_numbers = accumulators.shape
    top, _, left, right = padding
    width = numbers // images
    depth = (rows[1] - rows[0] - 1) * stride[0] + (kernel_size[0] - 1) * dilation[0] + 1
    # Vectors may reach past the end of a row, at the last kernel position too.
    turns = -(-(width + left + right) // stride[1]) * images
    last = (kernel_size[1] - 1) * dilation[1] // stride[1] * images
    turns = max(turns, last + out_numbers)
    values = np.zeros((blocks, lanes, depth, stride[1], turns), np.float32)
    first = rows[0] * stride[0]
    _arrange(codes, fields, units, (top, left, right), first, stride[1], images, values)
    outside = np.zeros((stride[1], turns), np.float32)
    if maximum:
        outside[:] = -np.inf
        for x in range(max(0, -left), min(width, width + right)):
            turn, phase = divmod(x + left, stride[1])
            outside[phase, turn * images : (turn + 1) * images] = 0
    if len(biases) > 0:
        for f in range(groups[0] * FILTERS, groups[1] * FILTERS):
            accumulators[f, rows[0] : rows[1]] = biases[f]
    flat, border, result = values.ravel(), outside.ravel(), accumulators.ravel()
    row_step = stride[1] * turns
    lane_step = depth * row_step
    filter_step = out_height * out_numbers
    scratch = np.empty(FILTERS * VECTOR, np.float32)
    seen, found = np.zeros(VECTOR), 0.0
    # The length of `ends` belongs to its type: the compiler drops what is for the other format.
    for group in range(groups[0], groups[1]):
        for y in range(rows[0], rows[1]):
            for number in range(0, out_numbers, VECTOR):
                place = group * FILTERS * filter_step + y * out_numbers + number
                if watch or len(ends) > 0:
                    seen[:] = 0
                if len(ends) == 0:
                    tile = _load(result, place, filter_step)
                for step in range(starts[group], starts[group + 1]):
                    row = y * stride[0] + steps[step, 1] * dilation[0]
                    if row < top or row >= top + height:
                        continue
                    turn, phase = divmod(steps[step, 2] * dilation[1], stride[1])
                    column = phase * turns + turn * images + number
                    at = (steps[step, 0] * lanes + steps[step, 3]) * lane_step
                    at += (row - first) * row_step + column
                    weight = steps[step, 5]
                    sums = _zeros()
                    for _ in range(steps[step, 4]):
                        sums = _add_outer(sums, weights, weight, flat, at)
                        weight += FILTERS
                        at += lane_step
                    scale = step * FILTERS
                    if len(ends) == 0:
                        if maximum:
                            tile = _max_scaled(tile, sums, scales, scale, absent, border, column)
                        else:
                            tile = _add_scaled(tile, sums, scales, scale)
                        if watch:
                            _store(scratch, 0, VECTOR, tile)
                            for k in range(FILTERS * VECTOR):
                                seen[k % VECTOR] = max(seen[k % VECTOR], abs(scratch[k]))
                    else:
                        _store(scratch, 0, VECTOR, sums)
                        _update_whole(
                            result, place, filter_step, scratch, scales, scale,
                            maximum, absent, border, column, ends, seen,
                        )  # fmt: skip
                if len(ends) == 0:
                    _store(result, place, filter_step, tile)
                if watch or len(ends) > 0:
                    for k in range(min(VECTOR, used - number)):
                        found = found + seen[k] if len(ends) > 0 else max(found, seen[k])
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def requantize(
    accumulators: NDArray[np.floating],
    signed: bool,
    magnitude_bits: int,
    truncate: bool,
    codes: NDArray[np.float32],
    fields: NDArray[np.int32],
    rows: tuple[int, int],
    blocks: tuple[int, int],
) -> int:
    """Store some rows of some blocks; how many codes were clipped.

    Parameters
    ----------
    accumulators : (C, H, W * N) float32 or float64, each normal in float32 or zero
    signed, magnitude_bits, truncate : as of ``BlockFloat``
    codes : (blocks, B, H, W * N) result
    fields : (blocks, H, W * N) result
    rows, blocks : (first, last + 1) of those that are stored
    """
    channels, lanes, numbers = accumulators.shape[0], codes.shape[1], codes.shape[3]
    limit = np.float64((1 << magnitude_bits) - 1)
    largest = np.empty(numbers, accumulators.dtype)
    zero = largest.dtype.type(0)
    exact = np.empty(numbers, np.float64)
    shared = exact.view(np.int64)
    power = np.empty(numbers, np.int64)
    shift = power.view(np.float64)
    clipped = 0
    for block in range(blocks[0], blocks[1]):
        used = min(lanes, channels - block * lanes)
        for y in range(rows[0], rows[1]):
            largest[:] = 0
            for lane in range(used):
                source = accumulators[block * lanes + lane, y]
                for k in range(numbers):
                    number = abs(source[k]) if signed else source[k]
                    if number > largest[k]:
                        largest[k] = number
            exact[:] = largest
            for k in range(numbers):
                field = max(0, (shared[k] >> 52) - (1023 - 127))
                fields[block, y, k] = field
                power[k] = np.int64(1023 + 127 + magnitude_bits - 1 - field) << 52
            for lane in range(used):
                source = accumulators[block * lanes + lane, y]
                target = codes[block, lane, y]
                for k in range(numbers):
                    number = source[k] if signed or source[k] > zero else zero
                    scaled = np.float64(number) * shift[k]
                    whole = np.trunc(scaled) if truncate else np.rint(scaled)
                    if whole > limit:
                        whole = limit
                        clipped += 1
                    elif whole < -limit:
                        whole = -limit
                        clipped += 1
                    target[k] = whole
            for lane in range(used, lanes):
                codes[block, lane, y] = 0
    return clipped
