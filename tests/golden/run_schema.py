"""Makes the golden run directory of today's schema, as tests/storage/test_old_runs.py opens it.

  JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 python -m tests.golden.run_schema

It is run once for each schema, from a clone without changes, and leaves tests/golden/run_schemaN:
the run of run_75cbc07 with telemetry of level basic, stopped at step 4 of 8, its tokens,
finished.jsonl, which is the metrics.jsonl of the same run uninterrupted, and measure.json, what
experiments.measure gives of step 4. What is there is never written again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from of_jax.analysis.runs import read_config
from of_jax.config import SCHEMA_VERSION
from of_jax.config.fields import replaced
from of_jax.errors import Preempted
from of_jax.train import train
from of_jax.train.distributed import Interruption

FOLDER = Path(__file__).parent


def main() -> None:
  golden = FOLDER / f"run_schema{SCHEMA_VERSION}"
  if golden.exists():
    sys.exit(f"{golden} is there, and is never written again")
  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    shutil.copy(FOLDER / "run_75cbc07" / "tokens.npy", ".")
    config = replaced(read_config(FOLDER / "run_75cbc07" / "run"), {"telemetry.level": "basic"})
    # env.json has it.
    sys.argv = ["tests/golden/run_schema.py"]
    asked = Interruption.stops_at
    Interruption.stops_at = lambda self, step: step == 4  # type: ignore[method-assign]
    try:
      train(config, "run")
    except Preempted:
      pass
    Interruption.stops_at = asked  # type: ignore[method-assign]
    train(config, "whole")
    shutil.copy("whole/metrics.jsonl", "finished.jsonl")
    subprocess.run(
        [sys.executable, "-m", "experiments.measure", "--run=run", "--step=4", "--level=full",
         "--out=out"],
        check=True, env={**os.environ, "PYTHONPATH": str(FOLDER.parents[1])})
    shutil.copy("out/measure.json", ".")
    for name in ("run/checkpoints/0", "run/checkpoints/1", "out", "whole"):
      shutil.rmtree(name)
    # Without the paths of the machine that made it.
    for path in (Path("measure.json"), *Path("run").rglob("commit_success.txt")):
      text = path.read_text()
      path.write_text(text.replace(f"{FOLDER.parents[1]}/", "").replace(f"{Path.cwd()}/", ""))
    shutil.copytree(".", golden)


if __name__ == "__main__":
  main()
