"""Images and labels from files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_images"]


def load_images(path: Path | str) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Images ``x`` (N, C, H, W) float32, normalised as in training, and labels ``y`` if present.

    Raises ``ValueError``, naming the file, if it is no such archive.
    """
    arrays = _read(path)
    if "x" not in arrays:
        raise ValueError(f"{path} has no array 'x' of images")
    x, y = arrays["x"], arrays.get("y")
    if x.dtype != np.float32 or x.ndim != 4:
        raise ValueError(f"x in {path} must be (N, C, H, W) float32, not {x.shape} {x.dtype}")
    if not len(x):
        raise ValueError(f"{path} holds no images")
    if not np.isfinite(x).all():
        raise ValueError(f"x in {path} holds NaN or infinities")
    if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in "iu"):
        raise ValueError(f"y in {path} must be {len(x)} whole numbers, not {y.shape} {y.dtype}")
    return x, None if y is None else y.astype(np.int64)


def _read(path: Path | str) -> dict[str, NDArray]:
    """The arrays ``x`` and ``y`` of an npz archive, as far as it has them."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("x", "y") if name in archive.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise TypeError("a member is no array")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path} cannot be read as an npz archive: {reason}") from error
    except Exception as error:
        # The libraries underneath raise zlib.error, BadZipFile, TokenError, TypeError and more;
        # numpy's own advice would be to allow pickles.
        raise ValueError(f"{path} is damaged or no npz archive of numbers") from error
    return arrays
