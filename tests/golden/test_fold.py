"""Folding the input: windows as channels, and the convolution that does not notice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden.bfp import FixedPoint
from shiftcore.golden.fold import Fold
from shiftcore.golden.layers import Layer, Term
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.vqk import VariableQuantizedKernel


@st.composite
def folds(draw: st.DrawFn) -> tuple[Fold, tuple[int, int, int]]:
    """A window, and an image that it fits."""
    kernel, stride, dilation = (
        draw(st.tuples(st.integers(1, n), st.integers(1, n))) for n in (3, 3, 2)
    )
    padding = draw(st.tuples(*[st.integers(-1, 3)] * 4))
    size = [
        dilation[i] * (kernel[i] - 1) + draw(st.integers(1, 4)) - min(before, 0) - min(after, 0)
        for i, (before, after) in enumerate((padding[:2], padding[2:]))
    ]
    return Fold(kernel, stride, padding, dilation), (draw(st.integers(1, 3)), size[0], size[1])


@given(folds())
def test_a_fold_gathers_windows(case: tuple[Fold, tuple[int, int, int]]) -> None:
    fold, shape = case
    x = np.random.default_rng(0).integers(1, 100, (2, *shape))
    folded = fold.compute(x)
    assert folded.shape[1:] == fold.shape(shape)
    for image, channel, row, column in np.ndindex(folded.shape):
        c, tap = divmod(channel, fold.kernel[0] * fold.kernel[1])
        ky, kx = divmod(tap, fold.kernel[1])
        y = row * fold.stride[0] + ky * fold.dilation[0] - fold.padding[0]
        z = column * fold.stride[1] + kx * fold.dilation[1] - fold.padding[2]
        inside = 0 <= y < shape[1] and 0 <= z < shape[2]
        assert folded[image, channel, row, column] == (x[image, c, y, z] if inside else 0)


@given(folds(), st.sampled_from([2, 4, 8]))
def test_a_folded_network_sums_the_same_products(
    case: tuple[Fold, tuple[int, int, int]], act_bits: int
) -> None:
    fold, shape = case
    random = np.random.default_rng(1)
    codes = random.integers(-8, 8, (5, shape[0], *fold.kernel)).astype(np.int8)
    bias = np.zeros(5, np.float32)

    def network(codes: np.ndarray, fold: Fold | None, **window) -> QuantizedNetwork:
        blocks = -(-codes.shape[1] // 16)
        scales = np.ones((5, blocks, *codes.shape[2:]), np.float32)  # so that sums are exact
        term = Term("input", VariableQuantizedKernel(codes, scales, 4, 16), **window)
        return QuantizedNetwork(
            FixedPoint(-4, 16, act_bits), shape, (Layer("conv", (term,), bias),), fold
        )

    plain = network(codes, None, stride=fold.stride, padding=fold.padding, dilation=fold.dilation)
    folded = network(codes.reshape(5, -1, 1, 1), fold)
    x = random.normal(size=(2, *shape)).astype(np.float32)
    result, expected = folded.compute(x)["conv"], plain.compute(x)["conv"]
    assert isinstance(result, np.ndarray)
    assert isinstance(expected, np.ndarray)
    assert np.array_equal(result, expected)
    assert plain.macs() == folded.macs()
    assert plain.sizes()["conv"] == folded.sizes()["conv"] == folded.sizes()["input"]
    assert folded.folded_shape == fold.shape(shape)


def test_a_window_must_fit() -> None:
    with pytest.raises(ValueError, match=r"^a \(3, 3\) window does not fit an image of \(2, 9\)$"):
        Fold((3, 3)).shape((1, 2, 9))
    with pytest.raises(ValueError, match=r"^kernel, stride and dilation of a folded input must be"):
        Fold((3, 3), stride=(0, 1))
