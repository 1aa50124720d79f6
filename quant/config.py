"""Checks that configurations share."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..golden.floats import SCALE_FORMATS

__all__ = ["check_choices", "check_overrides"]

_CHOICES: dict[str, range | tuple[str | None, ...]] = {
    "weight_bits": range(2, 9),
    "act_bits": range(2, 9),
    "block": range(1, 1025),
    "scale": tuple(SCALE_FORMATS),
    "recipe": ("R", "P", "O"),
    "method": ("l2", "kl", "joint"),
    "rounding": ("nearest", "truncate"),
    "input_bits": range(2, 17),
    "pixels": range(1, 1 << 16),
}


def check_choices(config: Any, **others: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless every field of a configuration holds what it may.

    None is allowed where it is the default; `others` are choices that differ from the usual ones.
    """
    allowed = _CHOICES | others
    for field in fields(config):
        value, choices = getattr(config, field.name), allowed.get(field.name)
        if choices is None or (value is None and field.default is None):
            continue
        if isinstance(choices, range):
            whole = isinstance(value, int) and not isinstance(value, bool)
            choice = f"{'' if whole else 'a whole number from '}{choices[0]} to {choices[-1]}"
        else:
            whole, choice = True, " or ".join(map(str, choices))
        if not whole or value not in choices:
            raise ValueError(f"{field.name} must be {choice}, not {value!r}")


def check_overrides(overrides: Mapping[str, Mapping[str, Any]], allowed: Iterable[str]) -> None:
    """Raise ``ValueError`` unless every layer overrides only what is `allowed`."""
    for layer, values in overrides.items():
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ValueError(
                f"overrides of layer {layer!r}: {unknown[0]!r} is not one of "
                f"{', '.join(sorted(allowed))}"
            )
