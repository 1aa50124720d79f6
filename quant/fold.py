"""Whether the first convolution should read a folded image."""

from collections.abc import Sequence
from dataclasses import replace

from ..golden.fold import Fold
from ..golden.network import INPUT
from .float_layer import FloatLayer

__all__ = ["fold_input"]


def fold_input(
    layers: Sequence[FloatLayer], block: int
) -> tuple[Fold | None, tuple[FloatLayer, ...]]:
    """The window to fold the image by, and the layers that read it so; None if it saves nothing.

    Folding needs ``ceil(C * Kh * Kw / B)`` steps a plane instead of ``Kh * Kw * ceil(C / B)``. The
    image must be read by one term only, and that a learnt one whose weights are not codes already:
    those have a scale for each kernel position.
    """
    layers = tuple(layers)
    readers = [
        (number, term)
        for number, layer in enumerate(layers)
        for term in layer.terms
        if term.source == INPUT
    ]
    if len(readers) != 1:
        return None, layers
    number, term = readers[0]
    filters, depth, *taps = term.weight.shape
    channels, positions = depth * term.groups, taps[0] * taps[1]
    saves = -(-channels * positions // block) < positions * -(-channels // block)
    if term.constant or term.coded is not None or not saves:
        return None, layers
    fold = Fold((taps[0], taps[1]), term.stride, term.padding, term.dilation)
    folded = replace(
        term,
        weight=term.weight.reshape(filters, -1, 1, 1),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
    )
    layer = layers[number]
    terms = tuple(folded if other is term else other for other in layer.terms)
    return fold, (*layers[:number], replace(layer, terms=terms), *layers[number + 1 :])
