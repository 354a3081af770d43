"""The pages say what is true: links lead somewhere, tables are up to date, and every playbook of
docs/extending.md is followed, word by word, in a copy of the project.

`python -m tests.test_docs` writes the table of rooms into docs/architecture.md, and that of metrics
into docs/metrics.md.
"""

import ast
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from of_jax.config import declared_metrics
from tests.test_layers import ROOMS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
METRICS = ROOT / "docs" / "metrics.md"
ROOMS_BEGIN = "<!-- begin: python -m tests.test_docs -->\n"
METRICS_BEGIN = "<!-- begin: python -m experiments.measure --list_metrics -->\n"
END = "<!-- end -->"
EXTENDING = (ROOT / "docs" / "extending.md").read_text()


def without_code(text: str) -> str:
  """A page's prose: code blocks and code spans may hold what looks like a link or a heading."""
  return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
  """The fragments that a page's headings can be reached by."""
  prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
          for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
  for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
    if "://" in link:
      continue
    name, _, fragment = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    assert target.exists(), f"{page.relative_to(ROOT)}: {link} leads nowhere"
    assert not fragment or fragment in anchors(target), (
        f"{page.relative_to(ROOT)}: {link}: no such heading there")


def test_every_page_is_found_from_the_readme_and_the_index() -> None:
  for front, prefix in (("README.md", "docs/"), ("docs/index.md", "")):
    text = (ROOT / front).read_text()
    for page in (ROOT / "docs").glob("*.md"):
      assert page.name == Path(front).name or f"]({prefix}{page.name})" in text, (
          f"{front} lacks a link to docs/{page.name}")


def test_the_readme_is_a_front_door() -> None:
  lines = (ROOT / "README.md").read_text().splitlines()
  assert len(lines) <= 250, f"README.md has {len(lines)} lines: move what is not for all to docs/"


def rooms_table() -> str:
  """Lists the rooms of of_jax: what each holds, by its docstring, and what it may import."""
  lines = ["| room | holds | imports from |", "| --- | --- | --- |"]
  order = [*ROOMS]
  for room, below in ROOMS.items():
    path = ROOT / "of_jax" / room
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    words = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    first = re.split(r"(?<=\.) ", words)[0]
    names = ", ".join(sorted(below, key=order.index)) or "nothing"
    lines.append(f"| `{room}` | {first} | {names} |")
  return "\n".join(lines) + "\n"


def between(page: Path, begin: str) -> str:
  """The table of a page that stands between a marker and the next END."""
  return page.read_text().partition(begin)[2].partition(END)[0]


def test_the_rooms_are_those_of_the_import_test() -> None:
  assert between(ARCHITECTURE, ROOMS_BEGIN) == rooms_table(), "run python -m tests.test_docs"


# A playbook is a section of the page. It says which files it touches, in a table, and does so:
# `<!-- new: PATH -->` before a block is a file, `<!-- add to PATH behind: LINE -->` goes behind the
# one line of that file that begins so, `<!-- change in PATH: LINE -->` takes its place, and
# `<!-- run -->` is what one types then; `<!-- run slowly -->` waits for `-m slow`.
_STEP = re.compile(r"^<!-- (?P<what>.+?) -->\n```\w*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_ADD = re.compile(r"(?P<verb>add to|change in) (?P<path>[^\s:]+)(?: behind)?: (?P<line>.*)")
# In place of a user's own choice: the same training in a few seconds.
SMALL = ("model.width=16", "model.depth=2", "data.vocab_size=300", "train.steps=2",
         "train.batch_size=4", "train.sequence_length=16", "train.eval_every=2",
         "data.eval_sequences=4", "train.tensorboard=false", "optim.warmup_steps=0")


@dataclasses.dataclass(frozen=True)
class Playbook:
  """One section of docs/extending.md.

  Attributes:
    title: its heading.
    files: those that its table names.
    steps: (what the comment before a block says, the block).
  """

  title: str
  files: tuple[str, ...]
  steps: tuple[tuple[str, str], ...]

  def touched(self) -> set[str]:
    """The files that the steps write; tables of pages are written by the commands."""
    found = set()
    for what, text in self.steps:
      added = _ADD.fullmatch(what)
      if added:
        found.add(added["path"])
      elif what.startswith("new: "):
        found.add(what.removeprefix("new: "))
      elif "experiments.variants --write" in text:
        found.add("docs/variants.md")
      elif "tests.test_docs" in text:
        found.add("docs/metrics.md")
    return found


def playbooks() -> Iterator[Playbook]:
  for section in re.split(r"^## ", EXTENDING, flags=re.MULTILINE)[1:]:
    title, _, body = section.partition("\n")
    steps = tuple((m["what"], m["text"]) for m in _STEP.finditer(body))
    if steps:
      files = re.findall(r"^\| `([\w./]+)` \|", body.partition("<!--")[0], re.MULTILINE)
      yield Playbook(title, tuple(files), steps)


PLAYBOOKS = {playbook.title: playbook for playbook in playbooks()}
# Always followed, without what is to be run slowly. The rest are as many trainings.
QUICKEST = ("Add a norm",)


@pytest.mark.parametrize("title", PLAYBOOKS)
def test_a_playbook_touches_the_files_that_it_names(title: str) -> None:
  playbook = PLAYBOOKS[title]
  assert playbook.files and set(playbook.files) == playbook.touched()


def copied(folder: Path) -> Path:
  """A copy of what the project's commands and tests read."""
  for name in ("of_jax", "experiments", "tests", "docs", "launch"):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
  for path in [*ROOT.glob("*.md"), ROOT / "setup.cfg"]:
    shutil.copy(path, folder)
  return folder


def files_of(folder: Path) -> dict[str, bytes]:
  """Every file that a commit would have."""
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
          if path.is_file() and not {"__pycache__", "runs", ".pytest_cache"} & {*path.parts}}


def write(folder: Path, what: str, text: str) -> None:
  """Does a step that writes a file."""
  added = _ADD.fullmatch(what)
  if not added:
    path = folder / what.removeprefix("new: ")
    assert not path.exists(), f"{path} is there already"
    path.write_text(text)
    return
  path = folder / added["path"]
  lines = path.read_text().splitlines(keepends=True)
  found = [i for i, line in enumerate(lines) if line.strip().startswith(added["line"])]
  assert len(found) == 1, f"{added['path']} has {len(found)} lines `{added['line']}`"
  place = found[0]
  lines[place:place + 1] = [*([lines[place]] if added["verb"] == "add to" else []), text]
  path.write_text("".join(lines))


def run(folder: Path, command: str, token_file: Path) -> None:
  """Types a command into a shell that stands in the copy."""
  command = command.strip().replace(".venv/bin/python", shlex.quote(sys.executable))
  if "-m experiments.train" in command:
    command += f" --config.data.corpus=tokens:{token_file}" * ("data.corpus" not in command)
    command += "".join(f" --config.{field}" for field in SMALL)
  if "-m pytest" in command:
    command += " -n 0 -p no:cacheprovider"
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONDONTWRITEBYTECODE": "1"}
  done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True,
                        timeout=900)
  assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("title, with_all", [
    *((title, False) for title in QUICKEST),
    *(pytest.param(title, True, marks=pytest.mark.slow) for title in PLAYBOOKS)])
def test_a_playbook_works(title: str, with_all: bool, tmp_path: Path, token_file: Path) -> None:
  """Nothing else is written on the way, and every command ends well."""
  playbook, folder = PLAYBOOKS[title], copied(tmp_path)
  before = files_of(folder)
  for what, text in playbook.steps:
    if what == "run slowly" and not with_all:
      continue
    if what.startswith("run"):
      for line in text.replace("\\\n", " ").strip().splitlines():
        run(folder, line, token_file)
    else:
      write(folder, what, text)
  after = files_of(folder)
  assert {name for name in after if after[name] != before.get(name)} == set(playbook.files)
  assert before.keys() <= after.keys()


def main() -> None:
  for page, begin, table in ((ARCHITECTURE, ROOMS_BEGIN, rooms_table()),
                             (METRICS, METRICS_BEGIN, declared_metrics.table() + "\n")):
    page.write_text(page.read_text().replace(begin + between(page, begin) + END,
                                             begin + table + END))


if __name__ == "__main__":
  main()
