"""The roles of parameters, by which decay, learning rates and optimisers tell them apart."""

TRAINED_ROLES = ("embedding", "hidden", "unembedding", "gain", "norm", "bias")
# `running` is for statistics that the forward pass keeps: no optimiser sees them.
ROLES = (*TRAINED_ROLES, "running")
