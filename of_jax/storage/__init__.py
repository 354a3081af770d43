"""Where a run is kept: its directory, here or in Cloud Storage, its checkpoints, their digests."""
