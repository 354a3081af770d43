"""Helpers for the XLA compiler: where a program runs, and reductions that it does well."""
