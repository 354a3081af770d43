"""python -m tests.faults.mangle --seed=0 --count=1000 [--workers=2] [--only=KIND]

Mangled files of every reader, each read in a warm worker with 2 GB and 10 seconds. A file is
refused in one line, or read; the table counts both, and what is neither. Status 1 if any is.
"""

import argparse
import gzip
import json
import lzma
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402

from of_jax.errors import UserError  # noqa: E402
from tests.faults import mutations, warm  # noqa: E402
from tests.faults.page import Section  # noqa: E402

ROOT = Path(__file__).parents[2]
SECONDS = 10.0
_TEXT = "The rain it raineth every day.\n" * 200
Mutation = Callable[[bytes, random.Random], tuple[str, bytes]]
Read = Callable[[Path], None]


def quiet(line: str) -> None:
  """Takes a line and says nothing."""


def build(root: Path) -> None:
  """Makes a whole file or folder for every reader, one folder each."""
  from of_jax.data import tokenizer
  from tests.golden import foreign
  from tests.interop.test_gguf import converted, gguf_bytes
  tokens = (np.arange(4_000) % 40).astype("<u2")
  vocabulary = tokenizer.train([_TEXT], 300)
  for name in ("npy", "bin", "tokenizer", "text", "gguf", "images", "cifar"):
    (root / name).mkdir()
  np.save(root / "npy" / "tokens.npy", tokens)
  head = np.zeros(256, "<i4")
  head[:3] = 20240520, 1, len(tokens)
  (root / "bin" / "llmc.bin").write_bytes(head.tobytes() + tokens.tobytes())
  (root / "bin" / "megatron.bin").write_bytes(tokens.tobytes())
  (root / "bin" / "megatron.idx").write_bytes(
      b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 1) + struct.pack("<iq", len(tokens), 0))
  (root / "tokenizer" / "tokenizer.json").write_text(vocabulary)
  (root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(
      {"bos_token": "<|begin|>", "eos_token": {"content": "<|endoftext|>"}}))
  lines = "".join(json.dumps({"text": line, "n": i}) + "\n"
                  for i, line in enumerate(_TEXT.splitlines()))
  for name, content in (("plain.txt", _TEXT.encode()), ("lines.jsonl", lines.encode())):
    (root / "text" / name).write_bytes(content)
    (root / "text" / f"{name}.gz").write_bytes(gzip.compress(content))
    (root / "text" / f"{name}.xz").write_bytes(lzma.compress(content))
  foreign.save_folder(root / "folder", "llama")
  (root / "folder" / "tokenizer.json").write_text(vocabulary)
  fields, arrays = converted("llama", foreign.FORMS["llama"])
  letters = [chr(c) for c in range(33, 69)]
  fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
             "tokenizer.ggml.tokens": ["<s>", *letters, "AB", "BC", "CD"],
             "tokenizer.ggml.merges": ["A B", "B C", "C D"], "tokenizer.ggml.bos_token_id": 0}
  (root / "gguf" / "model.gguf").write_bytes(gguf_bytes(fields, arrays))
  rng = np.random.default_rng(0)
  for part in ("train", "t10k"):
    pixels = rng.integers(0, 256, (20, 28, 28), np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    (root / "images" / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(
        struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()))
    (root / "images" / f"{part}-labels-idx1-ubyte").write_bytes(
        struct.pack(">2I", 0x801, 20) + labels.tobytes())
  for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
    (root / "cifar" / name).write_bytes(pickle.dumps({
        b"data": rng.integers(0, 256, (4, 3072), np.uint8), b"labels": [0, 1, 2, 3]}, 2))
  shutil.copytree(ROOT / "tests" / "golden" / "run_75cbc07", root / "golden")
  run = root / "golden" / "run"
  shutil.copy(ROOT / "tests" / "golden" / "run_75cbc07" / "measure.json", run / "measure.json")
  (root / "golden" / "study.json").write_text(json.dumps({
      "study": "op_block", "scale": "smoke", "runs": [{"name": "run", "config_diff": {}}],
      "claims": [{"id": "a", "statement": "s", "paper": "p", "rule": "r", "verdict": "REPRODUCED",
                  "evidence": {}, "summary": "s", "left_out": []}]}))


def read_tokens(path: Path) -> None:
  """Reads tokens as a corpus does, and as --tokens does."""
  from of_jax.config import DataConfig
  from of_jax.data import npy, tokens
  from of_jax.errors import refusing
  tokens.open_tokens(DataConfig(corpus=f"tokens:{path}", vocab_size=64), quiet)
  if path.suffix == ".npy":
    with refusing(str(path)):
      npy.open_npy(path)


def read_tokenizer(path: Path) -> None:
  """Reads a tokenizer and encodes a text with it."""
  from of_jax.data import tokenizer
  encoder = tokenizer.read(path.with_name("tokenizer.json"), str(path))
  encoder.encode(["The rain <s> it raineth \u00e9\U0001f600 every day."])
  del encoder.dtype


def read_text(path: Path) -> None:
  """Reads a text as --text does, and as a corpus does."""
  from of_jax.data import files, text_file
  text_file.read(path, f"--text={path}", "", quiet)
  for document in files.text(str(path), quiet).split(0.1).train:
    document.read()


def read_model(path: Path) -> None:
  """Reads the config of a foreign model, and its numbers."""
  from of_jax import interop
  source = interop.open_source(path if path.suffix == ".gguf" else path.parent)
  source.config()
  from of_jax.errors import refusing
  from of_jax.interop.pretrained import read_parameters
  from of_jax.models.functional import build_network
  with refusing(source.where):
    read_parameters(source, build_network(source.config()))


def read_images(path: Path) -> None:
  """Reads a corpus of images."""
  from of_jax.data import image_sources
  kind = "cifar10" if path.parent.name == "cifar" else "fashion_mnist"
  image_sources.source(f"{kind}:{path.parent}", quiet).split(0.1)


def read_run(path: Path) -> None:
  """Reads a run and draws its page, and restores what its config says."""
  from rich.console import Console

  from of_jax.commands import report
  root = path if (path / "study.json").exists() else path.parent
  while not (root / "study.json").exists():
    root = root.parent
  report.write(root, Console(file=open(os.devnull, "w")))
  from of_jax.analysis import replay
  if path.name in ("config.json", "env.json"):
    # Not its checkpoint: what reads that has threads, which a fork lacks.
    config, _ = replay.config_and_shapes(root / "run")
    getattr(replay.Restored(root / "run", config, {}, 0, "", False), "special")


# Kind -> (file in its folder, how it is damaged, reader).
KINDS: Mapping[str, list[tuple[str, Mutation, Read]]] = {
    "tokens .npy": [("npy/tokens.npy", mutations.of_npy, read_tokens)],
    "tokens .bin": [(f"bin/{name}", mutations.of_bytes, read_tokens)
                    for name in ("llmc.bin", "megatron.bin")],
    "tokenizer": [(f"tokenizer/{name}", mutations.of_json, read_tokenizer)
                  for name in ("tokenizer.json", "tokenizer.json", "tokenizer_config.json")],
    "text": [(f"text/{name}", mutations.of_bytes, read_text)
             for name in ("plain.txt", "plain.txt.gz", "plain.txt.xz", "lines.jsonl.gz")]
    + [("text/lines.jsonl", mutations.of_json_lines, read_text)],
    "model folder": [("folder/config.json", mutations.of_json, read_model),
                     ("folder/model.safetensors", mutations.of_bytes, read_model),
                     ("folder/tokenizer.json", mutations.of_json, read_model)],
    "GGUF": [("gguf/model.gguf", mutations.of_bytes, read_model)],
    "images": [("images/train-images-idx3-ubyte.gz", mutations.of_bytes, read_images),
               ("images/train-labels-idx1-ubyte", mutations.of_bytes, read_images),
               ("cifar/data_batch_1", mutations.of_bytes, read_images)],
    "run directory": [(f"golden/{name}", mutation, read_run) for name, mutation in (
        ("run/config.json", mutations.of_json), ("run/config.json", mutations.of_json),
        ("run/env.json", mutations.of_json), ("run/measure.json", mutations.of_json),
        ("study.json", mutations.of_json), ("run/metrics.jsonl", mutations.of_json_lines),
        ("run/metrics.jsonl", mutations.of_bytes), ("run/timing.jsonl", mutations.of_json_lines))],
}


def case(root: Path, seed: int, number: int, only: str) -> warm.Case:
  """Makes one case, a function of the seed and its number."""
  rng = random.Random(f"{seed} {number}")
  kinds = [kind for kind in KINDS if only in kind]
  kind = kinds[number % len(kinds)]
  name, mutation, read = rng.choice(KINDS[kind])
  way, content = mutation((root / name).read_bytes(), rng)

  def run() -> None:
    with tempfile.TemporaryDirectory(prefix="mangled_") as folder:
      top, *rest = Path(name).parts
      shutil.copytree(root / top, Path(folder, top))
      path = Path(folder, top, *rest)
      path.write_bytes(content)
      os.chdir(Path(folder, top))
      read(path)

  return warm.Case(kind, f"{number}: {name}: {way}", run, SECONDS)


def unharmed(root: Path) -> list[warm.Case]:
  """Makes a case of every file as it is, which must be accepted."""
  def reading(name: str, read: Read) -> Callable[[], None]:
    def run() -> None:
      os.chdir(root / Path(name).parts[0])
      try:
        read(root / name)
      except UserError as error:
        raise AssertionError(f"{name} is whole, and refused") from error
    return run

  rows = {name: read for rows in KINDS.values() for name, _, read in rows
          # Its files are read together.
          if read is not read_run or name.endswith("config.json")}
  return [warm.Case("unharmed", name, reading(name, read), SECONDS) for name, read in rows.items()]


def main(arguments: list[str]) -> int:
  """Runs the cases that the command line asks for; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--count", type=int, default=1000)
  parser.add_argument("--first", type=int, default=0, help="number of the first case")
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--only", default="", help="kinds whose name has this in it")
  parser.add_argument("--minutes", type=float, default=float("inf"), help="then no more are begun")
  parser.add_argument("--verbose", action="store_true", help="say how every case ended")
  parser.add_argument("--write", action="store_true", help="put the table into the page")
  asked = parser.parse_args(arguments)
  section = Section("mangle", arguments)
  _import()
  table = warm.Table(asked.verbose)
  with tempfile.TemporaryDirectory(prefix="whole_") as folder:
    root = Path(folder)
    build(root)
    warm.run(unharmed(root), asked.workers, table.add)
    warm.run((case(root, asked.seed, number, asked.only)
              for number in range(asked.first, asked.first + asked.count)),
             asked.workers, table.add, asked.minutes)
  print(table.text())
  if asked.write:
    section.write(table.text())
  return 1 if table.faults else 0


def _import() -> None:
  """Imports what the readers would, so that every fork has it."""
  import gguf
  import tokenizers
  import zstandard

  import of_jax.analysis.replay
  import of_jax.commands.report
  import of_jax.interop.pretrained
  modules: Any = (gguf, tokenizers, zstandard, of_jax.commands.report, of_jax.analysis.replay,
                  of_jax.interop.pretrained)
  assert modules


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
