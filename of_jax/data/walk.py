"""Files below a folder, in an order of their own.

Enters: a folder, and what to enter and take. Leaves: paths, and the links that were met.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

Take = Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Found:
  """Files below a folder.

  Attributes:
    files: their paths, in the order of what they are relative to the folder.
    linked: folders that links led to, by the links' relative paths.
    skipped: links that lead to a folder or file which is read already, or to nothing.
  """

  files: list[Path]
  linked: list[str]
  skipped: list[str]


def walk(root: Path, enter: Take, take: Take, follow: bool = True) -> Found:
  """Finds the files below `root`; every folder is entered once, by whatever links it is reached.

  Folders that can be reached without a link are entered so; then links, shorter paths first, so
  that what is found does not depend on the order of a directory, and loops end. Links to files come
  last, and each file that they lead to is taken once: a text that is read twice could be in both
  parts of a corpus.

  Args:
    root: a folder.
    enter: whether to enter a folder of this name.
    take: whether to take a file of this name.
    follow: whether to follow links to folders.

  Raises:
    OSError: a folder cannot be read.
  """
  files: list[Path] = []
  links: list[Path] = []
  linked: list[str] = []
  skipped: list[str] = []
  seen: set[tuple[int, int]] = set()
  waiting: list[Path] = []

  def relative(path: Path) -> str:
    return path.relative_to(root).as_posix()

  def order(path: Path) -> tuple[int, str]:
    return len(path.parts), relative(path)

  def add(top: Path) -> None:
    for folder, folders, names in os.walk(top, onerror=_raise):
      if _identity(Path(folder)) in seen:  # By a link that was entered before this one.
        folders.clear()
        continue
      seen.add(_identity(Path(folder)))
      folders[:] = [name for name in folders if enter(name)]
      waiting.extend(Path(folder, name) for name in folders if Path(folder, name).is_symlink())
      for path in (Path(folder, name) for name in names if take(name)):
        if path.is_symlink():
          links.append(path)
        elif path.is_file():
          files.append(path)

  add(root)
  while follow and waiting:
    waiting.sort(key=order)
    link = waiting.pop(0)
    if _identity(link) in seen:
      skipped.append(relative(link))
    else:
      linked.append(relative(link))
      add(link)
  others = _others(files, sorted(links, key=order))
  skipped += [relative(link) for link in links if link not in others]
  return Found(sorted(files + others, key=relative), linked, sorted(skipped))


def _others(files: list[Path], links: list[Path]) -> list[Path]:
  """Chooses the first link to each file that is not among `files`."""
  read = {_identity(path) for path in files} if links else set()
  others: dict[tuple[int, int], Path] = {}
  for link in links:
    if link.is_file() and _identity(link) not in read:
      others.setdefault(_identity(link), link)
  return list(others.values())


def _identity(path: Path) -> tuple[int, int]:
  stat = path.stat()
  return stat.st_dev, stat.st_ino


def _raise(error: OSError) -> None:
  raise error
