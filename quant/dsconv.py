"""DSConv layers: frozen integer codes, and shifters that training moves.

A DSConv layer holds its weight as a variable quantized kernel (VQK), integers of b bits that never
change, and two shifters: the kernel shifter (KDS), a scale and perhaps a bias for every weight
block, and the channel shifter (CDS), a scale and a bias for every filter. Training expands the
scales to the kernel's shape, multiplies, and convolves. (DSConv, arXiv 1901.01928 v1, section 3.)

:func:`quantize_` changes the layers of a network in place, :func:`restore_` undoes that until
:func:`freeze_` drops the source weights.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..frontend.coded import expand
from ..golden.bfp import BlockFloat, Rounding
from ..golden.floats import BF16, ScaleFormat
from ..golden.vqk import Recipe, VariableQuantizedKernel, block_map
from .activation import Requantized, requantize_
from .config import LayerConfig
from .scales import Method, encode, encode_with_bias

__all__ = [
    "DSConv2d",
    "DSConvConfig",
    "DSLinear",
    "freeze_",
    "quantize_",
    "restore_",
    "shifters",
]

Pair = int | tuple[int, int]


@dataclass(frozen=True)
class DSConvConfig(LayerConfig):
    """How layers become DSConv layers.

    Parameters
    ----------
    weight_bits : b, 2 to 8
    block : B, channels that share a scale, cut at the boundaries of the activation's blocks
    method : how the scale is chosen, "l2", "kl" or "joint"; see :func:`.scales.encode`
    recipe : how the codes are chosen, "R", "P" or "O"; the joint search chooses its own
    scale : format that the first scales are rounded to, a key of ``SCALE_FORMATS``; training leaves
        it, and the network file rounds again
    scale_bias : whether blocks have a bias too, in weight space, which no accelerator computes
    pixels : pixels that a linear layer's features come from, H * W of what was flattened
    act_bits : m, 2 to 8: also block floating point after every ReLU (:mod:`.activation`), in blocks
        of B channels; None leaves activations as they are
    rounding : of activations, "nearest" or "truncate"
    overrides : by the module's name in the network, other values for some of the above
    """

    PER_LAYER = frozenset(
        {"weight_bits", "block", "method", "recipe", "scale", "scale_bias", "pixels"}
    )

    weight_bits: int = 4
    block: int = 16
    method: Method = "l2"
    recipe: Recipe = "R"
    scale: str = "fp32"
    scale_bias: bool = False
    pixels: int = 1
    act_bits: int | None = None
    rounding: Rounding = "nearest"
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)


_FORM = "_extra_state"
"""key of what a state says about the form of its codes"""


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _check_sizes(**sizes: int | tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless sizes, or pairs of them, are whole numbers from 1."""
    for name, value in sizes.items():
        pair = (value,) if isinstance(value, int) else value
        if not (
            isinstance(pair, tuple)
            and len(pair) in (1, 2)
            and (len(pair) == 2 or isinstance(value, int))
            and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair)
        ):
            raise ValueError(f"{name} must be from 1, a whole number or a pair, not {value!r}")


class _Shifted(nn.Module):
    """Codes and shifters; the kernel is (Co, depth, Kh, Kw)."""

    codes: torch.Tensor
    pixels = 1

    def __init__(
        self,
        kernel_shape: tuple[int, int, int, int],
        groups: int,
        bias: bool,
        weight_bits: int,
        block: int,
        scale_bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.weight_bits, self.block, self.groups = weight_bits, block, groups
        filters, depth, *taps = kernel_shape
        shape = (filters, block_map(depth, groups, block).blocks, *taps)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_buffer("codes", torch.zeros(kernel_shape, dtype=torch.int8, device=device))
        self.scale = nn.Parameter(torch.zeros(shape, **options))
        self.scale_bias = nn.Parameter(torch.zeros(shape, **options)) if scale_bias else None
        self.channel_scale = nn.Parameter(torch.ones(filters, **options))
        self.channel_bias = nn.Parameter(torch.zeros(filters, **options))
        self.bias = nn.Parameter(torch.zeros(filters, **options)) if bias else None
        self._source: tuple[nn.Module, ...] = ()
        """what the layer was made from; in a tuple, where it is no part of the network"""

    def _form(self) -> dict[str, int]:
        """What the codes and scales of a state mean."""
        names = ("weight_bits", "block", "groups", "pixels")
        return {name: getattr(self, name) for name in names}

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(list(self._form().values()))

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Nothing to set: what a state says must be so, and is checked where it is loaded."""

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        form = state_dict.get(f"{prefix}{_FORM}")
        if form is not None:
            for (name, own), found in zip(self._form().items(), form.tolist(), strict=True):
                if found != own:
                    error_msgs.append(f"{prefix}codes: {name} is {found} in the state, {own} here.")
        codes = state_dict.get(f"{prefix}codes", self.codes)
        limit = 1 << (self.weight_bits - 1)
        outside = (codes < -limit) | (codes > limit - 1)
        if not codes.is_meta and outside.any():
            error_msgs.append(f"{prefix}codes: do not fit {self.weight_bits} bits.")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @property
    def source(self) -> nn.Module | None:
        """The layer that this one was made from, unchanged; None after :func:`freeze_`."""
        return self._source[0] if self._source else None

    def _encode(self, source: nn.Conv2d | nn.Linear, config: DSConvConfig) -> None:
        """Take the weight, the bias, what of them trains, and the mode of `source`."""
        if source.weight.is_meta:
            raise ValueError("its weights are on the meta device, where they have no values")
        weight = source.weight.detach().double().cpu().numpy().reshape(self.codes.shape)
        options: dict[str, Any] = {
            "weight_bits": self.weight_bits,
            "block": self.block,
            "groups": self.groups,
            "method": config.method,
            "recipe": config.recipe,
            "scale_format": config.scale_format,
        }
        with torch.no_grad():
            if self.scale_bias is None:
                kernel = encode(weight, **options)
            else:
                kernel, bias = encode_with_bias(weight, **options)
                self.scale_bias.copy_(torch.from_numpy(bias))
            self.codes.copy_(torch.from_numpy(kernel.codes))
            self.scale.copy_(torch.from_numpy(kernel.scales))
            stored = self.scale.double().cpu().numpy()
            if not np.isfinite(stored).all() or ((stored == 0) & (kernel.scales != 0)).any():
                raise ValueError(f"its scales do not fit {self.scale.dtype}; convert it in float32")
            if source.bias is not None and self.bias is not None:
                self.bias.copy_(source.bias)
        for name, parameter in self.named_parameters():
            trained = source.bias if name == "bias" else source.weight
            parameter.requires_grad_(trained is not None and trained.requires_grad)
        self.train(source.training)
        self._source = (source,)

    def _kernel(self) -> torch.Tensor:
        """(Co, depth, Kh, Kw)."""
        return expand(
            self.codes,
            self.scale,
            self.scale_bias,
            self.channel_scale,
            self.weight_bits,
            self.block,
            self.groups,
        )

    def _result_bias(self) -> torch.Tensor:
        return self.channel_bias if self.bias is None else self.bias + self.channel_bias

    def kernel(self, scale_format: ScaleFormat = BF16) -> VariableQuantizedKernel:
        """The weight as the accelerator stores it, each scale times its filter's, rounded once.

        Raises ``ValueError`` if the block biases are not 0: no accelerator computes them.
        """
        if self.scale_bias is not None and self.scale_bias.count_nonzero():
            raise ValueError(
                "a bias of weight blocks cannot be stored: the accelerator adds no sums of "
                "activations; train with scale_bias=False"
            )
        scale = self.scale.detach().double().cpu().numpy()
        channel = self.channel_scale.detach().double().cpu().numpy()
        return VariableQuantizedKernel(
            self.codes.cpu().numpy().copy(),
            scale_format.round(scale * channel[:, None, None, None]),
            self.weight_bits,
            self.block,
            self.groups,
            scale_format,
        )

    def _description(self) -> str:
        parts = [f"weight_bits={self.weight_bits}", f"block={self.block}"]
        parts += ["scale_bias=True"] if self.scale_bias is not None else []
        return ", ".join(parts + (["bias=False"] if self.bias is None else []))


class DSConv2d(_Shifted):
    """A 2d convolution whose weight is integer codes times shifters; a plug-in for ``nn.Conv2d``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
    device, dtype : as of ``nn.Conv2d``; the padding mode must be "zeros", which is what the
        accelerator does
    weight_bits, block, scale_bias : as of :class:`DSConvConfig`

    Members
    -------
    codes : (Co, Ci / groups, Kh, Kw) int8 buffer, the VQK
    scale : (Co, blocks, Kh, Kw), the KDS scale, blocks as of ``VariableQuantizedKernel``
    scale_bias : as `scale`, the KDS bias, in weight space, or None
    channel_scale, channel_bias : (Co,), the CDS: the scale of the weight, the bias of the result
    bias : (Co,), that of the source, or None; the CDS scale does not touch it

    A new layer is zero: load a state, or make one :meth:`from_conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | Literal["valid", "same"] = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_bits: int = 4,
        block: int = 16,
        scale_bias: bool = False,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(
                f"padding_mode must be 'zeros', which the accelerator has, not {padding_mode!r}"
            )
        _check_sizes(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size,
            stride=stride, dilation=dilation, groups=groups,
        )  # fmt: skip
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide {in_channels} and {out_channels} channels, not {groups!r}"
            )
        # Its refusals of paddings are wanted here, too.
        nn.Conv2d(1, 1, kernel_size, stride, padding, device="meta")
        DSConvConfig(weight_bits, block, scale_bias=scale_bias)
        shape = (out_channels, in_channels // groups, *_pair(kernel_size))
        super().__init__(shape, groups, bias, weight_bits, block, scale_bias, device, dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.dilation = _pair(dilation)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, config: DSConvConfig) -> "DSConv2d":
        """The DSConv form of a convolution, which stays as it is.

        Raises ``ValueError`` if a weight is not finite or the padding mode is not "zeros".
        """
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            (conv.stride[0], conv.stride[1]),
            conv.padding,  # pyright: ignore[reportArgumentType]
            (conv.dilation[0], conv.dilation[1]),
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            weight_bits=config.weight_bits,
            block=config.block,
            scale_bias=config.scale_bias,
        )
        layer._encode(conv, config)
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """(Co, Ci / groups, Kh, Kw): what the codes and the shifters stand for."""
        return self._kernel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(
            x,
            self.weight,
            self._result_bias(),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        for name, plain in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1))):
            if getattr(self, name) != plain:
                text += f", {name}={getattr(self, name)}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return f"{text}, {self._description()}"


class DSLinear(_Shifted):
    """A linear layer whose weight is integer codes times shifters; a plug-in for ``nn.Linear``.

    Its features are (C, pixels) flattened, as after the flatten of an activation (C, H, W), and a
    block is of channels of one pixel, as the accelerator stores it.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype : as of ``nn.Linear``
    weight_bits, block, scale_bias, pixels : as of :class:`DSConvConfig`

    Members
    -------
    codes : (Co, C, pixels, 1) int8 buffer, the VQK
    scale, scale_bias : (Co, blocks, pixels, 1)
    channel_scale, channel_bias, bias : as of :class:`DSConv2d`
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_bits: int = 4,
        block: int = 16,
        scale_bias: bool = False,
        pixels: int = 1,
    ) -> None:
        _check_sizes(in_features=in_features, out_features=out_features)
        DSConvConfig(weight_bits, block, scale_bias=scale_bias, pixels=pixels)
        if in_features % pixels:
            raise ValueError(f"pixels must divide the {in_features} features, not {pixels}")
        shape = (out_features, in_features // pixels, pixels, 1)
        super().__init__(shape, 1, bias, weight_bits, block, scale_bias, device, dtype)
        self.in_features, self.out_features, self.pixels = in_features, out_features, pixels

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: DSConvConfig) -> "DSLinear":
        """The DSConv form of a linear layer, which stays as it is.

        Raises ``ValueError`` if a weight is not finite.
        """
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            linear.weight.device,
            linear.weight.dtype,
            weight_bits=config.weight_bits,
            block=config.block,
            scale_bias=config.scale_bias,
            pixels=config.pixels,
        )
        layer._encode(linear, config)
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """(Co, features): what the codes and the shifters stand for."""
        return self._kernel().flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self._result_bias())

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}, {self._description()}"
        return text if self.pixels == 1 else f"{text}, pixels={self.pixels}"


Filter = Callable[[nn.Module, str], bool]


def _convertible(module: nn.Module, name: str) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Linear))


def _check_source(module: nn.Module, owners: Mapping[nn.Parameter, set[str]]) -> None:
    """Raise ``ValueError`` if a layer has what its DSConv form would lose."""
    if type(module) not in (nn.Conv2d, nn.Linear):
        raise ValueError(
            f"only Conv2d and Linear become DSConv layers, not {type(module).__name__}, which may "
            "compute something else; remove its parametrizations, or leave it out by filter_fn"
        )
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in hooks):
        raise ValueError("it has hooks, which its DSConv form would lose; remove them first")
    for parameter in module.parameters():
        if len(owners[parameter]) > 1:
            raise ValueError(
                f"{' and '.join(sorted(owners[parameter]))} are one parameter, and would be two "
                "weights of codes; give each its own, or leave them out by filter_fn"
            )


def _converted(module: nn.Module, config: DSConvConfig) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        return DSConv2d.from_conv(module, config)
    assert isinstance(module, nn.Linear), type(module)
    return DSLinear.from_linear(module, config)


def _set(model: nn.Module, changed: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the places of some, in all of their places."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # all places, also of what is shared
            if child is not None and child in changed:
                parent._modules[name] = changed[child]


def quantize_(model: nn.Module, config: DSConvConfig, filter_fn: Filter | None = None) -> None:
    """Make the convolutions and linear layers of a network DSConv layers, in place.

    Either all of them change or, after an error, none. Each keeps the layer that it was made from,
    for :func:`restore_`. With ``config.act_bits`` activations become block floating point too.

    Parameters
    ----------
    model : the network; modes, device, and what of it requires a gradient stay
    config : for all layers, with overrides by their names
    filter_fn : of a module and its name whether to change it; default every ``nn.Conv2d`` and
        ``nn.Linear``

    Raises
    ------
    ValueError
        naming the layer, if its weights are not finite, if it has hooks or shares a parameter, or
        if it cannot be a DSConv layer, as a subclass cannot; if an override names no layer that is
        changed; if the model itself is the layer; or if activations cannot be placed
    """
    chosen = {
        name: module
        for name, module in model.named_modules()
        if (filter_fn or _convertible)(module, name)
    }
    if "" in chosen:
        raise ValueError(
            "quantize_ changes the layers inside of a network; make a single one a DSConv layer "
            "with DSConv2d.from_conv or DSLinear.from_linear"
        )
    unknown = sorted(set(config.overrides) - set(chosen))
    if unknown:
        known = ", ".join(chosen) or "none"
        raise ValueError(f"overrides name {unknown[0]!r}, which is not changed; layers are {known}")
    owners: dict[nn.Parameter, set[str]] = {}
    for parent, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, set()).add(f"{parent}.{name}")
    changed: dict[nn.Module, nn.Module] = {}
    for name, module in chosen.items():
        try:
            _check_source(module, owners)
            changed[module] = _converted(module, config.layer(name))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    if config.act_bits is not None:
        requantize_(model, BlockFloat(config.block, config.act_bits, rounding=config.rounding))
    _set(model, changed)


def _layers(model: nn.Module) -> Iterator[tuple[str, _Shifted]]:
    for name, module in model.named_modules():
        if isinstance(module, _Shifted):
            yield name, module


def restore_(model: nn.Module) -> None:
    """Undo :func:`quantize_`: the layers as they were, in the type and on the device of the model.

    Raises ``ValueError``, naming the layer, if one was frozen or was never made from another.
    """
    sources: dict[nn.Module, nn.Module] = {}
    for name, layer in _layers(model):
        if layer.source is None:
            raise ValueError(f"layer {name!r}: it has no source weights to go back to")
        sources[layer] = layer.source.to(layer.scale).train(layer.training)
    for module in model.modules():
        if isinstance(module, Requantized):
            sources[module] = module[0]
    _set(model, sources)


def freeze_(model: nn.Module) -> None:
    """Drop the source weights of all DSConv layers; the layers stay as they are."""
    for _, layer in _layers(model):
        layer._source = ()


def shifters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of all kernel and channel shifters, scales and biases."""
    for name, layer in _layers(model):
        for part in ("scale", "scale_bias", "channel_scale", "channel_bias"):
            parameter = getattr(layer, part)
            if parameter is not None:
                yield f"{name}.{part}".removeprefix("."), parameter
