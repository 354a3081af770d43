"""A user's mistake: one clear line, exit status 1, soon, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SMOKE = "--config=experiments/configs/smoke.py"
MLP = "--config=experiments/configs/mlp_images.py:smoke"

# Arguments -> what the line must say. DIR stands for a scratch folder.
MISTAKES = {
    "misspelt field": ([SMOKE, "--config.model.blok=op"], "did you mean config.model.block?"),
    "misspelt name": ([SMOKE, "--config.model.block=opp"], "residual_scaled; did you mean op?"),
    "wrong type": ([SMOKE, "--config.train.steps=many"], "config.train.steps=many: not a whole"),
    "heads": ([SMOKE, "--config.model.heads=3"], "does not divide model.width=128"),
    "warmup": ([SMOKE, "--config.optim.warmup_steps=999"], "longer than the training"),
    "mesh and batch": ([SMOKE, "--config.mesh.data=3"], "cannot be split over the mesh"),
    "mesh and devices": ([SMOKE, "--config.mesh.data=16"], "needs 16 devices, and there "),
    "no value": ([SMOKE, "--config.train.steps"], "needs a value"),
    "rounds": ([SMOKE, "--config.optim.name=muon", "--config.optim.newton_schulz_steps=1000000007"],
               "newton_schulz_steps=1000000007: must be at most 1,000"),
    "misspelt flag": ([SMOKE, "--wrkdir=x"], "Did you mean: workdir"),
    "workdir elsewhere": ([SMOKE, "--workdir=s3://bucket/run"], "Storage: gs://BUCKET/RUN"),
    "bare word": ([SMOKE, "smoke"], "smoke: not a flag"),
    "no config": ([], "--config is missing"),
    "no config file": (["--config=nowhere.py"], "no such file as nowhere.py"),
    "no such size": (["--config=experiments/configs/ladder.py:9b"], "no such size; there are tiny"),
    "no such corpus": ([SMOKE, "--config.data.corpus=text:DIR/none"], "DIR/none"),
    "large token": ([SMOKE, "--config.data.corpus=tokens:DIR/t.npy"], "4096"),
    "too little data": ([SMOKE, "--config.data.corpus=tokens:DIR/few.npy"], "windows"),
    "images for tokens": ([SMOKE, "--config.data.corpus=digits"], "for model.kind=residual_mlp"),
    "tokens for an MLP": ([MLP, "--config.data.corpus=text:DIR"], "holds no images; use digits"),
    "block of an MLP": ([MLP, "--config.model.block=op"], "does nothing in residual_mlp"),
    "no such images": ([MLP, "--config.data.corpus=cifar10:DIR/none"], "no such folder"),
    "steps to trace": ([SMOKE, "--profile_steps=20:999"], "FIRST <= LAST <= 150, as in 20:24"),
    "no such run": ([SMOKE, "--init_from=DIR/none", "--config.data.corpus=tokens:DIR/ok.npy"],
                    "is not a run directory"),
}


def run(arguments: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
  # CPU time: wall time would say more of the machine's other work than of ours.
  before = os.times()
  result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, text=True,
                          capture_output=True, timeout=120, env={**os.environ, "XLA_FLAGS": ""})
  after = os.times()
  return result, (after.children_user + after.children_system
                  - before.children_user - before.children_system)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_train(mistake: str, tmp_path: Path) -> None:
  np.save(tmp_path / "t.npy", np.full(100_000, 4096, np.uint16))
  np.save(tmp_path / "few.npy", np.zeros(1000, np.uint16))
  np.save(tmp_path / "ok.npy", np.zeros(500_000, np.uint16))
  before = sorted(tmp_path.rglob("*"))
  arguments, message = MISTAKES[mistake]
  # The mistake comes last: of a flag given twice, absl takes the second.
  result, seconds = run(["experiments.train", f"--workdir={tmp_path / 'run'}",
                         *(a.replace("DIR", str(tmp_path)) for a in arguments),
                         f"--config.data.cache_dir={tmp_path / 'cache'}"])
  lines = result.stderr.strip().splitlines()
  assert result.returncode == 1 and len(lines) == 1, result.stderr
  assert lines[0].startswith("error: ") and message.replace("DIR", str(tmp_path)) in lines[0]
  assert sorted(tmp_path.rglob("*")) == before
  assert seconds < 20, f"{seconds:.1f} s of CPU time to find a mistake"


@pytest.mark.parametrize("arguments, message", (
    (["experiments.study", "--study=op_blok", "--root=x"], "op_block"),
    (["experiments.study", "--study=op_block", "--scale=smok", "--root=x"], "smoke"),
    (["experiments.benchmark", "--sizes=huge"], "no such size; there are smoke"),
    (["experiments.benchmark", "--optimisers=adam"], "did you mean adamw?"),
    (["experiments.benchmark", "--config.model.width=32"], "--widths decides it here"),
    (["experiments.coordinate_check", "--out=x", "--config.train.steps=3"], "--steps decides it"),
    (["experiments.benchmark", "--optimisers=adamw:max_precond_dim=8"], "does not read it"),
    (["experiments.benchmark", "--telemetry="], "--telemetry=: needs a value, or leave it out"),
    (["experiments.train", "--config=smoke", "--workdir="], "--workdir=: needs a value"),
    (["experiments.train", "--config=smoke", "--workdir=x", "--coordinator=a:99999",
      "--num_processes=1", "--process_id=0"], "with a port of 1 to 65535"),
    (["experiments.report", "--root=nowhere"], "nowhere"),
    (["experiments.train", "--nostrict_resume=1"], "does not take an argument"),
    (["experiments.runs", "--flagfile=/dev/zero"], "/dev/zero: not a text file of at most 1 MB"),
    (["experiments.fit", "--csv=x", "--level=0.9999999999999999"], "must lie between 0.01 and"),
    (["experiments.compile_topology", "--table=x", "--topology=y"], "--topology=y: --table has"),
    (["experiments.prepare_data", "--corpus=wikipedia"], "wikipedia"),
    (["experiments.prepare_data", "--config.data.corpus=x"], "takes no config"),
    (["experiments.measure"], "--run is missing"),
    (["experiments.measure", "--run=nowhere"], "nowhere: not a run directory"),
    (["experiments.measure", "--run=x", "--tokens=setup.cfg", "--analyse=spectra,sparsity"],
     "--analyse=sparsity: reads the run's own evaluation tokens, not --tokens"),
    (["experiments.measure", "--model=x", "--analyse=spectra"], "experiments.load --model=PATH"),
    (["experiments.measure", "--run=x", "--intervene=zap:final:0:1"], "zap is not one of zero"),
    (["experiments.measure", "--run=x", "--intervene=zero:finl:0:1"], "no site finl; there are"),
    (["experiments.measure", "--run=x", "--tokens=a", "--text=b"], "give one of them"),
    (["experiments.measure", "--run=x", "--run=y"], "--run=y: there is x already"),
    (["experiments.quantise"], "--run is missing"),
    (["experiments.quantise", "--run=nowhere"], "nowhere: not a run directory"),
    (["experiments.quantise", "--run=x", "--weight_bits=5"], "weight_bits=5: must be one of 4, 6"),
    (["experiments.quantise", "--run=x", "--sites=resid_prey"], "did you mean resid_pre?"),
    (["experiments.quantise", "--run=x", "--metrics=rms"], "--metrics: is a flag of measure"),
    (["experiments.quantise", "--model=x"], "came without data; give --tokens"),
), ids=lambda value: value[0] if isinstance(value, list) else "")
def test_other_binaries(arguments: list[str], message: str) -> None:
  result, _ = run(arguments)
  assert result.returncode == 1 and message in result.stderr, result.stderr
  assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("error: ")
  assert not (ROOT / "x").exists()


@pytest.mark.parametrize("binary", ("train", "study", "report", "prepare_data", "benchmark",
                                    "variants", "coordinate_check", "measure", "quantise"))
def test_help_explains_every_flag(binary: str) -> None:
  result, _ = run([f"experiments.{binary}", "--help"])
  assert result.returncode == 0 and f"experiments.{binary}" in result.stdout
  assert "=\n      \n" not in result.stdout
