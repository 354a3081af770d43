"""Config files that `--config` knows by name, as in `--config=ladder:small`."""
