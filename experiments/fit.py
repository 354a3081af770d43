"""Entry of the clone for `python -m of_jax fit`."""

from of_jax.commands import start

if __name__ == "__main__":
  start("fit")
