"""Entries of a clone: `python -m experiments.NAME` is `python -m of_jax NAME`, of_jax.commands."""

import signal
import sys

# While the libraries of `python -m experiments.NAME` are imported nothing is there to be saved, and
# Ctrl-C would end in a traceback of whatever was being imported. cli.run takes over.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)
