"""From a `torch.export` archive to a network graph."""
