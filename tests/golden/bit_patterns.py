"""Float32 bit patterns, as hypothesis draws them, and the modes of block floating point."""

import numpy as np
from hypothesis import strategies as st

__all__ = ["MODES", "patterns", "pixel"]

MODES = [
    (bits, signed, rounding)
    for bits in range(2, 9)
    for signed in (False, True)
    for rounding in ("nearest", "truncate")
]


def pixel(patterns: list[int]) -> np.ndarray:
    return np.array(patterns, np.uint32).view(np.float32).reshape(1, -1, 1, 1)


@st.composite
def patterns(draw: st.DrawFn) -> list[int]:
    """Channels of one pixel: any finite bit patterns, mostly of similar exponents."""
    base = draw(st.sampled_from([0, 1, 3, 120, 127, 250, 254]))
    fields = st.one_of(st.integers(base - 3, base + 12), st.integers(0, 254))
    ties = st.builds(lambda n, s: (n << s) & 0x7FFFFF, st.integers(0, 1 << 12), st.integers(8, 22))
    fractions = st.one_of(ties, st.integers(0, 0x7FFFFF), st.just(0x7FFFFF))
    lane = st.builds(
        lambda sign, field, fraction: sign << 31 | min(max(field, 0), 254) << 23 | fraction,
        st.integers(0, 1),
        fields,
        fractions,
    )
    zero = st.sampled_from([0, 0x80000000, 1, 0x807FFFFF])
    return draw(st.lists(st.one_of(lane, lane, lane, zero), min_size=1, max_size=20))
