"""Sets of weights in a folder: which is read, and what is said of the others.

Enters: a folder, and perhaps a user's choice. Leaves: the tensors' entries. transformers reads
model.safetensors and looks at nothing else, else the shards of model.safetensors.index.json; the
rest may be left from an earlier save, so sets that are not the same are read by choice alone.
"""

import dataclasses
import fnmatch
from pathlib import Path

from of_jax.config.paths import expanded
from of_jax.errors import UserError
from of_jax.interop.safetensors import Entry, read_header
from of_jax.interop.settings import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHOICES = {"single": SINGLE, "sharded": INDEX}
_ADAPTER = "adapter_config.json"
# Weights in other formats, and files of that look which hold none.
_FOREIGN = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.onnx")
_NO_WEIGHTS = ("training_args.*", "optimizer*", "scheduler*", "rng_state*", "scaler.*",
               "tokenizer*", "random_states*")

Entries = dict[str, Entry]


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Set of weights that is read.

  Attributes:
    file: model.safetensors or the index.
    notes: a line on what stands beside it and is not read.
  """

  file: str
  entries: Entries
  notes: tuple[str, ...]


def split_choice(named: str) -> tuple[str, str | None]:
  """Splits PATH@single and PATH@sharded into the path and the choice; None where there is none."""
  path, _, choice = named.rpartition("@")
  if path and choice in CHOICES and not expanded(named).exists():
    return path, choice
  return named, None


def choose(folder: Path, choice: str | None = None) -> Chosen:
  """Reads the entries of the weights of a folder.

  Args:
    choice: `single` or `sharded`; None: what is there, where it is one set.

  Raises:
    UserError: no weights, or several that are not the same.
  """
  if choice is not None and choice not in CHOICES:
    raise UserError(f"--weights={choice}: must be {' or '.join(CHOICES)}")
  there = [file for file in CHOICES.values() if (folder / file).exists()]
  if not there:
    raise UserError(_nothing(folder))
  if choice is not None and CHOICES[choice] not in there:
    raise UserError(f"{folder}: --weights={choice}: holds no {CHOICES[choice]}")
  file = there[0] if choice is None else CHOICES[choice]
  entries = _read(folder, file)
  read = {entry.path.name for entry in entries.values()}
  strays = [path.name for path in sorted(folder.glob("*.safetensors")) if path.name not in read]
  beside = [path.name for pattern in _FOREIGN for path in sorted(folder.glob(pattern))
            if not any(fnmatch.fnmatch(path.name, other) for other in _NO_WEIGHTS)]
  if choice is None:
    beside = _checked(folder, file, entries, there, strays) + beside
  else:
    beside = list(dict.fromkeys([*(name for name in there if name != file), *strays, *beside]))
  notes = (f"{file} is read; not {_some(beside)} beside it",) if beside else ()
  return Chosen(file, entries, notes)


def _checked(folder: Path, file: str, entries: Entries, there: list[str], strays: list[str]
             ) -> list[str]:
  """Names what is not read and may be passed over; raises UserError where it may not."""
  ways = (f"choose with --weights=single ({SINGLE}) or --weights=sharded ({INDEX}), of a run with "
          "PATH@single or PATH@sharded")
  if (folder / _ADAPTER).exists():
    raise UserError(f"{folder}: holds {_ADAPTER} beside {file}, and of_jax adds no adapters; merge "
                    "it into the weights, or read these without it: "
                    f"--weights={'single' if file == SINGLE else 'sharded'}")
  if len(there) > 1:
    other = _read(folder, INDEX)
    for name in sorted(entries.keys() ^ other.keys()):
      holds, lacks = (SINGLE, INDEX) if name in entries else (INDEX, SINGLE)
      raise UserError(f"{folder}: holds two sets of weights, {SINGLE} and {INDEX}, and {name} is "
                      f"in {holds} and not in {lacks}; {ways}")
    _require_same(folder, SINGLE, entries, INDEX, other, ways)
  passed = []
  listed = {entry.path.name for entry in other.values()} if len(there) > 1 else set()
  for name in strays:
    if name in listed:
      continue
    try:
      found = read_header(folder / name)
    except UserError:
      passed.append(name)
      continue
    _require_same(folder, file, entries, name, found,
                  f"take {name} away, or {ways}" if len(there) > 1 else f"take {name} away, or say "
                  f"--weights={'single' if file == SINGLE else 'sharded'} to read {file}")
    if not found.keys() <= entries.keys():
      passed.append(name)
  return passed


def _require_same(folder: Path, file: str, entries: Entries, other: str, found: Entries, way: str
                  ) -> None:
  """Raises UserError unless the tensors that both sets hold are the same, bit by bit."""
  for name in sorted(entries.keys() & found.keys()):
    a, b = entries[name], found[name]
    if a.path == b.path:
      continue
    if (a.dtype, a.shape) != (b.dtype, b.shape) or a.content(name) != b.content(name):
      raise UserError(f"{folder}: holds two sets of weights, {file} and {other}, and {name} is not "
                      f"the same in both; {way}")


def _some(names: list[str]) -> str:
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return ", ".join(names[:3]) + more


def _nothing(folder: Path) -> str:
  """Says what a folder without safetensors has in their place."""
  pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
                   for path in folder.glob(pattern))
  if pickles:
    return (f"{folder}: holds {pickles[0]}, a pickle, which could run code and is not opened; save "
            f"the model as {SINGLE}")
  return f"{folder}: holds neither {SINGLE} nor {INDEX}"


def _read(folder: Path, file: str) -> Entries:
  return _sharded(folder) if file == INDEX else read_header(folder / file)


def _sharded(folder: Path) -> Entries:
  index = folder / INDEX
  places = read_object(index).get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
    raise UserError(f"{index}: lacks weight_map, from names of tensors to names of files")
  way = ((f"say --weights=single to read {SINGLE} alone, or " if (folder / SINGLE).exists() else "")
         + f"write {INDEX} anew with the files that it names")
  entries: Entries = {}
  for file in sorted(set(places.values())):
    # A name and nothing else: no other folder, whatever the separator.
    if not file.endswith(".safetensors") or set(file) & set("/\\\0") or file.startswith("."):
      raise UserError(f"{index}: names the file {file[:60]!r}; it must be the plain name of a "
                      ".safetensors file of its own folder")
    found = read_header(folder / file)
    listed = {name for name, place in places.items() if place == file}
    for name in sorted(found.keys() ^ listed):
      verbs = ("holds", "does not list") if name in found else ("lacks", "lists")
      raise UserError(f"{folder / file}: {verbs[0]} the tensor {name}, which {INDEX} {verbs[1]} "
                      f"there; {way}")
    entries |= found
  return entries
