"""What configurations of layers have in common."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

from ..golden.floats import SCALE_FORMATS, ScaleFormat

__all__ = ["Choices", "LayerConfig"]

Choices = range | tuple[str | None, ...]
_CHOICES: dict[str, Choices] = {
    "weight_bits": range(2, 9),
    "act_bits": range(2, 9),
    "block": range(1, 1025),
    "scale": tuple(SCALE_FORMATS),
    "recipe": ("R", "P", "O"),
    "method": ("l2", "kl", "joint"),
    "rounding": ("nearest", "truncate"),
    "input_bits": range(2, 17),
    "margin_bits": range(9),
    "pixels": range(1, 1 << 16),
}


class LayerConfig:
    """How layers are quantized: what its frozen dataclasses check, and a layer's own values."""

    PER_LAYER: ClassVar[frozenset[str]]
    """fields that a layer may override"""
    OTHERS: ClassVar[Mapping[str, Choices]] = {}
    """choices that differ from the usual ones"""
    scale: str
    overrides: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        self._check_fields()
        if not isinstance(self.overrides, Mapping):
            raise ValueError(f"overrides must be values by layer and name, not {self.overrides!r}")
        for layer, values in self.overrides.items():
            if not isinstance(values, Mapping):
                raise ValueError(f"overrides of layer {layer!r} must be by name, not {values!r}")
            unknown = sorted(set(values) - self.PER_LAYER)
            if unknown:
                raise ValueError(
                    f"overrides of layer {layer!r}: {unknown[0]!r} is not one of "
                    f"{', '.join(sorted(self.PER_LAYER))}"
                )
            self.layer(layer)

    def _check_fields(self) -> None:
        """Every field must hold one of its choices, or None where that is the default."""
        allowed = {**_CHOICES, **self.OTHERS}
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value, choices = getattr(self, field.name), allowed.get(field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be True or False, not {value!r}")
            if choices is None or (value is None and field.default is None):
                continue
            if isinstance(choices, range):
                whole = isinstance(value, int) and not isinstance(value, bool)
                choice = f"{'' if whole else 'a whole number from '}{choices[0]} to {choices[-1]}"
            else:
                whole, choice = True, " or ".join(map(str, choices))
            if not whole or value not in choices:
                raise ValueError(f"{field.name} must be {choice}, not {value!r}")

    @property
    def scale_format(self) -> ScaleFormat:
        return SCALE_FORMATS[self.scale]

    def layer(self, name: str) -> Self:
        """The configuration of one layer."""
        own = self.overrides.get(name, {})
        return replace(self, overrides={}, **own)  # pyright: ignore[reportArgumentType]
