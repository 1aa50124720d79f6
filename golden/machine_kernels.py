"""Compiled loops of the machine: one image after the other, numbers as the specs compute them.

Activation codes are kept as stored, in m bits without sign; whoever reads them says what they mean.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["accumulate", "pack", "products", "requantize", "sums", "unpack"]

_SMALLEST = np.float32(2.0**-126)
_LARGEST = np.float32((2 - 2.0**-23) * 2.0**127)
# Below the midpoint to the smallest normal number, rounding at any exponent leads below it.
_FLUSHED = 2.0**-126 * (1 - 2.0**-25)


@njit(cache=True, inline="always", error_model="numpy")
def _product(total, scale, unit):
    """``round(total * scale * unit)``: exact in float64, then rounded once.

    A sum has 24 bits or fewer and so has a scale; a unit is a power of two.
    """
    exact = np.float64(total) * np.float64(scale) * unit
    if abs(exact) < _FLUSHED:
        exact = 0.0
    exact = min(max(exact, -np.float64(_LARGEST)), np.float64(_LARGEST))
    return np.float32(exact)


@njit(cache=True, inline="always", error_model="numpy")
def _sum(a, b):
    """``round(a + b)``: IEEE rounds a sum below the normal numbers exactly, then it is flushed."""
    result = a + b
    if abs(result) < _SMALLEST:
        result = np.float32(0)
    return min(max(result, -_LARGEST), _LARGEST)


@njit(cache=True, inline="always", error_model="numpy")
def _fixed_product(total, scale, unit, bounds):
    """The nearest whole number, halves up, or an infinity: ``FixedFormat.product``."""
    exact = np.float64(total) * np.float64(scale) * unit
    if exact >= bounds[1] + 1:
        return np.inf
    if exact < bounds[0]:
        return -np.inf
    return np.floor(exact + 0.5)


@njit(cache=True, error_model="numpy")
def products(
    totals: NDArray[np.float32], scales: NDArray[np.float64], units: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Element by element what the product unit computes, for tests."""
    found = np.empty(len(totals), np.float32)
    for i in range(len(totals)):
        found[i] = _product(totals[i], scales[i], units[i])
    return found


@njit(cache=True, error_model="numpy")
def sums(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Element by element what the adder computes, for tests."""
    found = np.empty(len(a), np.float32)
    for i in range(len(a)):
        found[i] = _sum(a[i], b[i])
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def accumulate(
    codes: NDArray[np.uint8],
    exponents: NDArray[np.uint8],
    accumulators: NDArray[np.floating],
    addresses: NDArray[np.int32],
    targets: NDArray[np.int32],
    tiles: NDArray[np.int32],
    weights: NDArray[np.int8],
    scales: NDArray[np.float32],
    biases: NDArray[np.floating],
    starting: int,
    sign: int,
    maximum: bool,
    units: NDArray[np.float64],
    bounds: tuple[float, float] | None,
    saturated: NDArray[np.int64],
) -> None:
    """A PASS of all images.

    Parameters
    ----------
    codes, exponents : (N, depth, R) and (N, depth), the activation buffer
    accumulators : (N, depth, C)
    addresses : (P,) of the pixels in the buffer, -1 outside of the picture
    targets : (P,) accumulators
    tiles : (T,) which of `weights` (tiles, R, C), `scales` and `biases` (tiles, C); each meets
        P // T pixels
    starting : how many pixels start from the bias, the first ones
    sign : value of a code's sign bit, 0 if they have none
    units : (256,) float64, what code 1 stands for under each exponent field
    bounds : smallest and largest fixed-point number; None of float32 accumulators
    saturated : (N,) counts pixels that saturated an accumulator
    """
    images, rows, cols = codes.shape[0], weights.shape[1], weights.shape[2]
    pixels = len(addresses) // len(tiles)
    matrix = np.empty((rows, cols), np.float32)
    scale = np.empty(cols, np.float64)
    total = np.empty(cols, np.float32)
    zero = np.float32(0)
    for turn in range(len(tiles)):
        tile = tiles[turn]
        for r in range(rows):
            for c in range(cols):
                matrix[r, c] = weights[tile, r, c]
        for c in range(cols):
            scale[c] = scales[tile, c]
        bias = biases[tile]
        for n in range(images):
            for pixel in range(turn * pixels, (turn + 1) * pixels):
                address = addresses[pixel]
                row = accumulators[n, targets[pixel]]
                if pixel < starting:
                    for c in range(cols):
                        row[c] = bias[c]
                if address < 0:
                    continue
                for c in range(cols):
                    total[c] = zero
                lanes = codes[n, address]
                for r in range(rows):
                    lane = np.float32((np.int32(lanes[r]) ^ sign) - sign)
                    if lane != zero:
                        for c in range(cols):
                            total[c] += lane * matrix[r, c]
                unit = units[exponents[n, address]]
                if bounds is None:
                    if maximum:
                        for c in range(cols):
                            row[c] = max(row[c], _product(total[c], scale[c], unit))
                    else:
                        for c in range(cols):
                            row[c] = _sum(row[c], _product(total[c], scale[c], unit))
                else:
                    beyond = False
                    for c in range(cols):
                        product = _fixed_product(total[c], scale[c], unit, bounds)
                        exact = max(row[c], product) if maximum else row[c] + product
                        row[c] = min(max(exact, bounds[0]), bounds[1])
                        beyond |= row[c] != exact
                    saturated[n] += beyond


@njit(cache=True, nogil=True, error_model="numpy")
def requantize(
    accumulators: NDArray[np.floating],
    addresses: NDArray[np.int32],
    select: int,
    low: np.floating,
    high: np.floating,
    signed: bool,
    bits: int,
    truncate: bool,
    unit: int,
    codes: NDArray[np.uint8],
    exponents: NDArray[np.uint8],
) -> bool:
    """Blocks (N, n, R) of accumulators at (n, beats) `addresses`; codes as they are stored.

    Accumulators are clamped between `low` and `high`; `unit` is the exponent field of 1. False if a
    lane past the last one of a block that takes several rows is not zero.
    """
    images, block, cols = accumulators.shape[0], codes.shape[2], accumulators.shape[2]
    beats = addresses.shape[1]
    magnitude = bits - 1 if signed else bits
    limit = np.float64((1 << magnitude) - 1)
    mask = (1 << bits) - 1
    lanes = np.zeros(max(beats * cols, block), np.float64)
    first = select * block if beats == 1 else 0
    clean = True
    for n in range(images):
        for i in range(addresses.shape[0]):
            for beat in range(beats):
                row = accumulators[n, addresses[i, beat]]
                for c in range(cols):
                    lanes[beat * cols + c] = min(max(row[c], low), high)
            if beats > 1:
                for lane in range(block, beats * cols):
                    clean &= lanes[lane] == 0
            largest = 0.0
            for r in range(first, first + block):
                if not signed:
                    lanes[r] = max(lanes[r], 0.0)
                largest = max(largest, abs(lanes[r]))
            exponent = math.frexp(largest)[1]
            shared = exponent - 1 + unit if largest > 0 else 0
            power = math.ldexp(1.0, magnitude - exponent)
            for r in range(block):
                scaled = lanes[first + r] * power
                whole = np.trunc(scaled) if truncate else np.rint(scaled)
                whole = min(max(whole, -limit), limit)
                codes[n, i, r] = np.int32(whole) & mask
            exponents[n, i] = shared
    return clean


@njit(cache=True, nogil=True, error_model="numpy")
def pack(
    codes: NDArray[np.uint8],
    exponents: NDArray[np.uint8],
    bits: int,
    offsets: NDArray[np.int64],
    memory: NDArray[np.uint8],
    size: int,
) -> None:
    """Words (N, n, R), (N, n) of `size` bytes into memory (N, bytes) at byte `offsets` (n,)."""
    block = codes.shape[2]
    for n in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            word = memory[n, offsets[i] : offsets[i] + size]
            word[:] = 0
            for r in range(block + 1):
                value = np.uint32(codes[n, i, r] if r < block else exponents[n, i])
                at = r * bits
                value <<= np.uint32(at & 7)
                word[at >> 3] |= value & np.uint32(0xFF)
                if value >> np.uint32(8):
                    word[(at >> 3) + 1] |= value >> np.uint32(8)


@njit(cache=True, nogil=True, error_model="numpy")
def unpack(
    memory: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    bits: int,
    fixed: bool,
    exponent: int,
    addresses: NDArray[np.int32],
    codes: NDArray[np.uint8],
    exponents: NDArray[np.uint8],
) -> None:
    """Words of memory (N or 1, bytes) at byte `offsets` (n,) into the buffer at `addresses`.

    The buffer is (N, depth, R) and (N, depth); under `fixed` all words get `exponent`.
    """
    block, mask = codes.shape[2], np.uint32((1 << bits) - 1)
    for n in range(codes.shape[0]):
        source = memory[n if memory.shape[0] > 1 else 0]
        for i in range(len(offsets)):
            for r in range(block + (not fixed)):
                width = bits if r < block else 8
                at = r * bits
                byte = offsets[i] + (at >> 3)
                value = np.uint32(source[byte])
                if (at & 7) + width > 8:
                    value |= np.uint32(source[byte + 1]) << np.uint32(8)
                value >>= np.uint32(at & 7)
                if r < block:
                    codes[n, addresses[i], r] = value & mask
                else:
                    exponents[n, addresses[i]] = value & np.uint32(0xFF)
            if fixed:
                exponents[n, addresses[i]] = exponent
