"""Images and labels from files."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_images"]


def load_images(path: Path | str) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Images ``x`` (N, C, H, W) float32, normalised as in training, and labels ``y`` if present.

    Raises ``ValueError``, naming the file, if it is no such archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files") or "x" not in archive.files:
                raise ValueError(f"{path} has no array 'x' of images")
            x = archive["x"]
            y = archive["y"] if "y" in archive.files else None
    except (OSError, BadZipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an npz archive: {error}") from error
    if x.dtype != np.float32 or x.ndim != 4:
        raise ValueError(f"x in {path} must be (N, C, H, W) float32, not {x.shape} {x.dtype}")
    if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in "iu"):
        raise ValueError(f"y in {path} must be {len(x)} whole numbers, not {y.shape} {y.dtype}")
    return x, None if y is None else y.astype(np.int64)
