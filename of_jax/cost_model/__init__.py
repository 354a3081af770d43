"""Costs of a compiled program on a chip that need not be here: chips, slices, compiled text."""
