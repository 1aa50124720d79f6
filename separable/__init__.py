"""Optimal separable convolution: its designer, its torch operator, and the conversion of networks."""
