"""Separable convolution as a layer of torch."""

import math
from collections.abc import Callable

import torch
from torch import nn

from .design import Design, Pair, pair

__all__ = ["SeparableConv2d", "ShuffleChannels"]


class ShuffleChannels(nn.Module):
    """Deals out the channels of `runs` equal runs in turn: (runs, n) transposed."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.runs = runs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (N, C, H, W) to (N, runs, C / runs, H, W), and the two transposed
        return x.unflatten(1, (self.runs, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return str(self.runs)


class SeparableConv2d(nn.Sequential):
    """The stages of a design, a plug-in for ``nn.Conv2d``; it is trained from scratch.

    The stages are linear but for `norm` and `activation`. Without these the result is exactly that
    of one convolution with zero padding, where each axis has its taps in one stage, as in all that
    the designer returns.

    Parameters
    ----------
    design : groups, kernels, strides, widths and shuffles
    padding : zeros on both sides, (vertical, horizontal); by default half of the kernel
    dilation : of all kernels
    bias : whether the last stage has a bias
    norm : makes what follows each stage, from its number of channels; None for nothing
    last_norm : whether it follows the last stage too, which replaces one whose own normalisation
        follows it elsewhere
    activation : makes what follows the normalisation of each stage but the last; None, the default,
        keeps the stages one factorised convolution
    device, dtype : of the parameters
    """

    def __init__(
        self,
        design: Design,
        padding: Pair | None = None,
        dilation: Pair = 1,
        bias: bool = False,
        *,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        last_norm: bool = True,
        activation: Callable[[], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.design = design
        spread = pair("dilation", dilation)
        if padding is None:
            (dy, dx), (kh, kw) = spread, design.kernel
            padding = dy * (kh - 1) // 2, dx * (kw - 1) // 2
        paddings = _paddings(design, (padding, padding) if isinstance(padding, int) else padding)
        last = len(design.stages) - 1
        for number, stage in enumerate(design.stages):
            conv = nn.Conv2d(
                stage.in_channels, stage.out_channels, stage.kernel, stage.stride,
                paddings[number], spread, stage.groups, bias and number == last,
                device=device, dtype=dtype,
            )  # fmt: skip
            self.add_module(f"conv{number}", conv)
            if norm is not None and (last_norm or number < last):
                self.add_module(f"norm{number}", norm(stage.out_channels).to(conv.weight))
            if activation is not None and number < last:
                self.add_module(f"act{number}", activation())
            if stage.shuffle > 1:
                self.add_module(f"shuffle{number}", ShuffleChannels(stage.shuffle))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random filters that keep the mean square of their inputs: normal, then of norm 1.

        Filters of a few weights keep it only on average if they are not normalized. The squared
        norm is 2 after an activation, which is taken for a ReLU. Biases are 0.
        """
        activated = any(name.startswith("act") for name, _ in self.named_children())
        for number in range(len(self.design.stages)):
            conv = self.get_submodule(f"conv{number}")
            assert isinstance(conv, nn.Conv2d)
            filters = nn.init.normal_(conv.weight)
            filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]
            if activated and number:
                filters *= math.sqrt(2)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def _paddings(design: Design, padding: tuple[int, int]) -> list[tuple[int, int]]:
    """Of each stage: its share of the padding, by the part of the kernel that it has.

    Raises ``ValueError`` if a padding is negative.
    """
    if len(padding) != 2 or any(type(n) is not int or n < 0 for n in padding):
        raise ValueError(f"padding must be from 0, a whole number or a pair, not {padding!r}")
    shares = []
    for axis in (0, 1):
        taps = design.kernel[axis] - 1
        covered, given = 0, []
        for stage in design.stages:
            covered += stage.kernel[axis] - 1
            # Without taps the first stage has all of it, before any stride.
            due = padding[axis] * covered // taps if taps else padding[axis]
            given.append(due - sum(given))
        shares.append(given)
    return list(zip(*shares, strict=True))
