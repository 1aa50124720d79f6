"""The host's side: a driver over an abstract transport."""
