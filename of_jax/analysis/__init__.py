"""Reads run directories: runs, claims and their verdicts, figures, the page. Never the trainer."""
