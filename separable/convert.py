"""The convolutions of a network as separable ones."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .design import Design, Pair, best_design
from .module import SeparableConv2d

__all__ = ["Designer", "Separation", "separate_"]

Designer = Callable[[int, int, Pair, Pair], Design]
"""from input channels, output channels, kernel and stride; as :func:`.design.best_design`, or
:meth:`.Design.depthwise`"""
Filter = Callable[[nn.Module, str], bool]


@dataclass(frozen=True)
class Separation:
    """What became of a convolution.

    Parameters
    ----------
    name : its name in the network
    parameters : its weights, without biases
    design : what replaced it; None if nothing did
    reason : why nothing did
    """

    name: str
    parameters: int
    design: Design | None = None
    reason: str = ""

    @property
    def left(self) -> int:
        """Weights there are now, without biases and normalisation."""
        return self.parameters if self.design is None else self.design.parameters


def separate_(
    model: nn.Module,
    designer: Designer = best_design,
    *,
    least_channels: int = 8,
    filter_fn: Filter | None = None,
    norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    last_norm: bool = False,
    activation: Callable[[], nn.Module] | None = None,
) -> list[Separation]:
    """Replace the convolutions of a network by new separable ones, in place.

    Either all of them change or, after an error, none. Weights are not carried over: the network is
    trained afterwards. What is around a convolution stays, its normalisation, activation and
    shortcut; padding, dilation, a bias, device, type and mode do too.

    Parameters
    ----------
    designer : what designs them, for example ``partial(best_design, stages=2)``
    least_channels : convolutions of fewer channels, in or out, are left: the first layer's
    filter_fn : of a module and its name whether to replace it
    norm, activation : between stages, as of :class:`.module.SeparableConv2d`
    last_norm : whether there is a normalisation after the last stage too; networks have their own

    Returns every convolution of the network but the stages of separable ones, in its order. Left,
    with the reason, is also what has one tap or groups, what would lose something (a subclass,
    hooks, shared weights, padding that is not zeros), and what no design of the designer makes
    smaller.

    Raises ``ValueError`` if the model itself is a convolution, or the designer's design is one of
    other channels, kernel or stride.
    """
    if isinstance(model, nn.Conv2d):
        raise ValueError(
            "separate_ replaces the convolutions inside of a network; make a single one with "
            "SeparableConv2d"
        )
    inside = {
        part
        for module in model.modules()
        if isinstance(module, SeparableConv2d)
        for part in module.modules()
    }
    places: dict[nn.Module, list[str]] = {}
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    found, changed = [], {}
    for module, (name, *_) in places.items():
        if not isinstance(module, nn.Conv2d) or module in inside:
            continue
        weights = module.weight.numel()
        reason = _unfit(module, least_channels)
        if filter_fn is not None and not filter_fn(module, name):
            reason = "filter_fn leaves it out"
        elif any(len(owners[parameter]) > 1 for parameter in module.parameters()):
            reason = "it shares a parameter with another layer"
        if reason:
            found.append(Separation(name, weights, reason=reason))
            continue
        kh, kw = module.kernel_size
        sy, sx = module.stride
        request = module.in_channels, module.out_channels, (kh, kw), (sy, sx)
        design = designer(*request)
        made_for = design.in_channels, design.out_channels, design.kernel, design.stride
        if made_for != request:
            raise ValueError(
                f"the designer's design for {name} must have channels, kernel and stride "
                f"{request}, not {made_for}"
            )
        if design.parameters >= weights:
            reason = f"its design has {design.parameters} parameters, no fewer than its {weights}"
            found.append(Separation(name, weights, reason=reason))
            continue
        found.append(Separation(name, weights, design))
        dilation = module.dilation[0], module.dilation[1]
        made = SeparableConv2d(
            design, _padding(module), dilation, module.bias is not None, norm=norm,
            last_norm=last_norm, activation=activation, device=module.weight.device,
            dtype=module.weight.dtype,
        )  # fmt: skip
        changed[module] = made.train(module.training).requires_grad_(module.weight.requires_grad)
    for module, made in changed.items():
        for name in places[module]:
            model.set_submodule(name, made)
    return found


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """On both sides, (vertical, horizontal)."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        vertical, horizontal = (
            d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        )
        return vertical, horizontal
    return int(conv.padding[0]), int(conv.padding[1])


def _unfit(conv: nn.Conv2d, least_channels: int) -> str:
    """Why a convolution is left as it is; empty if it is not."""
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, which may compute something else than a Conv2d"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(conv, name) for name in hooks):
        return "it has hooks, which would be lost"
    if conv.kernel_size == (1, 1):
        return "it has one tap"
    if conv.groups > 1:
        return f"it has {conv.groups} groups already"
    if min(conv.in_channels, conv.out_channels) < least_channels:
        return (
            f"it takes {conv.in_channels} channels to {conv.out_channels}, fewer than "
            f"{least_channels}"
        )
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode!r}, not with zeros"
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same" and any(span % 2 for span in spans):
        return "its padding 'same' is not the same on both sides"
    return ""
