"""Compares what two trees of this project compute, byte for byte: a change that should change no
number is shown to change none.

  git worktree add ../before COMMIT
  python tests/compare_commits.py --before=../before --work=FOLDER

Every command of `COMMANDS` is run in both trees, on this machine, by this Python; what a tree has
left in FOLDER is not made again. Compared are `metrics.jsonl` of runs, the claims of a study, and
`measure.json`, `quantise.json` and `compile_topology`'s JSON without their provenance. One run is
started by the earlier tree, killed, and finished by the later one. Exit status 1 where anything
differs. `compile_topology` needs the extra `tpu`.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parents[1]
SMOKE = "experiments.train --config=experiments/configs/smoke.py --config.train.steps=30"
# Name of a run -> the command that trains it.
RUNS = {
    "pre_basic": SMOKE,
    "pre_full": f"{SMOKE} --config.telemetry.level=full",
    "op_basic": f"{SMOKE} --config.model.block=op",
    "op_full": f"{SMOKE} --config.model.block=op --config.telemetry.level=full",
    "soap": f"{SMOKE} --config.optim.name=soap --config.telemetry.level=full "
            "--config.telemetry.cadences=attention=10,gram=10,massive=10,moment_updates=10",
    "residual_mlp": "experiments.train --config=experiments/configs/mlp_images.py:smoke "
                    "--config.train.steps=30 --config.optim.warmup_steps=5 "
                    "--config.telemetry.level=full",
    "running_norm_accumulated": f"{SMOKE} --config.model.norm=power "
                                "--config.train.grad_accumulation=2 --config.train.tweo_weight=0.01"
                                " --config.telemetry.quantised_perplexity_every=10",
}
# Members trained together, and the verdicts on them.
STUDY = ("experiments.study --study=op_block --scale=smoke --vectorise=2 --config.train.steps=12 "
         "--config.train.eval_every=6")
# All sites by name: what is measured where none is named may change from commit to commit.
_SITES = ("--sites=resid_pre,resid_mid,attn_in,attn_out,mlp_in,mlp_hidden,mlp_out,attn_q,attn_k,"
          "final")
# File -> the command that leaves it, in a folder of its name. {run} is of the earlier tree.
RESULTS = {
    "measure_run/measure.json": "experiments.measure --run={run}/pre_full --step=0,16,30 "
                                f"{_SITES} --out={{out}}",
    "measure_model/measure.json": "experiments.measure --model={model} --tokens={tokens} "
                                  f"--sequence_length=12 {_SITES} --out={{out}}",
    "quantise_run/quantise.json": "experiments.quantise --run={run}/op_basic --out={out} --by_site",
    "quantise_model/quantise.json": "experiments.quantise --model={model} --tokens={tokens} "
                                    "--sequence_length=12 --weight_bits=4 --hadamard --out={out}",
    "compile_topology/smoke.json": "experiments.compile_topology "
                                   "--config=experiments/configs/smoke.py --topology=v5e:2x4 "
                                   "--telemetry=off,basic,full --config.mesh.data=8 "
                                   "--out={out}/smoke.json",
}


def run(tree: pathlib.Path, command: str, log: pathlib.Path) -> None:
  """Runs a command of `tree`; says where its output is if it fails."""
  with log.open("w") as output:
    # Two processes of one tree never meet: caches are of the machine and the same for both.
    status = subprocess.run([sys.executable, "-m", *command.split()], cwd=tree, stdout=output,
                            stderr=subprocess.STDOUT, env=environment()).returncode
  if status:
    raise SystemExit(f"{tree}: {command}: exit status {status}, see {log}")


def environment() -> dict[str, str]:
  """One device, and nothing of this process's own paths."""
  return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}


def run_until(tree: pathlib.Path, command: str, appears: pathlib.Path, log: pathlib.Path) -> None:
  """Runs a command and kills it as soon as a file or folder is there."""
  with log.open("w") as output:
    process = subprocess.Popen([sys.executable, "-m", *command.split()], cwd=tree, stdout=output,
                               stderr=subprocess.STDOUT, env=environment())
    while not appears.exists():
      if process.poll() is not None:
        raise SystemExit(f"{tree}: {command}: ended before {appears} was there, see {log}")
      time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def make(tree: pathlib.Path, folder: pathlib.Path, runs: pathlib.Path, model: pathlib.Path,
         tokens: pathlib.Path) -> None:
  """Runs every command in one tree, but for what `folder` has already."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, command in RUNS.items():
    if not (folder / name / "DONE").exists():
      timed(f"{folder.name} {name}", tree, f"{command} --workdir={folder / name}",
            folder / f"{name}.log")
  if not (folder / "study" / "report.html").exists():
    timed(f"{folder.name} study", tree, f"{STUDY} --root={folder / 'study'}", folder / "study.log")
  for name, command in RESULTS.items():
    path = folder / name
    if not path.exists():
      path.parent.mkdir(exist_ok=True)
      timed(f"{folder.name} {name}", tree,
            command.format(run=runs, model=model, tokens=tokens, out=path.parent),
            folder / f"{path.stem}.log")


def timed(what: str, tree: pathlib.Path, command: str, log: pathlib.Path) -> None:
  """Runs a command, and prints how long it took."""
  begun = time.time()
  run(tree, command, log)
  print(f"  made {what}, {time.time() - begun:.0f} s", flush=True)


def foreign(work: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """A small GPT-2 of another library, and tokens for it."""
  import numpy as np
  sys.path.insert(0, str(HERE))
  from tests.golden import foreign as golden
  model, tokens = work / "gpt2", work / "tokens.npy"
  golden.save_folder(model, "gpt2")
  np.save(tokens, np.random.RandomState(1).randint(0, 40, (6, 13)).astype(np.uint16))
  return model, tokens


def without_provenance(value: Any) -> Any:
  """A JSON value without what tells where and when it was made."""
  if isinstance(value, dict):
    return {key: without_provenance(part) for key, part in value.items() if key != "provenance"}
  return [without_provenance(part) for part in value] if isinstance(value, list) else value


def claims(path: pathlib.Path) -> Any:
  """Verdict, rule and evidence of every claim of a study."""
  return json.loads((path / "study.json").read_text())["claims"]


def compare(before: pathlib.Path, after: pathlib.Path) -> list[tuple[str, bool, str]]:
  """(what, whether it is equal, its size in words) of everything that both have."""
  found = []

  def bytes_of(name: str, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    a, b = ours.read_bytes(), theirs.read_bytes()
    found.append((name, a == b, f"{len(a):,} bytes, {len(a.splitlines())} lines"))

  def value_of(name: str, a: Any, b: Any) -> None:
    found.append((name, a == b, f"{len(json.dumps(a)):,} bytes of JSON"))

  for name in RUNS:
    bytes_of(f"{name}/metrics.jsonl", before / name / "metrics.jsonl",
             after / name / "metrics.jsonl")
  bytes_of("started there, killed, finished here", before / "pre_basic" / "metrics.jsonl",
           after / "killed" / "metrics.jsonl")
  members = sorted(path.parent.name for path in (before / "study").glob("*/metrics.jsonl"))
  for name in members:
    bytes_of(f"members: {name}/metrics.jsonl", before / "study" / name / "metrics.jsonl",
             after / "study" / name / "metrics.jsonl")
  value_of("study.json, claims", claims(before / "study"), claims(after / "study"))
  for name in RESULTS:
    value_of(name, *(without_provenance(json.loads((folder / name).read_text()))
                     for folder in (before, after)))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--before", required=True, type=pathlib.Path, help="the earlier tree")
  parser.add_argument("--work", required=True, type=pathlib.Path, help="folder for what is made")
  parser.add_argument("--only_before", action="store_true", help="make the earlier tree's half")
  options = parser.parse_args()
  before, work = options.before.resolve(), options.work.resolve()
  work.mkdir(parents=True, exist_ok=True)
  model, tokens = foreign(work)
  killed = work / "after" / "killed"
  command = f"{RUNS['pre_basic']} --workdir={killed}"
  if not (killed / "config.json").exists():
    killed.parent.mkdir(exist_ok=True)
    run_until(before, command, killed / "checkpoints" / "16", work / "killed_before.log")
  make(before, work / "before", work / "before", model, tokens)
  if options.only_before:
    return
  if not (killed / "DONE").exists():
    timed("killed", HERE, command, work / "killed_after.log")
  make(HERE, work / "after", work / "before", model, tokens)
  found = compare(work / "before", work / "after")
  for name, equal, size in found:
    print(f"{'equal' if equal else 'DIFFERS':8} {name} ({size})")
  differing = sum(not equal for _, equal, _ in found)
  print(f"{len(found) - differing} of {len(found)} are equal")
  sys.exit(bool(differing))


if __name__ == "__main__":
  main()
