"""Runs that are trained together by one program, and which runs may be."""
