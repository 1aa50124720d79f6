"""Optimal separable convolution: designer, operator, conversion of networks, cycles."""
