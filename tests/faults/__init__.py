"""Faults on purpose: files that are damaged, input that is odd."""
