"""One file an optimiser, chosen by `optim.name`: each has `from_config`, see of_jax.optim.build."""
