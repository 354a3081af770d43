"""docs/tutorial.md works as it stands, typed in an empty folder; with fewer steps here."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT, SMALL

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
_STEP = re.compile(r"<!-- (?:run|file: (?P<file>\S+)) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
LEFT = ("runs/report.html", "runs/figure.svg", "runs/figure.png", "measured/measure.json",
        "quantised/quantise.json", "kurtosis.pdf")


def steps() -> list[tuple[str | None, str]]:
  return [(step["file"], step["text"]) for step in _STEP.finditer(TUTORIAL)]


def test_every_command_is_one_that_there_is() -> None:
  from of_jax import commands
  named = re.findall(r"^of_jax (\w+)", TUTORIAL, re.MULTILINE)
  assert len(named) == 8 and {*named} <= {*commands.names()}
  assert len(steps()) == TUTORIAL.count("<!-- ") == 6


@pytest.mark.slow
def test_the_tutorial_works(tmp_path: Path, token_file: Path) -> None:
  for file, text in steps():
    if file:
      (tmp_path / file).write_text(text)
      continue
    for line in text.strip().splitlines():
      type_in(tmp_path, line, token_file)
  for name in LEFT:
    assert (tmp_path / name).stat().st_size > 1000 or name.endswith(".json"), name
  layers = json.loads((tmp_path / "measured" / "measure.json").read_text())["telemetry"]
  assert all(value >= 1 for value in layers["resid_pre"]["kurtosis"])
  assert (tmp_path / "runs/linf_1/user_code/0_my_norm.py").read_text() == steps()[0][1]


def type_in(folder: Path, line: str, token_file: Path) -> None:
  python = shlex.quote(sys.executable)
  line = re.sub(r"^of_jax ", f"{python} -m of_jax ", re.sub(r"^python ", f"{python} ", line))
  if " train " in line:
    small = " ".join(f"--config.{field}" for field in SMALL)
    line += f" --config.data.corpus=tokens:{token_file} {small}"
  done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, timeout=900,
                        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"})
  assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
