"""One file an optimiser, chosen by `optim.name`.

Each states `FIELDS`, the config fields that it reads with its own defaults, the other traits that
it has (of_jax.config.traits.Optimizer) and `from_config(optim, learning_rate, layout)`, see
of_jax.optim.build. The learning rate's factors by role, clipping and projection are not its
business.
"""
