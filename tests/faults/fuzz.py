"""python -m tests.faults.fuzz --seed=0 --count=3000 [--workers=2]

Configs over all fields, and command lines over all flags of the binaries, drawn at random: each is
refused in one line within ten seconds and 2 GB, or, drawn small, trained for two steps. The table
counts both, and what is neither. Status 1 if any is.
"""

import argparse
import os
import random
import runpy
import shutil
import sys
import tempfile
import typing
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "disabled"
# Compiling is most of the time; what is compiled is not what is tried here.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 "
                      "--xla_cpu_parallel_codegen_split_count=1" + (
                          " --xla_cpu_use_fusion_emitters=false"
                          if version("jaxlib").startswith("0.10.") else ""))
os.environ.update(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                  JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")

import numpy as np  # noqa: E402

from of_jax import config as config_lib  # noqa: E402
from of_jax.config import values  # noqa: E402
from of_jax.config.fields import hints  # noqa: E402
from of_jax.config.rules.optim import all_own_fields  # noqa: E402
from tests.faults import warm  # noqa: E402
from tests.faults.page import Section  # noqa: E402

# What is refused is refused at once; what is trained may compile.
SECONDS, SECONDS_TO_TRAIN = 10.0, 120.0
ODD_NUMBERS = ("-1", "0", "-0", "2147483647", "2147483648", "4294967297", "1000000007",
               "9223372036854775808", "1" + "0" * 400, "-" + "9" * 40, "1e400", "nan", "inf",
               "-inf", "1e-320", "-1e-9", "1e30", "0.5", "\u00b2", "\u0663", "\uff11", "1_0",
               "0x10", "1e3", "", " ", "true", "none", "1,2", "\0", "1;", "--1")
ODD_TEXTS = ("", " ", "none", "a" * 5_000, "\u00b2", "\0", "x\ny", "\udcff", "~nosuchuser/x",
             "/dev/null/x", "/dev/zero", "/proc/self/mem", "..", "/", "%s%n", "{}", ",", "=", ":",
             "a,a", "a=b", "a" * 300, "\U0001f600", "-1", "'; drop", "$HOME",
             "{root}/own.py:share", "{root}/own.py:none", "{root}/text.txt:a", "own.py:x")
SMALL_WHOLES = ("1", "2", "3", "4", "8", "16")
SMALL_NUMBERS = ("0", "0.1", "0.25", "0.5", "0.9", "1", "2", "3.5")
# A model that compiles in seconds.
SMALL = {
    "model.width": "8", "model.depth": "2", "model.heads": "2", "train.steps": "2",
    "train.batch_size": "2", "train.sequence_length": "8", "data.vocab_size": "64",
    "data.eval_sequences": "2", "train.tensorboard": "false"}
# Values of texts that mean something, beside the odd ones: nothing that is downloaded.
MEANT = {
    "data.corpus": ("tokens:{root}/tokens.npy", "text:{root}/text.txt", "tokens:{root}", "text:",
                    "tokens:/dev/zero", "text:/dev/zero", "text:{root}/pipe", "tokens:{root}/pipe",
                    "cifar10:{root}", "fashion_mnist:{root}"),
    "data.tokenizer": ("{root}/text.txt", "{root}"), "train.init_from": ("{root}", "{root}@\u00b2"),
    "data.cache_dir": ("{root}/cache", "{root}/text.txt", "/proc/x"),
    "telemetry.user_metrics": ("{root}/own.py:share", "{root}/own.py:none", "{root}/text.txt:a"),
    "telemetry.metrics": ("kurtosis", "kurtosis,mmr", "top_neurons"), "optim.norms": ("rows",),
    "telemetry.sites": ("resid_pre", "final", "mlp_in,attn_in"),
    "telemetry.cadences": ("gram=1", "attention=0", "gram=\u00b2", "gram=99999999999999999999"),
    "optim.lr_multipliers": ("hidden=0.1", "hidden=nan", "hidden=1e39"),
    "optim.decay_roles": ("hidden", "hidden,norm"), "optim.train_roles": ("hidden",),
    "optim.projection_roles": ("hidden", "embedding")}
# Fields that no odd value can be tried of without a network.
_LEFT_OUT = ("train.wandb_project",)
# Command lines that work, before what is odd is added; of some without the choice, since what they
# do by default takes minutes.
WHOLE = {
    "train": ["--config={root}/config.py", "--workdir={root}/run_of_flags",
              *(f"--config.{path}={text}" for path, text in SMALL.items()),
              "--config.data.corpus=tokens:{root}/tokens.npy"],
    "measure": ["--run={root}/golden/run"], "quantise": ["--run={root}/golden/run"],
    "report": ["--root={root}/golden"], "runs": ["--root={root}/golden"],
    "fit": ["--csv={root}/law.csv", "--y=loss", "--law=power", "--x=width", "--resamples=99",
            "--simulate=0", "--out={root}/fit"],
    "load": ["--model={root}"],
    "prepare_data": ["--corpus=text:{root}/text.txt", "--vocab_size=300", "--cache_dir={root}/c"],
    "compile_topology": ["--config={root}/config.py"], "study": ["--study=op_block", "--dry_run"]}
ALWAYS = ("prepare_data", "study", "train", "fit")
BINARIES = ("train", "measure", "quantise", "report", "load", "prepare_data", "benchmark",
            "compile_topology", "coordinate_check", "study", "fit", "runs")


def prepare(root: Path) -> None:
  """Makes the files that values name."""
  np.save(root / "tokens.npy", (np.arange(4_000) % 64).astype(np.uint16))
  (root / "text.txt").write_text("The rain it raineth every day.\n" * 200)
  (root / "own.py").write_text("def share(x_TxD):\n  return (abs(x_TxD) > 6).mean()\n")
  (root / "law.csv").write_text("width,loss\n" + "".join(
      f"{width},{2 + width**-0.5 + 0.001 * seed}\n" for width in (16, 32, 64) for seed in range(3)))
  (root / "config.py").write_text(
      "from of_jax.config import Config, presets\n\n\ndef get_config():\n  return Config()\n")
  shutil.copytree(Path(__file__).parents[1] / "golden" / "run_75cbc07", root / "golden")
  os.mkfifo(root / "pipe")
  (root / "dangling").symlink_to(root / "nothing")


def chosen_with(path: str, rng: random.Random) -> dict[str, str]:
  """Draws the choice without which nothing reads a field."""
  owner = config_lib.fields()[path].metadata["owner"]
  if owner is None:
    return {}
  readers = owner.choices or tuple(all_own_fields().get(path.partition(".")[2], ()))
  return {owner.path: rng.choice(readers)} if readers else {}


def value_of(path: str, rng: random.Random, oddness: float) -> str:
  """Draws the text of a field: one that is small and may be right, or an odd one.

  Args:
    oddness: share of the odd ones.
  """
  field = config_lib.fields()[path]
  hint = hints(path)[field.name]
  choices = values.choices(field, hint)
  kinds = {hint, *typing.get_args(hint)}
  is_odd = rng.random() < oddness
  if path in MEANT and (not oddness or rng.random() < 0.7):
    return rng.choice(MEANT[path])
  if choices:
    return rng.choice(ODD_TEXTS if is_odd else choices)
  if bool in kinds:
    return rng.choice(ODD_NUMBERS if is_odd else ("true", "false"))
  if int in kinds:
    return rng.choice(ODD_NUMBERS if is_odd else SMALL_WHOLES)
  if float in kinds:
    return rng.choice(ODD_NUMBERS if is_odd else SMALL_NUMBERS)
  return rng.choice(ODD_TEXTS)


def config_case(root: Path, number: int, rng: random.Random, trains: bool = True) -> warm.Case:
  """Draws a config: a small one with one to four fields set."""
  paths = [path for path in config_lib.fields() if path not in _LEFT_OUT]
  chosen = rng.sample(paths, rng.choice((1, 1, 2, 3, 4)))
  oddness = rng.choice((0, 0, 0.35, 1))
  drawn = {path: value_of(path, rng, oddness).replace("{root}", str(root)) for path in chosen}
  if oddness < 1:
    for path in chosen:
      drawn = {**chosen_with(path, rng), **drawn}
  settings = {**SMALL, "data.corpus": f"tokens:{root}/tokens.npy",
              "data.cache_dir": f"{root}/cache", **drawn}

  def run() -> None:
    import of_jax.train
    config = config_lib.apply_overrides(config_lib.Config(), settings.items())
    if not trains:
      return
    with tempfile.TemporaryDirectory(prefix="fuzzed_") as folder:
      os.chdir(folder)
      of_jax.train.train(config, Path(folder) / "run", lambda line: None)

  kind = "config" if trains else "config, resolved alone"
  return warm.Case(kind, f"{number}: {drawn}", run, SECONDS_TO_TRAIN)


def command_case(root: Path, number: int, rng: random.Random) -> warm.Case:
  """Draws a command line of a binary, some of whose flags are odd."""
  binary = rng.choice(BINARIES)
  flags = FLAGS[binary]
  paths = ("/proc/x", "/dev/null/x", "~nosuchuser/x", f"{root}/dangling/y", f"{root}/text.txt/z",
           f"{root}/pipe", "/dev/zero", "x" * 300, "/".join(["y" * 200] * 30), f"{root}/text.txt",
           f"{root}", f"{root}/dangling", f"{root}/\udcff", f"{root}/new")
  odd = (*(text.replace("{root}", str(root)) for text in ODD_TEXTS), *ODD_NUMBERS, *paths, *paths)
  arguments = [f"--{flag}={rng.choice(odd)}"
               for flag in rng.sample(flags, min(len(flags), rng.choice((1, 2, 3, 5))))]
  before = [f.replace("{root}", str(root)) for f in (WHOLE.get(binary, []) if rng.random() < 0.8
                                                     or binary in ALWAYS else [])]
  arguments = [*before, *arguments]
  if any(argument.startswith("--table") for argument in arguments):
    arguments.append("--topology=v5e:1x1")  # The whole table takes minutes.
  if binary in ("benchmark", "coordinate_check"):
    # They work for minutes where all is right.
    arguments.append(f"--out={rng.choice(paths[:8])}")

  def run() -> None:
    os.chdir(root)
    sys.argv = [f"{binary}.py", *arguments]
    runpy.run_module(f"of_jax.commands.{binary}", run_name="__main__", alter_sys=False)

  return warm.Case(f"flags of {binary}", f"{number}: {arguments}", run, SECONDS_TO_TRAIN)


def flags_of(binary: str) -> list[str]:
  """Lists the flags that a binary declares in its own file."""
  import ast
  source = (Path(__file__).parents[2] / "of_jax" / "commands" / f"{binary}.py").read_text()
  return [node.args[0].value for node in ast.walk(ast.parse(source))
          if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
          and node.func.attr.startswith("DEFINE_") and isinstance(node.args[0], ast.Constant)]


FLAGS = {binary: flags_of(binary) for binary in BINARIES}


def case(root: Path, seed: int, number: int, trains: bool) -> warm.Case:
  """Makes one case, a function of the seed and its number."""
  rng = random.Random(f"{seed} {number}")
  if not trains:
    return config_case(root, number, rng, trains)
  make: Callable[..., warm.Case] = command_case if number % 5 == 4 else config_case
  return make(root, number, rng)


def main(arguments: list[str]) -> int:
  """Runs the cases that the command line asks for; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--count", type=int, default=3000)
  parser.add_argument("--first", type=int, default=0, help="number of the first case")
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--minutes", type=float, default=float("inf"), help="then no more are begun")
  parser.add_argument("--resolve_only", action="store_true", help="configs alone, none trained")
  parser.add_argument("--verbose", action="store_true", help="say how every case ended")
  parser.add_argument("--write", action="store_true", help="put the table into the page")
  asked = parser.parse_args(arguments)
  section = Section("fuzz", arguments)
  table = warm.Table(asked.verbose)
  with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
    # What cases have in common is compiled once.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
    _import()
    prepare(Path(folder))
    warm.run((case(Path(folder), asked.seed, number, not asked.resolve_only)
              for number in range(asked.first, asked.first + asked.count)),
             asked.workers, table.add, asked.minutes)
  print(table.text())
  if asked.write:
    section.write(table.text())
  return 1 if table.faults else 0


def _import() -> None:
  """Imports what the cases would, so that every fork has it."""
  import gguf
  import tokenizers

  import of_jax.analysis.replay
  import of_jax.interop.pretrained
  import of_jax.report.page
  import of_jax.sweep.trainer
  import of_jax.train
  modules: Any = (gguf, tokenizers, of_jax.train, of_jax.analysis.replay, of_jax.report.page,
                  of_jax.interop.pretrained, of_jax.sweep.trainer)
  assert modules


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
