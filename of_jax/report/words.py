"""Words that a page uses, explained. Enters: the page's runs. Leaves: terms with a sentence each.

A block's words are those of its own file, so that a new one explains itself.
"""

import ast
from collections.abc import Mapping

from of_jax import variants
from of_jax.analysis.runs import SITE, Run, read_measurements
from of_jax.report import metrics

_BLOCKS = "models/blocks"


def terms(runs: Mapping[str, Run]) -> list[tuple[str, str]]:
  """Lists (term, what it means as HTML): the blocks of the runs, then what is measured of them."""
  blocks = dict.fromkeys(run.config.model.block for run in runs.values() if not run.reads_images)
  found = [(block, metrics.as_html(words)) for block in blocks if (words := _block(block))]
  if _is_measured(runs, "kurtosis"):
    found.append(("kurtosis", "How unequal the neurons of the residual stream are: "
                  f"{metrics.as_html(metrics.formula('kurtosis'))}. 1 where all are alike, the "
                  "width where one neuron holds everything: an outlier feature."))
  if _is_measured(runs, "mmr"):
    found.append(("MMR", "Max-median ratio, another measure of outliers: "
                  f"{metrics.as_html(metrics.formula('mmr'))}."))
  return found


def _is_measured(runs: Mapping[str, Run], metric: str) -> bool:
  return any(run.measured(metric).steps.size or metric in one["telemetry"].get(SITE, {})
             for run in runs.values() for one in (*read_measurements(run), {"telemetry": {}}))


def _block(name: str) -> str:
  """The first lines of a block's file and of its class; nothing of a user's own or one gone."""
  if ".py:" in name:
    return ""
  try:
    tree = ast.parse(variants.file_of(_BLOCKS, name).read_text("utf-8"))
  except LookupError:
    return ""
  classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
  texts = [ast.get_docstring(tree) or "", *(ast.get_docstring(one) or "" for one in classes[:1])]
  return " ".join(" ".join(text.split("\n\n")[0].split()) for text in texts if text)
