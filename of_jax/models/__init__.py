"""Networks as Flax NNX modules that know nothing of training; sites are probed by name."""
