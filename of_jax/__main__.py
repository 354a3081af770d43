"""python -m of_jax COMMAND ..., see of_jax.commands."""

from of_jax.commands import main

if __name__ == "__main__":
  main()
