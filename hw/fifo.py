"""The first-in first-out queue of streams of data."""

from amaranth.lib.fifo import SyncFIFOBuffered

__all__ = ["Queue"]


class Queue(SyncFIFOBuffered):
    """Amaranth's buffered FIFO in a memory whose ports never meet at an address.

    It reads only what was written in an earlier cycle, and writes no place that is not yet read.
    Told so, synthesizers do without registers and multiplexers around a block RAM for the case of
    a read and a write of one place at a time: two flip-flops and a LUT for each bit of its width.
    """

    def elaborate(self, platform):
        m = super().elaborate(platform)
        if self.depth > 1:
            m.submodules.storage.attrs["no_rw_check"] = True
        return m
