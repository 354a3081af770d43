"""The page: what it says, that it stands alone, that it trusts no text."""

import base64
import gzip
import json
import re
import sys

import pytest
from rich.console import Console

from experiments import report
from of_jax.errors import UserError
from of_jax.report import plots
from tests.analysis.synthetic import config, write_run

OP = [("model.block", "op"), ("model.beta", "0.3")]


def write(root):
  with open(root.parent / "printed.txt", "w", encoding="utf-8") as out:
    page = report.write(root, Console(file=out, width=110))
  return page.read_text(encoding="utf-8"), (root.parent / "printed.txt").read_text("utf-8")


@pytest.fixture(autouse=True)
def no_figure(monkeypatch, request):
  """Drawing takes half a second a page; the tests of the figure ask for it."""
  if "with_figure" not in request.fixturenames:
    monkeypatch.setattr(plots, "save", lambda runs, folder: None)
    monkeypatch.setattr(plots, "svg", lambda runs: [])


@pytest.fixture
def with_figure():
  """Asks for the real figure."""


@pytest.fixture
def folder(tmp_path):
  """Two finished runs, no study."""
  root = tmp_path / "runs"
  write_run(root / "pre_a", config(), kurtosis=20.4, loss=4.469, mmr=44.1)
  write_run(root / "op_a", config(OP), kurtosis=1.13, loss=4.331, mmr=6.2)
  return root


def data_of(page):
  return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))


def without_scripts(page):
  return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_page_and_terminal_hold_the_numbers(folder):
  page, printed = write(folder)
  text = without_scripts(page)
  for number in ("20.4", "4.469", "44.1", "1.13", "4.331", "c0ffee" * 10, "beef" * 16, "0.10.2",
                 "0123456789abcdef with uncommitted changes", "2,245,120"):
    assert number in text
  assert "Two decoder-only transformers of depth 6 and width 128" in text
  assert "Kurtosis peaks at 20.4 in pre_a, the highest, and at 1.13 in op_a" in text
  for number in ("20.4", "4.469", "44.1", "1.13", "60.0"):
    assert number in printed


def test_only_fields_that_differ_are_listed(folder):
  text = without_scripts(write(folder)[0]).replace("<wbr>", "")
  table = text[text.index("What differs between the runs"):text.index("Provenance")]
  assert "model.block" in table and "model.beta<" in table
  assert "train.steps" not in table and "model.width" not in table
  assert "model.beta_mlp" not in table


def test_the_page_loads_nothing(folder, with_figure):
  page, _ = write(folder)
  assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", without_scripts(page))
  assert not re.search(r"@import|url\((?!#)", without_scripts(page))
  assert 'name="viewport"' in page
  packed = re.search(r'id="library">(.*?)</script>', page, re.S).group(1)
  assert b"Plotly" in gzip.decompress(base64.b64decode(packed))
  assert len(page) < 4_000_000


def test_the_figures_draw_what_was_measured(folder):
  runs = {run["name"]: run for run in data_of(write(folder)[0])["runs"]}
  kurtosis = runs["pre_a"]["metrics"]["kurtosis"]
  assert len(kurtosis["layers"]) == 6 and max(kurtosis["line"]) == 20.4
  assert max(kurtosis["layers"][1]) == 20.4 and max(kurtosis["layers"][0]) < 10
  assert runs["op_a"]["eval"]["loss"][-1] == 4.331
  assert runs["op_a"]["colour"] != runs["pre_a"]["colour"]


def test_names_and_texts_are_escaped(tmp_path):
  evil = "<img src=x onerror=alert(1)>&"
  root = tmp_path / "runs"
  write_run(root / evil, config([("data.corpus", "text:</script><b>")]))
  page, printed = write(root)
  assert "<img" not in page and "</script><b>" not in page
  assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in page
  assert data_of(page)["runs"][0]["name"] == evil
  assert evil in printed


def test_one_run_that_goes_on(tmp_path, with_figure):
  write_run(tmp_path / "r" / "only", config(), steps=40, finished=False)
  page, printed = write(tmp_path / "r" / "only")
  assert "step 40 of 150" in page and "step 40 of 150" in printed
  assert (tmp_path / "r" / "only" / "figure.svg").is_file()


def test_a_diverged_run_is_shown_as_one(tmp_path, with_figure):
  write_run(tmp_path / "r" / "a", config(), nan_from=60)
  page, printed = write(tmp_path / "r")
  assert "diverged" in without_scripts(page) and "diverged" in printed
  assert None in data_of(page)["runs"][0]["metrics"]["kurtosis"]["line"]
  assert "NaN" not in json.dumps(data_of(page))


def test_a_run_that_has_logged_nothing(tmp_path, with_figure):
  write_run(tmp_path / "r" / "a", config(), steps=0, finished=False)
  assert "No kurtosis was measured" in write(tmp_path / "r")[0]


def test_claims_are_judged_again(folder):
  claim = {"id": "op_kurtosis", "statement": "S", "paper": "P", "rule": "R",
           "verdict": "reproduced", "evidence": {"ratio": 17.1, "peaks": {"a1": [1.0, 2.0]}}}
  record = {"study": "op_block", "scale": "smoke", "claims": [claim],
            "runs": [{"name": n, "workdir": n, "config_diff": {}, "final_loss": 1.0,
                      "peak_kurtosis": 99.0} for n in ("pre_a", "op_a")]}
  path = folder / "study.json"
  path.write_text(json.dumps(record))
  page, printed = write(folder)
  saved = json.loads(path.read_text())
  # These runs are none of the study's: what was reproduced no longer is.
  assert {c["verdict"] for c in saved["claims"]} == {"inconclusive"}
  assert saved["claims"][0]["rule_at_start"] == "R"
  assert saved["runs"][0]["peak_kurtosis"] == pytest.approx(20.4)
  assert "INCONCLUSIVE" in printed and "and 6 more: missing" in without_scripts(page)


def test_a_study_that_is_not_declared_here_keeps_its_verdicts(folder):
  claim = {"id": "x", "statement": "Statement X", "paper": "P", "rule": "Rule X",
           "verdict": "not reproduced", "evidence": {"ratio": 17.123456}}
  (folder / "study.json").write_text(json.dumps(
      {"study": "elsewhere", "scale": "smoke", "claims": [claim],
       "runs": [{"name": "pre_a"}, {"name": "op_a"}]}))
  text = without_scripts(write(folder)[0])
  assert "Statement X" in text and "not reproduced" in text and "17.12" in text


@pytest.mark.parametrize("prepare, message", [
    (lambda root: None, "no such folder"),
    (lambda root: root.mkdir(), "holds no run directory"),
    (lambda root: (root.mkdir(), (root / "study.json").write_text("{")),
     "study.json: not readable as JSON"),
])
def test_a_folder_without_runs_gets_no_page(tmp_path, prepare, message):
  root = tmp_path / "r"
  prepare(root)
  with pytest.raises(UserError, match=message):
    write(root)
  assert not (root / "report.html").exists()


def test_analysis_needs_neither_jax_nor_the_trainer(folder):
  import subprocess
  code = ("import sys; from of_jax.claims import study_record; "
          "from of_jax.report import page, plots, terminal; "
          "assert not {'jax', 'of_jax.train', 'flax'} & set(sys.modules)")
  subprocess.run([sys.executable, "-c", code], check=True)
