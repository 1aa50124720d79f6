"""The example network: a small CNN on the 8x8 handwritten digits of scikit-learn."""
