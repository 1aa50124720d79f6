"""From a quantized network to tiles, a program and a memory image; no torch."""
