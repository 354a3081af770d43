"""Storage of runs: their directory, here or in Cloud Storage, its checkpoints, their digests."""
