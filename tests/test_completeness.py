"""Whatever can be added by name has its oracle, its row and its line, or one test says where to put
it.

A sort of thing (SORTS) knows the names that there are, and the places (Place) beside its own file
that each must stand in. Nothing is compiled here: tables are imported, files are read.
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax import variants
from of_jax.commands import studies
from of_jax.config import ModelConfig, declared_metrics, fields, kinds, values
from of_jax.config.fields import hints
from tests.golden import foreign
from tests.models import reference, test_conformance
from tests.optim import test_optimizer_conformance
from tests.planted import planted
from tests.telemetry import test_metrics

ROOT = Path(__file__).parents[1]
DOCS = "README.md or docs/*.md"


@dataclasses.dataclass(frozen=True)
class Place:
  """One place beside its own file that a thing must stand in.

  Attributes:
    lacks: says what a thing lacks that does not stand there, as in "has no oracle".
    advice: says what to do; {name} is the thing's.
    has: whether the thing of a name stands there.
  """

  lacks: str
  advice: str
  has: Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Sort:
  """One sort of thing that is added by name.

  Attributes:
    title: its name in messages.
    file: where a thing of it lives; {name} is the thing's.
    names: gives all that there are.
  """

  title: str
  file: str
  names: Callable[[], Iterable[str]]
  places: tuple[Place, ...]


def missing(sort: Sort) -> list[str]:
  """One line for every place that lacks one of the things of a sort."""
  return [f"{sort.title} `{name}` ({sort.file.format(name=name)}) {place.lacks}: "
          + place.advice.format(name=name)
          for name in sort.names() for place in sort.places if not place.has(name)]


def docs() -> str:
  """The text of README.md and docs/*.md."""
  return "\n".join(path.read_text() for path in (
      ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))


def table_cells(head: str = "") -> set[str]:
  """The words in code quotes in the first cells of the tables of `docs`.

  Args:
    head: the first cell of the one table to read; default all tables.
  """
  found, current = set(), ""
  for line in docs().splitlines():
    if not line.startswith("|"):
      current = ""
      continue
    cell = line.split("|")[1].strip()
    current = current or cell
    if not head or current == head:
      # `text:PATH` is the line of `text`.
      found |= {word.partition(":")[0] for word in re.findall(r"`([^`]+)`", cell)}
  return found


def mentioned(name: str, *patterns: str) -> bool:
  """Whether a word stands in a file that matches one of the patterns, from the root."""
  word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
  return any(word.search(path.read_text())
             for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def documented(what: str, head: str = "") -> Place:
  where = f"of the table {head}" if head else "of a table"
  return Place(f"has no line {where} in {DOCS}", what, lambda name: name in table_cells(head))


def row_of(field: str) -> Place:
  """A row of the table of models in which a field has the name, if it may have it."""
  def has(name: str) -> bool:
    path, default = f"model.{field}", getattr(ModelConfig, field)
    return (name not in values.choices(fields()[path], hints(path)[field])
            or name in {"none", *(row.get(f"model__{field}", default)
                                  for row in test_conformance.TABLE.values())})

  return Place(f"has no row of model.{field}", f'add one with "model__{field}": "{{name}}" to '
               "TABLE of tests/models/test_conformance.py", has)


def variant(title: str, folder: str, table: str, *its_fields: str) -> Sort:
  """A sort of part of a model: an oracle, a row for each field that may name it, and a line of
  the generated tables."""
  return Sort(title, f"of_jax/{folder}/{{name}}.py", lambda: variants.names(folder), (
      Place("has no oracle", f"add one named {{name}} to {table} of tests/models/reference.py",
            lambda name: name in getattr(reference, table)),
      *map(row_of, its_fields),
      documented("run python -m experiments.variants --write", f"`model.{its_fields[0]}=`")))


# Kind of a family of metrics, that of activations apart -> the tests that hold the definitions.
DEFINITIONS = {"attention": "tests/telemetry/*.py", "gradients": "tests/telemetry/*.py",
               "change": "tests/telemetry/*.py", "parameters": "tests/optim/test_measure.py",
               "quantised": "tests/quantise/test_in_training.py"}


def metrics_of(kind: str) -> Sort:
  """The metrics of the families of one kind."""
  if kind == "activations":
    oracle = Place("has no oracle", "add one named {name} to ORACLES of "
                   "tests/telemetry/test_metrics.py", lambda name: name in test_metrics.ORACLES)
  else:
    oracle = Place("has no oracle", f"compare {{name}} with its definition in {DEFINITIONS[kind]}",
                   lambda name: mentioned(name, DEFINITIONS[kind]))
  families = declared_metrics.families
  return Sort(f"metric of {kind}", "of_jax/telemetry/families", lambda: [
      metric.id for family in families().values() if family.kind == kind
      for metric in family.metrics], (oracle, documented(
          "put the table that python -m experiments.measure --list_metrics prints there",
          "id")))


def corpora() -> list[str]:
  """The names that `data.corpus` may begin with: what the functions compare its kind with."""
  found = set()
  for file, function in (("corpora", "prepare"), ("corpora", "_source"),
                         ("image_sources", "source")):
    tree = ast.parse((ROOT / f"of_jax/data/{file}.py").read_text())
    body = next(node for node in tree.body
                if isinstance(node, ast.FunctionDef) and node.name == function)
    for node in ast.walk(body):
      if isinstance(node, ast.Compare) and ast.unparse(node.left) == "kind":
        found |= {part.value for other in node.comparators for part in ast.walk(other)
                  if isinstance(part, ast.Constant) and isinstance(part.value, str)}
  return sorted(found)


@functools.cache
def golden() -> frozenset[str]:
  with np.load(ROOT / "tests/golden/foreign.npz") as numbers:
    return frozenset(name.partition("/")[0] for name in numbers)


def has_golden(name: str) -> bool:
  """Whether a form of a family is among PyTorch's numbers."""
  return any(name in (form.get("model_type"), form.get("format")) and key in golden()
             for key, form in foreign.FORMS.items())


def in_words(name: str) -> bool:
  """Whether a family's name stands in the docs in some spelling: gpt_neox is GPT-NeoX there."""
  return re.sub(r"[\W_]", "", name) in re.sub(r"[^\w|]|_", "", docs()).lower()


SORTS = {
    "norm": variant("norm", "models/norms", "NORMS", "norm", "qk_norm", "mlp_norm"),
    "block": variant("block", "models/blocks", "BLOCKS", "block"),
    "mlp": variant("MLP", "models/mlps", "MLPS", "mlp"),
    "softmax": variant("softmax", "models/softmaxes", "SOFTMAXES", "attention_softmax"),
    "gate": variant("gate", "models/gates", "GATES", "attention_gate"),
    "optimizer": Sort(
        "optimizer", "of_jax/optim/optimizers/{name}.py",
        lambda: variants.names("optim/optimizers"), (
            Place("has no oracle", "compare it with its formula in a file of tests/optim, and name "
                  "{name} and that file in ORACLES of tests/optim/test_optimizer_conformance.py",
                  lambda name: mentioned(name, "tests/optim/" + (
                      test_optimizer_conformance.ORACLES.get(name) or "none"))),
            Place("has no row", "add one named {name} to TABLE of "
                  "tests/optim/test_optimizer_conformance.py", lambda name: name in {
                      row.split()[0] for row in test_optimizer_conformance.TABLE}),
            documented("add one for `{name}` to the table of optimizers", "name"))),
    **{f"metric of {kind}": metrics_of(kind) for kind in ("activations", *DEFINITIONS)},
    "study": Sort("study", "of_jax/commands/studies/{name}.py", studies.names, (
        Place("has no test", "say in tests/experiments or tests/claims what {name} trains and "
              "claims", lambda name: mentioned(name, "tests/experiments/*.py",
                                               "tests/claims/*.py")),
        documented("add one for `{name}` to the table of studies", "`--study=`"))),
    "corpus": Sort("corpus", "of_jax/data", corpora, (
        Place("has no test", "read a small one in tests/data", lambda name: mentioned(
            name, "tests/data/*.py")),
        documented("add one for `{name}` to the table of corpora", "corpus"))),
    "foreign": Sort(
        "family of foreign weights", "of_jax/interop/families/{name}.py",
        lambda: variants.names("interop/families"), (
            Place("has no oracle", "add a form of {name} to FORMS of tests/golden/foreign.py and "
                  "its numbers to tests/golden/foreign.npz, as that file says", has_golden),
            Place(f"is not named in {DOCS}", "add {name} to the table of models", in_words))),
    "kind": Sort(
        "kind of model", "of_jax/objectives/tasks/{name}.py",
        lambda: variants.names(kinds.FOLDER), (
            Place("has no network", "add of_jax/models/{name}.py", lambda name: (
                ROOT / f"of_jax/models/{name}.py").is_file()),
            Place("has no test", "train one in tests/train or tests/objectives",
                  lambda name: mentioned(name, "tests/train/*.py", "tests/objectives/*.py")),
            Place(f"is not named in {DOCS}", "say there what model.kind={name} is",
                  lambda name: mentioned(name, "README.md", "docs/*.md")))),
}


@pytest.mark.parametrize("sort", SORTS)
def test_everything_has_its_oracle_row_and_line(sort: str) -> None:
  assert list(SORTS[sort].names()), "nothing was found: this test would say nothing"
  lacking = missing(SORTS[sort])
  assert not lacking, "\n".join(lacking)


def newly_missing(sort: str, before: list[str]) -> list[str]:
  return [line for line in missing(SORTS[sort]) if line not in before]


def part_of_a_model(table: str, *its_fields: str) -> tuple[str, ...]:
  return (f"has no oracle: add one named planted to {table} of tests/models/reference.py",
          *(f'has no row of model.{field}: add one with "model__{field}": "planted" to TABLE of '
            "tests/models/test_conformance.py" for field in its_fields),
          f"has no line of the table `model.{its_fields[0]}=` in {DOCS}: run python -m "
          "experiments.variants --write")


# Sort, the folder that a file `planted.py` is put into, what it says, what it is said to lack.
PLANTED = (
    ("norm", "models/norms", "OVER_ANY_AXIS = False", part_of_a_model("NORMS", "norm")),
    ("norm", "models/norms", "OVER_ANY_AXIS = True",
     part_of_a_model("NORMS", "norm", "qk_norm", "mlp_norm")),
    ("block", "models/blocks", "", part_of_a_model("BLOCKS", "block")),
    ("mlp", "models/mlps", "", part_of_a_model("MLPS", "mlp")),
    ("softmax", "models/softmaxes", "", part_of_a_model("SOFTMAXES", "attention_softmax")),
    ("gate", "models/gates", "", part_of_a_model("GATES", "attention_gate")),
    ("optimizer", "optim/optimizers", "", (
        "has no oracle: compare it with its formula in a file of tests/optim, and name planted and "
        "that file in ORACLES of tests/optim/test_optimizer_conformance.py",
        "has no row: add one named planted to TABLE of tests/optim/test_optimizer_conformance.py",
        f"has no line of the table name in {DOCS}: add one for `planted` to the table of "
        "optimizers")),
    ("foreign", "interop/families", "", (
        "has no oracle: add a form of planted to FORMS of tests/golden/foreign.py and its numbers "
        "to tests/golden/foreign.npz, as that file says",
        f"is not named in {DOCS}: add planted to the table of models")),
)


@pytest.mark.parametrize("sort, folder, text, expected", PLANTED,
                         ids=[f"{case[0]} {case[2]}" for case in PLANTED])
def test_a_new_file_is_told_where_to_go(sort: str, folder: str, text: str,
                                        expected: tuple[str, ...], tmp_path: Path) -> None:
  before = missing(SORTS[sort])
  with planted(tmp_path, {f"{folder}/planted.py": text}):
    assert newly_missing(sort, before) == [
        f"{SORTS[sort].title} `planted` (of_jax/{folder}/planted.py) {line}" for line in expected]
  assert missing(SORTS[sort]) == before


METRICS = '''
KIND = "{kind}"
SITES = ()
EVERY = 100
METRICS = {{"of_planted": ("full", "0", "none", "0", "this test")}}
'''


@pytest.mark.parametrize("kind", [sort.removeprefix("metric of ") for sort in SORTS
                                  if sort.startswith("metric of ")])
def test_a_new_metric_is_told_where_to_go(kind: str, tmp_path: Path) -> None:
  """Only its own kind's test says so."""
  before = {sort: missing(SORTS[sort]) for sort in SORTS if sort.startswith("metric of ")}
  with planted(tmp_path, {"telemetry/families/planted.py": METRICS.format(kind=kind)}):
    lacking = {sort: newly_missing(sort, before[sort]) for sort in before}
  file = "test_metrics.py" if kind == "activations" else DEFINITIONS[kind]
  oracle, line = lacking.pop(f"metric of {kind}")
  assert oracle.startswith(f"metric of {kind} `of_planted` (of_jax/telemetry/families) has no "
                           "oracle: ") and file in oracle
  assert line.endswith(f"has no line of the table id in {DOCS}: put the table that python -m "
                       "experiments.measure --list_metrics prints there")
  assert not any(lacking.values())


@pytest.mark.parametrize("sort, advice", (
    ("study", "say in tests/experiments or tests/claims what planted trains and claims"),
    ("study", "add one for `planted` to the table of studies"),
    ("corpus", "read a small one in tests/data"),
    ("corpus", "add one for `planted` to the table of corpora"),
    ("kind", "add of_jax/models/planted.py"),
    ("kind", "say there what model.kind=planted is")))
def test_a_new_name_is_told_where_to_go(sort: str, advice: str) -> None:
  own = SORTS[sort]
  name = "planted" + "_thing"
  lacking = missing(dataclasses.replace(own, names=lambda: [*own.names(), name]))
  assert any(line.startswith(f"{own.title} `{name}`")
             and line.endswith(advice.replace("planted", name)) for line in lacking), lacking


@pytest.mark.parametrize("sort, table, key", (
    ("norm", reference.NORMS, "rms"), ("block", reference.BLOCKS, "op"),
    ("mlp", reference.MLPS, "swiglu"), ("softmax", reference.SOFTMAXES, "clipped"),
    ("gate", reference.GATES, "head"), ("norm", test_conformance.TABLE, "pre dyt everywhere"),
    ("block", test_conformance.TABLE, "nap silu"),
    ("norm", test_conformance.TABLE, "pre layer mlp-norm ss"),
    ("optimizer", test_optimizer_conformance.ORACLES, "muon"),
    ("optimizer", test_optimizer_conformance.TABLE, "soap"),
    ("metric of activations", test_metrics.ORACLES, "kurtosis"),
    ("foreign", foreign.FORMS, "gemma")), ids=lambda part: part if isinstance(part, str) else "")
def test_what_is_taken_out_of_a_table_is_missed(sort: str, table: MutableMapping[str, Any],
                                                key: str, monkeypatch: pytest.MonkeyPatch) -> None:
  before = missing(SORTS[sort])
  monkeypatch.delitem(table, key)
  lacking = newly_missing(sort, before)
  assert lacking and all(" has no " in line and "tests/" in line for line in lacking)


def test_a_line_taken_out_of_the_docs_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
  text = docs()
  for sort, name in (("norm", "crms"), ("optimizer", "sinkgd"), ("metric of change", "m4_u1"),
                     ("study", "relu_sparsity"), ("corpus", "cifar10")):
    kept = "\n".join(line for line in text.splitlines()
                     if not (line.startswith("|") and f"`{name}" in line.split("|")[1]))
    monkeypatch.setitem(globals(), "docs", lambda kept=kept: kept)
    assert [line for line in missing(SORTS[sort]) if f"`{name}`" in line and DOCS in line], name
