"""Published network structures, at any width, and the CIFAR-10 networks with trained weights."""
