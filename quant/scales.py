"""How the codes and the scales of weight blocks are chosen.

All functions but :func:`encode` and :func:`encode_with_bias` work on lanes (L, ...) of any number
of blocks at once, as :meth:`..golden.vqk.BlockMap.lanes` gives them, in float64; `filled`, which
broadcasts against them, tells where there is a weight. (DSConv, arXiv 1901.01928 v1, section 3.)
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..golden.floats import BF16, ScaleFormat
from ..golden.vqk import (
    Recipe,
    VariableQuantizedKernel,
    divide,
    l2_scale,
    nearest_codes,
    power_of_two_codes,
    recipe_codes,
    weight_lanes,
)

__all__ = [
    "Method",
    "affine_scale",
    "encode",
    "encode_with_bias",
    "joint",
    "kl_derivatives",
    "kl_scale",
]

Method = Literal["l2", "kl", "joint"]
Array = NDArray[np.float64]
Codes = NDArray[np.int8]
Mask = NDArray[np.bool_]

CONVERGED = 1e-10
"""slope of the divergence, in code units, at which its minimum is found"""
CLIPS = np.geomspace(0.6, 2.4, 24)
"""candidates of the joint search: where the extreme of a block is mapped to, against recipe R"""
SWEEPS = 12
"""rounds of codes for the scale and scale for the codes, at most"""
CHUNK = 1 << 13
"""blocks that are searched at a time, so that their lanes stay in the processor's cache"""


def _mean_rest(lanes: Array, codes: Codes, scale: NDArray[np.floating], filled: Mask) -> Array:
    """The bias that minimises the squared error of ``scale * codes + bias``."""
    count = np.broadcast_to(filled, lanes.shape).sum(0)
    return np.where(filled, lanes - codes * scale, 0).sum(0) / np.maximum(count, 1)


def affine_scale(lanes: Array, codes: Codes, filled: Mask) -> tuple[Array, Array]:
    """Scale and bias that minimise the squared error of ``scale * codes + bias``.

    That is ``cov(w, q) / var(q)`` and ``mean(w) - scale * mean(q)``. Where all codes of a block are
    alike the scale is that without a bias, and the bias takes the rest.
    """
    count = np.broadcast_to(filled, lanes.shape).sum(0)
    q = codes.astype(np.float64)
    centred = np.where(filled, q * count - q.sum(0), 0)  # integers: alike codes give zeros
    energy = (centred * centred).sum(0)
    slope = divide((lanes * centred).sum(0) * count, energy)
    scale = np.where(energy > 0, slope, l2_scale(lanes, codes))
    return scale, _mean_rest(lanes, codes, scale, filled)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def kl_derivatives(scale: Array, lanes: Array, codes: Codes, filled: Mask) -> tuple[Array, Array]:
    """First and second derivative by `scale` of KL(softmax(w) || softmax(scale * q)).

    They are ``E_I[q] - E_T[q]`` and ``Var_I[q]``, where T is the softmax of a block's weights and I
    that of ``scale * q``; so the divergence is convex.
    """
    q = codes.astype(np.float64)
    target = _softmax(np.where(filled, lanes, -np.inf))
    found = _softmax(np.where(filled, scale * q, -np.inf))
    mean = (found * q).sum(0)
    return ((found - target) * q).sum(0), (found * (q - mean) ** 2).sum(0)


def kl_scale(lanes: Array, codes: Codes, filled: Mask) -> Array:
    """Scale that minimises KL(softmax(w) || softmax(scale * q)) of each block (v1, section 3).

    Newton's method from the L2 value. Where all codes of a block are alike the divergence does not
    depend on the scale, and that value stays.

    Raises ``ValueError`` if the minimum of a block is not found.
    """
    filled = np.broadcast_to(filled, lanes.shape)
    scale = l2_scale(lanes, codes)
    wide = codes.astype(np.int64)
    spread = np.where(filled, wide, -128).max(0) - np.where(filled, wide, 127).min(0)
    left = spread > 0  # a block without weights has a negative one
    for _ in range(200):
        if not left.any():
            return scale
        part = spread[left]
        slope, curvature = kl_derivatives(
            scale[left], lanes[:, left], codes[:, left], filled[:, left]
        )
        # The third derivative is at most `spread` times the second: steps this long go down.
        step = part * slope / np.maximum(curvature, 1e-300)
        moving = np.abs(slope) > CONVERGED
        scale[left] -= np.where(moving, np.sign(step) * np.log1p(np.abs(step)) / part, 0)
        left[left] = moving
    raise ValueError("no scale minimises the divergence of a block of weights")


class _Choice(NamedTuple):
    """Codes, scale and bias of blocks, and the squared error that they leave."""

    codes: Codes
    scale: Array
    bias: Array
    error: Array

    def or_better(self, other: "_Choice") -> "_Choice":
        """Of every block the better one."""
        better = other.error < self.error
        return _Choice(*(np.where(better, b, a) for a, b in zip(self, other, strict=True)))


class _Search:
    """The joint search over some blocks."""

    def __init__(self, lanes: Array, filled: Mask, bits: int, biased: bool) -> None:
        self.lanes, self.filled, self.bits, self.biased = lanes, filled, bits, biased

    def _choice(self, codes: Codes, scale: Array, bias: Array) -> _Choice:
        difference = (self.lanes - codes * scale - bias) * self.filled
        return _Choice(codes, scale, bias, (difference * difference).sum(0))

    def fitted(self, codes: Codes) -> _Choice:
        """The best scale for codes."""
        if self.biased:
            return self._choice(codes, *affine_scale(self.lanes, codes, self.filled))
        scale = l2_scale(self.lanes, codes)
        return self._choice(codes, scale, np.zeros_like(scale))

    def recoded(self, choice: _Choice) -> Codes:
        """The best codes for a scale."""
        factor = divide(np.ones_like(choice.scale), choice.scale)
        return nearest_codes((self.lanes - choice.bias) * self.filled, factor, self.bits)

    def clipped(self) -> _Choice:
        """The best of all clips of the extreme weight, to either end of the code range."""
        best = self.fitted(recipe_codes(self.lanes, self.bits, "R"))
        extreme = np.abs(self.lanes).max(0)
        unit = divide(np.full_like(extreme, 1 << (self.bits - 1)), extreme)
        # With a bias, codes may also lie symmetrically around it.
        for middle in (0, 0.5) if self.biased else (0,):
            for clip in (*CLIPS, *-CLIPS):
                factor = clip * unit
                shift = divide(np.full_like(factor, middle), factor)
                codes = nearest_codes((self.lanes - shift) * self.filled, factor, self.bits)
                best = best.or_better(self.fitted(codes))
        return best

    def refined(self, choice: _Choice) -> _Choice:
        """The choice after codes for its scale and scale for its codes help no more."""
        for _ in range(SWEEPS):
            codes = self.recoded(choice)
            if np.array_equal(codes, choice.codes):
                break
            choice = choice.or_better(self.fitted(codes))
        return choice

    def stored(self, choice: _Choice, form: ScaleFormat) -> _Choice:
        """The choice with a scale that `form` holds, and the best codes for that."""
        scale = form.round(choice.scale).astype(np.float64)
        bias = self._bias(choice.codes, scale)
        codes = self.recoded(choice._replace(scale=scale, bias=bias))
        return self._choice(codes, scale, self._bias(codes, scale))

    def _bias(self, codes: Codes, scale: Array) -> Array:
        if not self.biased:
            return np.zeros_like(scale)
        return _mean_rest(self.lanes, codes, scale, self.filled)


def joint(
    lanes: Array, filled: Mask, bits: int, form: ScaleFormat, *, biased: bool = False
) -> tuple[Codes, NDArray[np.float32], Array]:
    """Codes, scales and biases that together leave the least squared error of each block.

    All clips of the extreme weight are tried with the best scale for their codes; the best one is
    refined until neither other codes nor another scale help. The result is never worse than that
    of recipe R. Biases are 0 unless `biased`.
    """
    search = _Search(lanes, filled, bits, biased)
    best = search.stored(search.refined(search.clipped()), form)
    plain = search.stored(search.fitted(recipe_codes(lanes, bits, "R")), form)
    best = plain.or_better(best)
    return best.codes, best.scale.astype(np.float32), best.bias


def _in_chunks(
    compute: Callable[[Array, Mask], tuple[NDArray, ...]], lanes: Array, filled: Mask
) -> tuple[NDArray, ...]:
    """What `compute` gives for all blocks, some at a time."""
    shape = lanes.shape[1:]
    flat = lanes.reshape(len(lanes), -1)
    mask = np.broadcast_to(filled, lanes.shape).reshape(len(lanes), -1)
    starts = range(0, flat.shape[1], CHUNK)
    parts = [compute(flat[:, n : n + CHUNK], mask[:, n : n + CHUNK]) for n in starts]
    results = (np.concatenate(part, -1) for part in zip(*parts, strict=True))
    return tuple(result.reshape(*result.shape[:-1], *shape) for result in results)


def _block_codes(
    lanes: Array,
    filled: Mask,
    bits: int,
    method: Method,
    recipe: Recipe,
    form: ScaleFormat,
    biased: bool,
) -> tuple[Codes, NDArray[np.float32], Array]:
    """Codes, scales and biases of blocks."""
    if form.signed and method == "joint":
        return joint(lanes, filled, bits, form, biased=biased)
    if not form.signed:
        codes, scales = power_of_two_codes(lanes, bits, form)
    else:
        codes = recipe_codes(lanes, bits, recipe)
        if method == "kl":
            scale = kl_scale(lanes, codes, filled)
        elif biased:
            scale, _ = affine_scale(lanes, codes, filled)
        else:
            scale = l2_scale(lanes, codes)
        scales = form.round(scale)
    bias = np.zeros(scales.shape)
    if biased and method != "kl":
        bias = _mean_rest(lanes, codes, scales, filled)
    return codes, scales, bias


def encode_with_bias(
    weight: NDArray,
    *,
    weight_bits: int,
    block: int,
    groups: int = 1,
    method: Method = "l2",
    recipe: Recipe = "R",
    scale_format: ScaleFormat = BF16,
    biased: bool = True,
) -> tuple[VariableQuantizedKernel, Array]:
    """As :func:`encode`, and a bias for every block: ``scale * codes + bias`` is the weight.

    "l2" and "joint" choose the bias that leaves the least squared error; it is 0 under "kl", whose
    divergence no bias changes.
    """
    blocks, lanes = weight_lanes(weight, weight_bits, block, groups)
    if method not in get_args(Method):
        raise ValueError(f"method must be 'l2', 'kl' or 'joint', not {method!r}")
    if recipe not in get_args(Recipe):
        raise ValueError(f"recipe must be 'R', 'P' or 'O', not {recipe!r}")
    codes, scales, bias = _in_chunks(
        lambda part, filled: _block_codes(
            part, filled, weight_bits, method, recipe, scale_format, biased
        ),
        lanes,
        blocks.filled(lanes.shape[1]),
    )
    kernel = VariableQuantizedKernel(
        blocks.kernel(codes), scales, weight_bits, block, groups, scale_format
    )
    return kernel, bias


def encode(
    weight: NDArray,
    *,
    weight_bits: int,
    block: int,
    groups: int = 1,
    method: Method = "l2",
    recipe: Recipe = "R",
    scale_format: ScaleFormat = BF16,
) -> VariableQuantizedKernel:
    """Quantize a float kernel (Co, Ci / groups, Kh, Kw).

    Parameters
    ----------
    weight_bits, block, groups, recipe, scale_format : as of ``VariableQuantizedKernel.quantize``
    method : "l2" takes the recipe's codes and the scale of least squared error, "kl" the scale that
        keeps the softmax of a block nearest; "joint" searches codes and scale together for the
        least squared error. With an unsigned scale format all are the best power of two

    Raises
    ------
    ValueError
        if a parameter is not among its choices or a weight is not finite
    """
    kernel, _ = encode_with_bias(
        weight,
        weight_bits=weight_bits,
        block=block,
        groups=groups,
        method=method,
        recipe=recipe,
        scale_format=scale_format,
        biased=False,
    )
    return kernel
