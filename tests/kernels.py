"""Float kernels, as hypothesis draws them."""

import numpy as np
from hypothesis import strategies as st

__all__ = ["kernels"]


@st.composite
def kernels(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Weight, block size and groups. Weights are short binary fractions: their sums are exact."""
    groups = draw(st.integers(1, 4))
    depth = draw(st.integers(1, 9))
    filters = groups * draw(st.integers(1, 3))
    shape = (filters, depth, draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    limit = draw(st.sampled_from([2, 5, 1 << 11]))  # small ones tie
    weight = rng.integers(-limit, limit + 1, shape) * 2.0**-10
    weight *= rng.choice([1, 1, 1, -1, 0], (filters, depth, 1, 1))
    if draw(st.booleans()):
        weight = np.abs(weight) * draw(st.sampled_from([1, -1]))
    return weight, draw(st.integers(1, 10)), groups
