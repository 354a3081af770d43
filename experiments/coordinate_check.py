"""Entry of the clone for `python -m of_jax coordinate_check`."""

from of_jax.commands import start

if __name__ == "__main__":
  start("coordinate_check")
