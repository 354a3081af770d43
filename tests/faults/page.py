"""Sections of docs/reliability.md that commands write: what they counted, and how and where."""

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
END = "<!-- end -->"


def begin(name: str) -> str:
  """Gives the line that a section of a command begins with."""
  return f"<!-- begin: python -m tests.faults.{name} --write -->"


class Section:
  """One command's section; made when the command starts, since it says how long that took."""

  def __init__(self, name: str, arguments: Sequence[str]):
    """`arguments` of the command, of which `--write` is left out."""
    self._name, self._begun, self._load = name, time.monotonic(), os.getloadavg()[0]
    self._command = " ".join(["python", "-m", f"tests.faults.{name}",
                              *(one for one in arguments if one != "--write")])

  def text(self, found: str) -> str:
    """Says what was run where, and what it found."""
    minutes = (time.monotonic() - self._begun) / 60
    return (f"`{self._command}`, {len(os.sched_getaffinity(0))} cores of {platform.machine()}, "
            f"jax {version('jax')}, {time.strftime('%Y-%m-%d', time.gmtime())}, "
            f"{minutes:.1f} minutes at a load of {self._load:.0f} when it began and "
            f"{os.getloadavg()[0]:.0f} when it ended:\n\n{found}")

  def write(self, found: str, page: Path = PAGE) -> None:
    """Replaces the section in the page."""
    before, mark, rest = page.read_text().partition(begin(self._name) + "\n")
    _, end, after = rest.partition(END)
    if not mark or not end:
      raise ValueError(f"{page}: has no section {begin(self._name)} ... {END}")
    page.write_text(f"{before}{mark}{self.text(found)}\n{end}{after}")
