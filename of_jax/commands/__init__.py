"""Commands: `of_jax NAME` and `python -m of_jax NAME` from any folder, with configs and studies.

In a clone `python -m experiments.NAME` is the same.
"""

import ast
import runpy
import signal
import sys
from pathlib import Path

from of_jax.errors import nearest

_FOLDER = Path(__file__).parent


def main() -> None:
  """Runs the command that the command line names first."""
  # While its libraries are imported nothing is there to be saved, and Ctrl-C would end in a
  # traceback of whatever was being imported. cli.run takes over.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  given = sys.argv[1:2]
  if given == ["--version"]:
    print(f"of_jax {sys.modules['of_jax'].__version__}")
  elif not given or given[0].startswith("-"):
    print(listed())
  elif given[0] not in names():
    sys.exit(f"error: {given[0]}: no such command"
             + nearest(given[0], names(), otherwise=f"; there are {', '.join(names())}"))
  else:
    del sys.argv[1]
    start(given[0])


def start(name: str) -> None:
  """Runs a command with the arguments of the command line, as the program itself."""
  runpy.run_module(f"{__name__}.{name}", run_name="__main__", alter_sys=True)


def names() -> list[str]:
  """Lists the commands: the files here that can be run."""
  return sorted(path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_")
                and 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"))


def listed() -> str:
  """Writes every command with what it does."""
  lines = ["of_jax COMMAND --help describes one, --version the package; there are"]
  for name in names():
    text = ast.get_docstring(ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    first = next((line for line in (text or "").splitlines()
                  if line and not line.startswith("python -m")), "")
    lines.append(f"  {name}\n      {first}")
  return "\n".join(lines)
