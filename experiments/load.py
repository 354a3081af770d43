"""Entry of the clone for `python -m of_jax load`."""

from of_jax.commands import start

if __name__ == "__main__":
  start("load")
