"""Training: state, step, loop, sharding, checkpoints. `train` runs or resumes one run."""

from of_jax.train.loop import train

__all__ = ["train"]
