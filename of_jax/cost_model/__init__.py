"""What a compiled program costs on a chip that need not be here: chips, slices, compiled text."""
