"""The bit-exact numpy model: formats, blocks, kernels, layers, networks, every unit's spec."""
