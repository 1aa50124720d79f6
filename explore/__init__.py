"""Design-space exploration: the accelerator that is best for a network within a device."""
