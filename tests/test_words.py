"""Files fit a few screens, and a docstring tells a newcomer what the thing is or does.

Where a test names a module or a function that is too long, it holds two things: split it by what
they are. A docstring's first line begins with a verb or a noun in ordinary English; shapes, units,
errors and the source follow it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = sorted(path for folder in ("of_jax", "experiments")
               for path in (ROOT / folder).rglob("*.py"))
MODULE_LINES, FUNCTION_LINES = 350, 60
# A first line that begins so is a clause that hangs on something which is not there.
FRAGMENT = re.compile(
    r"(What|As|Of|Where|In place of|From|Whose|Which|Who|When|If|With|Without|That|So that|On|By"
    r"|For|Like|Ours|Theirs|The same|Because|And|Or|But|Also|Attributes:)(?![\w-])")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.AST) -> Iterator[Definition]:
  """Functions, classes and methods that others may use, __call__ and its like included."""
  for child in getattr(node, "body", []):
    if isinstance(child, Definition) and not re.match(r"_(?!_)", child.name):
      yield child
      if isinstance(child, ast.ClassDef):
        yield from public(child)


def say(path: Path, line: int, fault: str) -> str:
  return f"{path.relative_to(ROOT)}:{line}: {fault}"


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
  faults = []
  for path in PATHS:
    tree = ast.parse(path.read_text())
    for node in (tree, *public(tree)):
      assert isinstance(node, ast.Module | Definition)
      first = (ast.get_docstring(node) or "").split("\n")[0]
      if FRAGMENT.match(first):
        faults.append(say(path, node.body[0].lineno, f"`{first}` is a fragment"))
  assert not faults, "\n" + "\n".join(faults)


def test_modules_fit_a_few_screens() -> None:
  faults = [say(path, lines, f"{lines} lines, of at most {MODULE_LINES}") for path in PATHS
            if (lines := len(path.read_text().splitlines())) > MODULE_LINES]
  assert not faults, "\n" + "\n".join(faults)


def test_functions_fit_a_screen() -> None:
  """Docstrings and signatures count, since a reader scrolls past them too."""
  faults = []
  for path in PATHS:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
          faults.append(say(path, node.lineno,
                            f"`{node.name}` has {lines} lines, of at most {FUNCTION_LINES}"))
  assert not faults, "\n" + "\n".join(faults)
