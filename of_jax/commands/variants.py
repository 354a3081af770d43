"""python -m experiments.variants [--write]

Prints the tables of variants of docs/variants.md, made from the classes and the first lines of
their docstrings; --write puts them there. A test says when that page is not up to date.
"""

import inspect
import pathlib
import re
from collections.abc import Iterator

from absl import flags

from of_jax import variants
from of_jax.commands import cli
from of_jax.config import ModelConfig, fields, traits
from of_jax.errors import UserError

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "variants.md"
BEGIN, END = "<!-- begin: python -m experiments.variants -->", "<!-- end -->"
# A source has a year or an arXiv number in it, or is somebody's code, or this project.
_SOURCE = re.compile(r"\b(19|20)\d\d\b|\b\d{4}\.\d{5}\b|\bcode\b|\bthis project\b")


def summary(cls: type) -> tuple[str, str]:
  """(what a class computes, paper), from its docstring's first paragraph.

  The paragraph is one line of mathematics with the source in brackets behind it.

  One that is written otherwise, as a class of one's own may be, comes back whole, without a source.
  """
  # A class without one would have that of its base.
  paragraph = " ".join(((cls.__doc__ and inspect.getdoc(cls)) or "").split("\n\n")[0].split())
  for start, end in reversed(list(_brackets(paragraph))):
    if _SOURCE.search(paragraph[start:end]) and start:
      return paragraph[:start].rstrip(" ,"), paragraph[start + 1:end - 1]
  return paragraph, ""


def _brackets(text: str) -> Iterator[tuple[int, int]]:
  """(start, end) of every bracket that is not inside another."""
  depth = start = 0
  for i, character in enumerate(text):
    if character == "(":
      start, depth = (start if depth else i), depth + 1
    elif character == ")" and depth:
      depth -= 1
      if not depth:
        yield start, i + 1


def tables() -> str:
  """One Markdown table a field of the config whose value names a file, then one of options."""
  # Here, because they import jax: a mistake on the command line is reported before that.
  from of_jax.models.attention import KeyValueSink
  from of_jax.models.blocks import Block, Gain
  from of_jax.models.embedding_projection import EmbeddingProjection
  from of_jax.models.gates import Gate
  from of_jax.models.linear_attention import LinearAttention
  from of_jax.models.mlps import MLP
  from of_jax.models.norms import Norm
  from of_jax.models.sigma_reparam import SigmaReparamLinear
  from of_jax.models.softmaxes import Softmax

  bases: dict[str, type] = dict(zip(variants.FOLDERS, (Block, Norm, MLP, Softmax, Gate)))
  parts, listed = [], set()
  for path, field in fields().items():
    folder = field.metadata["folder"]
    # A second field that chooses from a folder, as model.final_norm_kind, has the first's table.
    if folder not in bases or folder in listed:
      continue
    listed.add(folder)
    classes: dict[str, type] = {name: variants.load_class(folder, name, bases[folder])
               for name in variants.names(folder)}
    rows = [_row(f"`{name}`", cls) for name, cls in classes.items()]
    head = [f"`{path}=`", "computes", "class", "source"]
    if folder == "models/norms":
      head.append("causal in training")
      rows = [[*row, "yes" if getattr(cls, "causal_in_training", True) else
               "no, in evaluation only"] for row, cls in zip(rows, classes.values())]
    if folder == traits.MLPS:
      head.append("causal")
      rows = [[*row, "yes" if traits.mlp(name).causal else "no, nor in evaluation"]
              for row, name in zip(rows, classes)]
    parts.append(_markdown(head, rows))
  options = (("model.attention=linear", LinearAttention), ("model.beta_trainable=true", Gain),
             ("model.attention_sink=key_value", KeyValueSink),
             ("model.sigma_reparam=block", SigmaReparamLinear),
             ("model.embedding_projection=true", EmbeddingProjection))
  for text, _ in options:
    assert hasattr(ModelConfig, text.partition("=")[0].removeprefix("model.")), text
  parts.append(_markdown(["with any of these", "computes", "class", "source"],
                         [_row(f"`{text}`", cls) for text, cls in options]))
  return "\n".join(parts)


def _row(name: str, cls: type) -> list[str]:
  mathematics, source = summary(cls)
  return [name, f"`{mathematics}`" if source else mathematics, f"`{cls.__name__}`", source]


def _markdown(head: list[str], rows: list[list[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n"
                 for line in lines)


def in_page() -> str:
  """Reads the tables that stand between the markers of docs/variants.md."""
  text = PAGE.read_text()
  if BEGIN not in text or END not in text:
    raise UserError(f"docs/variants.md: lacks the lines {BEGIN} and {END}")
  return text.partition(BEGIN + "\n")[2].partition(END)[0]


def main() -> None:
  if not flags.FLAGS.write:
    print(tables())
    return
  old, new = in_page(), tables()
  PAGE.write_text(PAGE.read_text().replace(BEGIN + "\n" + old + END, BEGIN + "\n" + new + END))


if __name__ == "__main__":
  flags.DEFINE_bool("write", False, "put the tables into docs/variants.md instead of printing them")
  cli.run(main)
