"""Entry of the clone for `python -m of_jax prepare_data`."""

from of_jax.commands import start

if __name__ == "__main__":
  start("prepare_data")
