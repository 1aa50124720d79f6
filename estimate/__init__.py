"""Cycles (exact) and resources (calibrated) without simulating or synthesizing."""
