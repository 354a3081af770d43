"""Claims, figures and timelines of what was found in checkpoints, on made-up analyses."""

import io
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from of_jax.analysis import identity, runs
from of_jax.commands import report, studies
from of_jax.report import page_data, panel_plots, panels
from tests.analysis.synthetic import config, leaning, write_run


def summary(surprisal: float, distinct: int = 100, share: float = 0.01) -> dict[str, Any]:
  return {"surprisal": surprisal, "entropy": 3.0, "kl_divergence": 0.1, "top20_overlap": 0.9,
          "accuracy": 0.4, "distinct_predictions": distinct, "frequency_slope": 1.0,
          "frequency_spearman": 0.5, "mean_corpus_share_of_predicted": share}


def outliers(step: int, dimensions: list[int], rise: float = 0.5, by_chance: float = 0.01,
             alone: int = 5, gain: float = 2.0) -> dict[str, Any]:
  none = not dimensions
  return {
      "step": step, "outlier_dimensions": dimensions, "unembedding_outlier_dimensions": [],
      "full": summary(4.0), "without_outlier_dimensions": None if none else summary(4 + rise),
      "only_outlier_dimensions": None if none else summary(7, alone, 0.05),
      "without_random": None if none else summary(4 + by_chance),
      "only_random": None if none else summary(8), "only_unembedding_outlier_dimensions": None,
      "without_unembedding_outlier_dimensions": None,
      "boost": {"down_projection": {"ratios": [1.5] * len(dimensions), "ranks": []},
                "final_norm_gain": {"ratios": [gain] * len(dimensions), "ranks": []}}}


def layer(batch: float, token: float, dead: float, revived: float = 0.0) -> dict[str, Any]:
  return {"active_fraction_token": token, "active_fraction_sequence": (batch + token) / 2,
          "active_fraction_batch": batch, "dead_fraction": dead, "revived": revived}


def sparsity(**changes: Any) -> dict[str, Any]:
  return {"analysis": "sparsity", "tokens": 16384, "batch_tokens": 8192, "definition": "active",
          "steps": [{"step": 0, "layers": [layer(0.9, 0.5, 0.0), layer(0.9, 0.5, 0.0)]},
                    {"step": 9, "layers": [layer(0.3, 0.1, 0.4, 0.02), layer(0.9, 0.2, 0.0)]}],
          "pruning": {"share": 0.5, "loss_change": 0.001, "threshold": 0.01, **changes}}


def study(tmp_path: Any, name: str, analysis: dict[str, Any]) -> dict[str, str]:
  """Verdicts of a smoke study all of whose runs have this analysis, up to their last step."""
  declared = studies.load(name, "smoke")
  loaded = {}
  for run in declared.runs:
    write_run(tmp_path / run, config([("train.steps", str(analysis["steps"][-1]["step"]))]))
    (tmp_path / run / f"{declared.analyses[0]}.json").write_text(json.dumps(analysis))
    loaded[run] = runs.load_run(tmp_path / run)
  verdicts = {claim.id: claim.judge(loaded) for claim in declared.claims}
  assert all(math.isfinite(len(v.summary)) and v.summary for v in verdicts.values())
  return {id_: leaning(v.evidence, v.verdict) for id_, v in verdicts.items()}


def dimensions_of(*entries: dict[str, Any]) -> dict[str, Any]:
  return {"analysis": "outlier_dimensions", "contexts": 512, "definition": "large", "steps": [
      *entries]}


@pytest.mark.parametrize("last, expected", (
    (outliers(64, [3, 5]), {}),
    (outliers(64, []), {"appear": "not reproduced", "ablation": "inconclusive",
                        "frequent": "inconclusive", "boost": "inconclusive"}),
    (outliers(64, [3], rise=0.04), {"ablation": "not reproduced"}),
    (outliers(64, [3], by_chance=0.11), {"ablation": "not reproduced"}),
    (outliers(64, [3], alone=21), {"frequent": "not reproduced"}),
    (outliers(64, [3], gain=0.9), {"boost": "not reproduced"})))
def test_rules_on_outlier_dimensions(tmp_path, last, expected) -> None:
  found = study(tmp_path, "outlier_dimensions", dimensions_of(outliers(0, []), last))
  assert found == {**dict.fromkeys(found, "reproduced"), **expected}


def test_dimensions_from_the_start_did_not_form(tmp_path) -> None:
  found = study(tmp_path, "outlier_dimensions",
                dimensions_of(outliers(0, [1]), outliers(64, [1])))
  assert found["appear"] == "not reproduced"


def test_rules_on_sparsity(tmp_path) -> None:
  assert set(study(tmp_path / "a", "relu_sparsity", sparsity()).values()) == {"reproduced"}
  changed = sparsity(loss_change=0.02)
  changed["steps"][1]["layers"] = [layer(0.5, 0.6, 0.009), layer(0.9, 0.5, 0.0)]
  assert set(study(tmp_path / "b", "relu_sparsity", changed).values()) == {"not reproduced"}


def test_a_run_without_its_analysis_is_not_judged(tmp_path) -> None:
  declared = studies.load("relu_sparsity", "smoke")
  loaded = {}
  for run in declared.runs:
    write_run(tmp_path / run, config())
    loaded[run] = runs.load_run(tmp_path / run)
  verdict = declared.claims[0].judge(loaded)
  assert verdict.verdict == "inconclusive" and "has no sparsity.json" in verdict.summary


def with_top_neurons(path: Any) -> runs.Run:
  """Neuron 4 comes at step 2 and stays in layer 0; 9 is there at steps 1 and 3 only."""
  write_run(path, config([("train.steps", "3")]), steps=3)
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  tops = {1: [[9, 2], [7, 1]], 2: [[4, 2], [7, 4]], 3: [[4, 9], [4, 7]]}
  for line in lines:
    if line["split"] == "train":
      line["telemetry"]["resid_pre"].update(
          top_neurons=tops[line["step"]], top_neuron_share=[[0.5, 0.1], [0.2, None]],
          top_neuron_mean=[[-1.0, 0.1], [0.2, 0.3]])
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return runs.load_run(path)


def test_identity_of_the_largest_neurons(tmp_path) -> None:
  found = identity.read(with_top_neurons(tmp_path / "run"))
  assert found.births() == [{4: 2, 9: 3}, {7: 1, 4: 2}]
  assert found.persistence() == [0.5]
  first = found.layers[0][0]
  assert (first.step, first.neuron, first.share, first.mean) == (1, 9, 0.5, -1.0)
  assert math.isnan(found.layers[1][1].share)
  write_run(tmp_path / "without", config())
  assert identity.read(runs.load_run(tmp_path / "without")) is None
  assert panels.timeline(runs.load_run(tmp_path / "without")) == []


def test_panels_hold_the_numbers_and_say_what_they_are(tmp_path) -> None:
  run = with_top_neurons(tmp_path / "run")
  analyses = {"sparsity": sparsity(), "outlier_dimensions": dimensions_of(
      outliers(0, []), outliers(64, [3, 5])),
      "spectra": {"analysis": "spectra", "steps": [{"step": 4, "matrices": {
          "stacks/0/mlp/up/kernel": [{"top_singular_value": 2.0, "stable_rank": 3.0},
                                     {"top_singular_value": 4.0, "stable_rank": None}]}}]}}
  for name, value in analyses.items():
    (run.path / f"{name}.json").write_text(json.dumps(value))
  shown = panels.of_run(run)
  assert len(shown) == 4
  for panel in [panel for of_one in shown.values() for panel in of_one]:
    assert panel.x and panel.y and panel.definition and panel.lines
    for line in panel.lines:
      assert len(line.x) == len(line.y)
  counts, *_ = shown["Outlier dimensions"]
  assert list(counts.lines[0].x) == [0, 64] and list(counts.lines[0].y) == [0, 2]
  assert shown["Spectra"][0].lines[0].y == [3.0] and shown["Spectra"][1].lines[0].y == [3.0]
  timeline = shown["The largest neurons over training, stream entering each block"]
  dots = {line.name: line for line in timeline[0].lines}
  assert set(dots) == {"neuron 2 (+)", "neuron 4 (-), since step 2", "neuron 9 (+), since step 3"}
  stays = dots["neuron 4 (-), since step 2"]
  assert stays.x == [2, 3] and stays.y == [4, 4] and stays.sizes == [0.5, 0.5]
  assert "50% of the last" in timeline[1].title

  drawn = page_data.page_data({"run": run})["analyses"]
  assert [item["title"] for item in drawn] == list(shown)
  assert drawn[0]["panels"][0]["lines"][0]["sizes"] is not None
  report.write(tmp_path / "run", Console(file=io.StringIO()))
  text = (tmp_path / "run" / "report.html").read_text()
  assert 'id="analyses"' in text and "Inside the runs" in text
  assert "index of the neuron" in (tmp_path / "run" / "timeline.svg").read_text()
  assert (tmp_path / "run" / "timeline.png").stat().st_size > 10_000


def test_figures(tmp_path) -> None:
  entries = [{"step": step, "loss": 4.0, "telemetry": {"resid_pre": {
      "kurtosis": np.array([1.5, 20.0 + step])}}} for step in (0, 5)]
  entries[0]["telemetry"]["resid_pre"] |= {"mine": np.array([0.1, 0.2])}
  *_, mine = panels.of_measurements(entries[:1])
  assert mine.y == "mine" and list(mine.lines[0].y) == [0.1, 0.2]
  # A metric that another step has not is left out, and a site of which there is more is the first.
  few = [{"step": 1, "loss": 4.0, "telemetry": {"mlp_out": {"rms": [1.0], "dead_fraction": [0.5]}}}]
  assert [panel.y for panel in panels.of_measurements(few)] == [
      "root mean square", "dead_fraction (share)"]
  one, _ = panels.of_measurements(entries[:1])
  assert one.x.startswith("layer") and list(one.lines[0].y) == [1.5, 20.0]
  several, = panels.of_measurements(entries)
  assert several.x == "step" and list(several.lines[1].y) == [20.0, 25.0]
  paths = panel_plots.save([one, several, *panels.of_analysis(sparsity())], tmp_path, "x")
  assert paths[0].stat().st_size > 10_000
  drawn = paths[1].read_text()
  assert "kurtosis (1 to width)" in drawn and "share of hidden units" in drawn
  element = panel_plots.svg([one], "x")
  assert element.startswith("<svg") and not re.search(r'id="(?!x-)', element)
