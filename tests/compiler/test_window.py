"""Places in the activation buffer: of tensors that stay, and of parts that come and go."""

from shiftcore.compiler.place import Interval, first_fit, gaps
from shiftcore.compiler.plan import chunks_of
from shiftcore.compiler.tensors import Box, Stored
from shiftcore.compiler.window import Kept, Slab, Window

TENSOR = Stored("x", 1, 1, 100, (False,), None, 0, 9)


def slab(words: int, *uses: int) -> Slab:
    return Slab(TENSOR, 0, 1, Box(0, 1, 0, words), 0, list(uses))


def test_first_fit_reuses_what_is_dead():
    placed = [Interval(0, 10, 0, 3), Interval(10, 10, 2, 5), Interval(30, 5, 4, 9)]
    assert first_fit(placed, 10, 4, 4) == 0
    assert first_fit(placed, 11, 4, 4) == 35
    assert first_fit(placed, 10, 5, 5) == 0
    assert first_fit(placed, 10, 3, 3) == 20
    assert first_fit(placed, 30, 6, 8) == 0
    assert gaps(placed, 2, 40) == (20, 20)
    assert gaps(placed, 4, 40) == (25, 10)


def test_chunks_differ_by_one_row():
    assert [(box.y, box.rows) for box in chunks_of((10, 7), 4, 7)] == [(0, 3), (3, 3), (6, 4)]
    parts = chunks_of((2, 7), 1, 3)
    assert [(box.y, box.x, box.columns) for box in parts] == [
        (y, x, n) for y in (0, 1) for x, n in ((0, 2), (2, 2), (4, 3))
    ]


def test_slabs_go_around_kept_tensors():
    window = Window(20, [Kept(4, 6, 0, 5)])
    first, second, third = slab(4, 1), slab(6, 2), slab(6, 9)
    assert window.insert(first, 0, 1, False)
    assert window.insert(second, 0, 2, False)
    assert (first.address, second.address) == (0, 10)
    assert not window.insert(third, 0, 9, False)
    # After step 5 the tensor is not needed any more.
    assert window.insert(third, 5, 9, False)
    assert third.address is not None
    assert third.address + 6 <= 20


def test_the_slab_with_the_farthest_use_makes_way():
    window = Window(12, [])
    slabs = [slab(4, 1, 11), slab(4, 2, 12), slab(4, 3, 13)]
    for index, item in enumerate(slabs):
        assert window.insert(item, 0, index + 1, False)
    late, soon = slab(4, 14), slab(4, 4)
    assert not window.insert(late, 3, 14, True)
    assert not window.insert(soon, 3, 4, False)
    assert window.insert(soon, 3, 4, True)
    assert [item.address is None for item in slabs] == [False, False, True]


def test_dead_slabs_make_way():
    window = Window(8, [])
    dead, alive = slab(4, 1), slab(4, 2, 5)
    assert window.insert(dead, 0, 1, False)
    assert window.insert(alive, 0, 2, False)
    assert window.insert(slab(4, 3), 2, 3, False)
    assert dead.address is None
    assert alive.address == 4


def test_a_tensor_clears_its_place():
    window = Window(16, [Kept(0, 4, 3, 9)])
    first, second = slab(4, 1, 8), slab(4, 2, 9)
    assert window.insert(first, 0, 1, False)
    assert window.insert(second, 0, 2, False)
    window.clear(Kept(0, 4, 3, 9))
    assert first.address is None
    assert second.address == 4
