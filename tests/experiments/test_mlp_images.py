"""The study of the residual MLP: its declaration, its verdicts, and what its page says."""

import io
import json
import math
import shutil

import pytest
from rich.console import Console

from of_jax.analysis.runs import load_run
from of_jax.claims import growth, rules
from of_jax.commands import studies, study
from of_jax.report import plots
from tests.analysis import synthetic

# Run's kind -> (peak kurtosis, final loss), near the paper's peak of 40.
NUMBERS = {"sgd": (1.5, 0.0118), "adam": (40.0, 0.0040), "adam_unwhitened": (1.6, 0.0052)}


@pytest.fixture(autouse=True)
def no_figure(monkeypatch):
  """Drawing takes half a second a page, and test_report.py looks at it."""
  monkeypatch.setattr(plots, "save", lambda runs, folder: None)
  monkeypatch.setattr(plots, "svg", lambda runs: [])


def train(config, path):
  peak, loss = NUMBERS[path.name.rpartition("_seed")[0]]
  synthetic.write_run(path, config, kurtosis=peak, loss=loss, accuracy=0.98)


def execute(root, **options):
  out = io.StringIO()
  study.execute("mlp_images", "smoke", root, train=train, console=Console(file=out, width=110),
                **options)
  return out.getvalue()


@pytest.mark.parametrize("scale", ("smoke", "small", "paper"))
def test_every_declared_run_and_rule_stands(scale):
  declared = studies.load("mlp_images", scale)
  planned = study.plan(declared)
  assert len({str(c) for c in planned.values()}) == len(declared.runs) == 6
  for claim in declared.claims:
    verdict = claim.judge({})
    assert verdict.verdict == "inconclusive" and set(verdict.evidence["runs"]) <= set(planned)
  sgd, adam, unwhitened = (planned[f"{name}_seed1"] for name in NUMBERS)
  assert (sgd.optim.name, sgd.optim.learning_rate, sgd.optim.momentum) == ("sgd", 3.0, 0.0)
  assert (adam.optim.name, adam.optim.learning_rate) == ("adamw", 3e-3)
  assert sgd.model == adam.model == unwhitened.model and sgd.data == adam.data
  assert (adam.data.whitening, unwhitened.data.whitening) == ("pca", "none")


def test_page_and_table_speak_of_images(tmp_path):
  printed = execute(tmp_path)
  assert "98.00%" in printed and "squared error, mean over classes" in printed
  assert "0.0118" in printed and "nats" not in printed
  page = (tmp_path / "report.html").read_text("utf-8")
  text = page[:page.index('id="data"')]
  assert "Six residual MLPs of depth 6 and width 128" in text and "600 steps of 256 images" in text
  assert "They differ in optimiser, learning rate, seed and whitening" in text
  assert "98.00%" in text and "tokens each" not in text
  data = json.loads(page.split('id="data">')[1].split("</script>")[0])
  assert data["loss_unit"] == "squared error, mean over classes"
  assert {r["group"] for r in data["runs"]} == {"sgd", "adamw"}
  assert {r["condition"] for r in data["runs"]} == {"whitening pca", "whitening none"}
  assert data["runs"][0]["untrained_loss"] == 0.1
  headline, _ = plots.headline({n: load_run(tmp_path / n) for n in ("sgd_seed0", "adam_seed0")})
  assert [item.group for item in headline] == ["sgd", "adamw"]
  saved = json.loads((tmp_path / "study.json").read_text())
  # Two seeds, made with the same numbers, tell no spread.
  assert all(c["verdict"] == "inconclusive" for c in saved["claims"])
  verdicts = {c["id"]: synthetic.leaning(c["evidence"], c["verdict"]) for c in saved["claims"]}
  assert verdicts == {"adam_outliers": "reproduced", "whitening": "reproduced",
                      "sgd_falls": "not reproduced"}


def test_verdicts_turn_on_the_deciding_number(tmp_path):
  for name, peak in (("a0", 10.1), ("a1", 9.9), ("b0", 2.0), ("b1", 2.0)):
    synthetic.write_run(tmp_path / name, synthetic.config([("train.steps", "20")]), kurtosis=peak)
  runs = {name: load_run(tmp_path / name) for name in ("a0", "a1", "b0", "b1")}
  both = rules.larger_peaks([("a0", "b0"), ("a1", "b1")], 5, "A", "B")(runs)
  one = rules.larger_peaks([("a0", "b0")], 5, "A", "B")(runs)
  assert (both.verdict, one.verdict) == ("inconclusive", "inconclusive")
  assert both.evidence["parts"][0]["estimate"] == pytest.approx(math.log(5.05 * 4.95) / 2)
  assert both.evidence["ratios"] == pytest.approx([5.05, 4.95])
  assert "10.1 and B's at 2, a factor of 5.05" in one.summary

  def leans(*names):
    verdict = growth.falls(names, "A")(runs)
    return synthetic.leaning(verdict.evidence, verdict.verdict)

  assert leans("a0") == "not reproduced"
  path = tmp_path / "a0" / "metrics.jsonl"
  lines = path.read_text().splitlines()
  first = json.loads(lines[0])
  first["telemetry"]["resid_pre"]["kurtosis"][3] = 99.0
  shutil.copytree(tmp_path / "a0", tmp_path / "c")
  (tmp_path / "c" / "metrics.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
  runs["c"] = load_run(tmp_path / "c")
  verdict = growth.falls(["c"], "A")(runs)
  assert leans("c") == "reproduced"
  assert verdict.evidence["first_and_last_kurtosis"]["c"][0] == 99
  assert growth.falls(["c", "a0"], "A")(runs).verdict == "inconclusive"
  assert growth.falls(["c", "gone"], "A")(runs).verdict == "inconclusive"


def test_dry_run_says_images():
  out = io.StringIO()
  study.list_runs("mlp_images", "smoke", None, console=Console(file=out, width=110))
  assert "6 runs of 600 steps of 256 images on digits" in out.getvalue()
