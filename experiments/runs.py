"""Entry of the clone for `python -m of_jax runs`."""

from of_jax.commands import start

if __name__ == "__main__":
  start("runs")
