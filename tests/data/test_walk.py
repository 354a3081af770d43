"""Folders below a folder, by whatever links: each is entered once, and what is not is named."""

import os
from pathlib import Path

import pytest

from of_jax.data import files
from of_jax.data.walk import walk
from of_jax.errors import UserError


def names(root: Path, **how: bool) -> list[str]:
  found = walk(root, lambda name: True, lambda name: True, **how)
  return [path.relative_to(root).as_posix() for path in found.files]


@pytest.fixture
def root(tmp_path: Path) -> Path:
  """A folder with files, and a folder beside it."""
  for name in ("root/a.txt", "root/inner/b.txt", "beside/c.txt", "beside/deep/d.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(f"text of {name}\n" * 9)
  return tmp_path / "root"


def test_a_linked_folder_is_entered(root):
  (root / "link").symlink_to(root.parent / "beside")
  assert names(root) == ["a.txt", "inner/b.txt", "link/c.txt", "link/deep/d.txt"]
  assert names(root, follow=False) == ["a.txt", "inner/b.txt"]


@pytest.mark.parametrize("order", [1, -1])
def test_every_folder_is_entered_once_whatever_the_order(root, order, monkeypatch):
  (root / "zlink").symlink_to(root.parent / "beside")
  (root / "alink").symlink_to(root.parent / "beside")
  (root / "other").symlink_to(root / "inner")
  (root / "within").symlink_to(root.parent / "beside" / "deep")
  scandir = os.scandir

  class Ordered:
    """A directory's entries, in one order or the other."""

    def __init__(self, path):
      self.entries = iter(sorted(scandir(path), key=lambda e: e.name)[::order])

    def __iter__(self):
      return self.entries

    def __next__(self):
      return next(self.entries)

    def __enter__(self):
      return self

    def __exit__(self, *_):
      return None

    def close(self):
      return None

  monkeypatch.setattr(os, "scandir", Ordered)
  found = walk(root, lambda name: True, lambda name: True)
  assert [p.relative_to(root).as_posix() for p in found.files] == [
      "a.txt", "alink/c.txt", "alink/deep/d.txt", "inner/b.txt"]
  assert found.linked == ["alink"] and found.skipped == ["other", "within", "zlink"]


def test_loops_end(root):
  (root / "inner" / "up").symlink_to(root)
  (root / "self").symlink_to(root / "self")
  (root / "link").symlink_to(root.parent / "beside")
  (root.parent / "beside" / "back").symlink_to(root)
  (root.parent / "beside" / "round").symlink_to(root.parent / "beside")
  found = walk(root, lambda name: True, lambda name: True)
  assert len(found.files) == 4 and found.linked == ["link"]
  assert found.skipped == ["inner/up", "link/back", "link/round", "self"]


def test_linked_files_are_taken_once(root):
  """One text by two names could be in training and in validation."""
  (root / "again.txt").symlink_to(root / "inner" / "b.txt")
  (root / "inner" / "z.txt").symlink_to(root.parent / "beside" / "c.txt")
  (root / "inner" / "y.txt").symlink_to(root / "inner" / "z.txt")
  (root / "round.txt").symlink_to(root / "round.txt")
  found = walk(root, lambda name: True, lambda name: True)
  assert [path.relative_to(root).as_posix() for path in found.files] == [
      "a.txt", "inner/b.txt", "inner/y.txt"]
  assert found.skipped == ["again.txt", "inner/z.txt", "round.txt"]
  (root / "link").symlink_to(root.parent / "beside")
  assert names(root) == ["a.txt", "inner/b.txt", "link/c.txt", "link/deep/d.txt"]
  assert names(root, follow=False) == ["a.txt", "inner/b.txt", "inner/y.txt"]


def test_a_corpus_says_which_links_it_followed_and_which_not(root, log):
  (root / "link").symlink_to(root.parent / "beside")
  (root / "again").symlink_to(root / "inner")
  (root / "broken.txt").symlink_to(root / "nowhere")
  source = files.text(str(root), log)
  assert log == [
      f"text:{root}: entered linked folders, once each: link",
      f"text:{root}: left out links to what is read already or to nothing: again, "
      "broken.txt"]
  assert source.record["linked_folders"] == ["link"]
  split = source.split(0.3)
  assert len(split.train) + len(split.validation) == 4


def test_hidden_links_are_not_entered(root, log):
  (root / ".link").symlink_to(root.parent / "beside")
  assert files.text(str(root), log).record["files"] == 2 and log == []


def test_a_folder_that_cannot_be_read_is_named(root, log, monkeypatch):
  def refused(path):
    raise PermissionError(13, "Permission denied", str(path))
  monkeypatch.setattr(os, "scandir", refused)
  with pytest.raises(UserError, match=f"cannot be read: Permission denied: {root}"):
    files.text(str(root), log)
