"""The studies of checkpoints from the command line to the page, on models of a few neurons."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from of_jax.commands import studies

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("study", ("outlier_dimensions", "relu_sparsity"))
def test_trains_analyses_and_judges(study: str, token_file: Path, tmp_path: Path) -> None:
  fields = ("model.width=32", "model.depth=2", "model.heads=4", "model.mlp_width=64",
            "train.steps=4", "train.batch_size=8", "train.sequence_length=16",
            "train.tensorboard=false", f"data.corpus=tokens:{token_file}", "data.vocab_size=64",
            "data.eval_sequences=8", "mesh.data=1")
  done = subprocess.run(
      [sys.executable, "-m", "experiments.study", f"--study={study}", f"--root={tmp_path / 's'}",
       *(f"--config.{field}" for field in fields)],
      cwd=ROOT, text=True, capture_output=True, timeout=1200)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().endswith("report.html")
  declared = studies.load(study, "smoke")
  record = json.loads((tmp_path / "s" / "study.json").read_text())
  assert len(record["claims"]) == len(declared.claims)
  for claim in record["claims"]:
    # Every analysis was there to be read; four steps of a few neurons are not what is declared.
    assert claim["verdict"] == "inconclusive"
    assert "not the declared setting: model.width=32, not " in claim["summary"], claim
  for name in declared.runs:
    for kind in ("json", "png", "svg"):
      assert (tmp_path / "s" / name / f"{declared.analyses[0]}.{kind}").is_file()
  steps = json.loads((tmp_path / "s" / name / f"{declared.analyses[0]}.json").read_text())["steps"]
  assert [entry["step"] for entry in steps] == [0, 1, 4]
  page = (tmp_path / "s" / "report.html").read_text()
  assert "Inside the runs" in page and "Inconclusive if a run" in page
