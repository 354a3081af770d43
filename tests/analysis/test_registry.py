"""The tables of analyses and of shown metrics agree with what they speak of."""

import subprocess
import sys

import pytest

import of_jax
from of_jax.analysis import registry
from of_jax.config import declared_metrics
from of_jax.report import analysis_panels, metrics, panels


def test_the_room_resolves_on_first_use_and_reads_numbers_without_jax() -> None:
  code = ("import sys, of_jax; of_jax.analysis.load_run, of_jax.analysis.runs.find_runs; "
          "assert 'restore' in dir(of_jax.analysis); sys.exit('jax' in sys.modules)")
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
  with pytest.raises(AttributeError, match="has no attribute 'none'"):
    of_jax.analysis.none


@pytest.mark.parametrize("name", registry.ANALYSES)
def test_every_analysis_is_made_and_drawn(name: str) -> None:
  module = f"of_jax/analysis/{registry.ANALYSES[name].module}.py"
  assert callable(registry.load(name)), f"{module} has no function {name}"
  assert callable(getattr(analysis_panels, name, None)), (
      f"of_jax/report/analysis_panels.py has no function {name}")


def test_what_is_no_analysis_names_the_file_to_add_it_to() -> None:
  with pytest.raises(LookupError, match="analysis_panels.py has no function mine"):
    panels.of_analysis({"analysis": "mine", "steps": []})


def test_every_shown_metric_is_declared_and_its_formula_is_the_family_s() -> None:
  for name in metrics.STREAM:
    declared = declared_metrics.metrics()[metrics.base(name)]
    assert metrics.formula(name).startswith(declared.formula)
  assert metrics.formula("mmr_no_first").endswith("the first token of every window")
  assert metrics.formula("of_nobody") == ""


def test_formulas_in_html() -> None:
  assert metrics.as_html("mean_j(s2_j^2) < 1") == (
      "mean<sub>j</sub>(s2<sub>j</sub><sup>2</sup>) &lt; 1")
  assert metrics.as_html("1 - active_fraction_batch; top_neurons") == (
      "1 - active_fraction_batch; top_neurons")
