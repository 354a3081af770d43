"""Rules that a resolved config must satisfy, a file a section; `common.validate` asks them all."""
