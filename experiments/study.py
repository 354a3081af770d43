"""Entry of the clone for `python -m of_jax study`."""

from of_jax.commands import start

if __name__ == "__main__":
  start("study")
