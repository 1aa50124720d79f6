"""Random small networks of everything that is supported."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = ["RandomNetwork"]

Operation = Callable[..., torch.Tensor]


class RandomNetwork(nn.Module):
    """A graph of `length` operations drawn from `random`; images are (N, `channels`, *`size`).

    Every operation reads earlier results; the classifier reads the last one, and what was left over
    is joined to it.
    """

    def __init__(
        self, random: np.random.Generator, channels: int, size: tuple[int, int], length: int
    ) -> None:
        super().__init__()
        self.random = random
        self.parts = nn.ModuleList()
        self.program: list[tuple[Operation, tuple[int, ...]]] = []
        self.shapes: list[tuple[int, ...]] = [(channels, *size)]
        kinds = [
            self._conv, self._conv, self._conv, self._depthwise, self._norm, self._norm,
            self._relu, self._clamp, self._add, self._add, self._concat, self._concat,
            self._max_pool, self._avg_pool, self._slice, self._pad, self._shuffle, self._spatial,
            self._split, self._arithmetic_view,
        ]  # fmt: skip
        self._conv()
        while len(self.program) < length:
            kinds[random.integers(len(kinds))]()
        self._head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for operation, operands in self.program:
            values.append(operation(*(values[k] for k in operands)))
        return values[-1]

    # Each adds one operation, or none where it does not fit.

    def _integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def _pick(self) -> int:
        """A result; recent ones more often."""
        recent = max(0, len(self.shapes) - 4)
        return self._integer(recent if self._integer(0, 3) else 0, len(self.shapes) - 1)

    def _put(self, operation: Operation, *operands: int) -> None:
        example = operation(*(torch.zeros(2, *self.shapes[k]) for k in operands))
        shape = tuple(example.shape[1:])
        if len(shape) == 3 and (shape[0] > 24 or min(shape) < 1):
            return
        self.program.append((operation, operands))
        self.shapes.append(shape)

    def _module(self, module: nn.Module, *operands: int) -> None:
        for parameter in module.parameters():
            noise = self.random.normal(size=parameter.shape) / max(1, parameter[0].numel()) ** 0.5
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(noise))
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(
                torch.from_numpy(self.random.normal(size=module.num_features))
            )
            module.running_var.copy_(
                torch.from_numpy(self.random.uniform(0.5, 2, module.num_features))
            )
        self.parts.append(module)
        self._put(module, *operands)

    def _fits(self, k: int, span: int) -> bool:
        return min(self.shapes[k][1:]) >= span

    def _conv(self) -> None:
        k = self._pick()
        channels = self.shapes[k][0]
        groups = int(self.random.choice([g for g in (1, 1, 1, 2, 3) if channels % g == 0]))
        kernel = (self._integer(1, 3), self._integer(1, 3))
        dilation = self._integer(1, 2)
        if not self._fits(k, dilation * 2 + 1):
            kernel, dilation = (1, 1), 1
        pad = (self._integer(0, kernel[0] // 2), self._integer(0, kernel[1] // 2))
        stride = (self._integer(1, 2), self._integer(1, 2))
        filters = groups * self._integer(1, 10 // groups)
        module = nn.Conv2d(
            channels, filters, kernel, stride, pad, dilation, groups, bool(self._integer(0, 1))
        )
        self._module(module, k)

    def _depthwise(self) -> None:
        k = self._pick()
        channels = self.shapes[k][0]
        multiplier = self._integer(1, 2)
        self._module(nn.Conv2d(channels, multiplier * channels, 3, 1, 1, groups=channels), k)

    def _norm(self) -> None:
        k = self._pick()
        self._module(nn.BatchNorm2d(self.shapes[k][0]), k)

    def _relu(self) -> None:
        self._put([torch.relu, nn.ReLU(), functional.relu][self._integer(0, 2)], self._pick())

    def _clamp(self) -> None:
        low, high = sorted(self.random.normal(size=2).tolist())
        choices: list[Operation] = [
            nn.ReLU6(), lambda x: x.clamp(low, high), lambda x: x.clamp(max=high),
            lambda x: torch.clamp_min(x, low), nn.Hardtanh(-0.5, 0.75),
        ]  # fmt: skip
        self._put(choices[self._integer(0, 4)], self._pick())

    def _like(self, k: int, channels: bool) -> int:
        """A result of the shape of another one, but for the channels if they may differ."""
        first = 0 if channels else 1
        alike = [n for n, s in enumerate(self.shapes) if s[first:] == self.shapes[k][first:]]
        return alike[self._integer(0, len(alike) - 1)]

    def _add(self) -> None:
        k = self._pick()
        others = [self._like(k, True) for _ in range(self._integer(1, 2))]
        self._put(lambda *x: sum(x[1:], x[0]), k, *others)  # pyright: ignore[reportArgumentType]

    def _concat(self) -> None:
        k = self._pick()
        others = [self._like(k, False) for _ in range(self._integer(1, 2))]
        self._put(lambda *x: torch.cat(x, 1), k, *others)

    def _max_pool(self) -> None:
        k = self._pick()
        if self._fits(k, 3):
            ceil = bool(self._integer(0, 1))
            self._put(nn.MaxPool2d(3, self._integer(1, 2), self._integer(0, 1), 1, False, ceil), k)

    def _avg_pool(self) -> None:
        k = self._pick()
        if self._fits(k, 3):
            self._put(
                nn.AvgPool2d(self._integer(2, 3), self._integer(1, 2), self._integer(0, 1)), k
            )

    def _slice(self) -> None:
        k = self._pick()
        channels = self.shapes[k][0]
        start = self._integer(0, channels - 1)
        stop, step = self._integer(start + 1, channels), self._integer(1, 2)
        self._put(lambda x: x[:, start:stop:step], k)

    def _pad(self) -> None:
        sides = [self._integer(0, 2) for _ in range(6)]
        if self._integer(0, 1):
            sides[:4] = [0] * 4
        self._put(lambda x: functional.pad(x, sides), self._pick())

    def _shuffle(self) -> None:
        k = self._pick()
        groups = [g for g in (2, 3) if self.shapes[k][0] % g == 0]
        if groups:
            self._put(nn.ChannelShuffle(groups[0]), k)

    def _arithmetic_view(self) -> None:
        k = self._pick()
        if self.shapes[k][0] % 2 == 0:
            self._put(
                lambda x: x.reshape(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
                k,
            )

    def _split(self) -> None:
        k = self._pick()
        if self.shapes[k][0] > 1:
            part = self._integer(0, 1)
            self._put(lambda x: x.chunk(2, 1)[part], k)

    def _spatial(self) -> None:
        k = self._pick()
        if self._fits(k, 4):
            y, x0, step = self._integer(0, 1), self._integer(0, 1), self._integer(1, 2)
            self._put(lambda x: x[:, :, y::step, x0::2], k)

    def _head(self) -> None:
        """Pools every result that nothing reads, and classifies them together."""
        read = {k for _, operands in self.program for k in operands}
        loose = [k for k in range(1, len(self.shapes)) if k not in read]
        features = sum(self.shapes[k][0] for k in loose)
        self.parts.append(linear := nn.Linear(features, 5))
        self._put(lambda *x: linear(torch.cat([part.mean((2, 3)) for part in x], 1)), *loose)
