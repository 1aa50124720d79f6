"""Files of images: what is read, and one line that names a file that cannot be."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shiftcore.quant.data import load_images

IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "images.npz"


def refused(file: Path) -> str:
    """The message, with FILE for the name that it must have."""
    with pytest.raises(ValueError, match="images") as caught:
        load_images(file)
    message = str(caught.value)
    assert str(file) in message
    message = message.replace(str(file), "FILE")
    assert "\n" not in message
    assert "pickle" not in message
    return message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels(file: Path, save):
    save(file, x=IMAGES, y=np.array([3, 1], np.uint8))
    x, y = load_images(file)
    assert np.array_equal(x, IMAGES)
    assert y is not None
    assert (y.tolist(), y.dtype) == ([3, 1], np.int64)


def test_labels_may_be_missing(file: Path):
    # What else is in the archive does not matter, not even what cannot be read.
    np.savez(file, x=IMAGES, notes=np.array([{}], object))
    x, y = load_images(file)
    assert y is None
    assert x.dtype == np.float32


DAMAGED = "FILE is damaged or no npz archive of numbers"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps(IMAGES),
        b"PK\x03\x04 and nothing of the kind",
        b"\x93NUMPY\x01\x00",
    ],
    ids=["empty", "text", "pickle", "no zip", "no header"],
)
def test_garbage(file: Path, content: bytes):
    file.write_bytes(content)
    assert refused(file) == DAMAGED


@pytest.mark.parametrize(
    "member",
    [b"no array", b"\x93NUMPY\x01\x00\x10\x00{'descr': oops((\n"],
    ids=["text", "header"],
)
def test_a_member_that_is_no_array(file: Path, member: bytes):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", member)
    assert refused(file) == DAMAGED


def test_objects(file: Path):
    np.savez(file, x=np.array([{}, 1], object))
    assert refused(file) == DAMAGED
    np.savez(file, x=IMAGES, y=np.array([None, 1], object))
    assert refused(file) == DAMAGED


def test_a_single_array(file: Path):
    with file.open("wb") as opened:
        np.save(opened, IMAGES)
    assert refused(file) == DAMAGED


@pytest.mark.parametrize("length", [1, 7])
def test_damage_in_any_place(file: Path, length: int):
    """Bytes are changed all over the file: the images come as they were, or one line."""
    np.savez_compressed(file, x=IMAGES)
    whole = file.read_bytes()
    unharmed = 0
    for begin in range(0, len(whole), length):
        changed = bytes(byte ^ 0x5A for byte in whole[begin : begin + length])
        file.write_bytes(whole[:begin] + changed + whole[begin + length :])
        try:
            x, _ = load_images(file)
        except ValueError:
            assert refused(file).startswith("FILE ")
        else:
            # Some bytes are dates and the like.
            assert np.array_equal(x, IMAGES)
            unharmed += 1
    assert unharmed < len(whole) / length / 2


def test_the_end_is_missing(file: Path):
    np.savez_compressed(file, x=IMAGES)
    whole = file.read_bytes()
    for end in range(0, len(whole), 5):
        file.write_bytes(whole[:end])
        assert refused(file) == DAMAGED


def test_no_file(file: Path):
    reason = "FILE cannot be read as an npz archive: "
    assert refused(file) == f"{reason}No such file or directory"
    file.mkdir()
    assert refused(file) == f"{reason}Is a directory"


def test_other_arrays(file: Path):
    np.savez(file, images=IMAGES)
    assert refused(file) == "FILE has no array 'x' of images"
    np.savez(file, x=IMAGES.astype(float))
    assert refused(file) == "x in FILE must be (N, C, H, W) float32, not (2, 3, 4, 4) float64"
    np.savez(file, x=IMAGES[:0])
    assert refused(file) == "FILE holds no images"
    np.savez(file, x=np.where(IMAGES == 5, np.nan, IMAGES))
    assert refused(file) == "x in FILE holds NaN or infinities"
    np.savez(file, x=IMAGES, y=np.array([1, 2, 3]))
    assert refused(file) == "y in FILE must be 2 whole numbers, not (3,) int64"
