"""The page: what it says, that it stands alone, that it trusts no text."""

import importlib
import json
import math
import re
import sys

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from of_jax.analysis.runs import load_run
from of_jax.commands import report, studies
from of_jax.config import to_dict
from of_jax.errors import UserError
from of_jax.report import plots, series
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
  scripts = "".join(re.findall(r"<script>(.*?)</script>", page, re.S))
  assert not re.search(r"fetch\(|import\(|XMLHttpRequest|https?://(?!www\.w3\.org/)", scripts)


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


def loaded_model(path, env=None):
  """Writes what experiments.load --out leaves, less its checkpoint."""
  path.mkdir(parents=True)
  values = to_dict(config([("data.corpus", "tokens:none.npy"), ("train.steps", "1000")]))
  (path / "config.json").write_text(json.dumps(values))
  if env is not None:
    (path / "env.json").write_text(json.dumps({"loaded_from": env}))


def test_a_loaded_model_was_not_trained_here(tmp_path, with_figure):
  where = {"path": "models/smol", "kind": "Hugging Face llama", "parameters": 134_515_008}
  loaded_model(tmp_path / "smol", where)
  page, printed = write(tmp_path / "smol")
  text = without_scripts(page)
  for claimed in ("steps of", "adamw", "none.npy", "1,000", "seed", "step 0 of", "<h2>Curves"):
    assert claimed not in text.replace("loading", ""), claimed
  assert "Model smol" in text and "was not trained here" in text and "loaded" in printed
  assert "models/smol (Hugging Face llama, 135 million parameters" in text
  assert (f"Nothing was measured of smol yet: experiments.measure --run={tmp_path / 'smol'} "
          f"--out={tmp_path / 'smol'} --text=FILE") in text


@pytest.mark.parametrize("env", [None, {"path": "m.gguf", "kind": "GGUF"}])
def test_a_loaded_model_shows_its_measurements(tmp_path, env):
  loaded_model(tmp_path / "smol", env)
  one = {"loss": 3.97512, "perplexity": 53.2, "num_tokens": 2048, "model": "smol",
         "step": 0, "begin_token": {"asked": "auto", "added": True, "id": 17},
         "telemetry": {"resid_pre": {"kurtosis": [1.5, 544.41, 31.0]}}}
  (tmp_path / "smol" / "measure.json").write_text(json.dumps(one))
  page, _ = write(tmp_path / "smol")
  assert "loss 3.975 nats a token over 2,048 tokens, each window behind the begin token" in page
  assert "<h2>Runs" not in page, "a table of nothing but dashes"
  assert "is largest, 544, in layer 1" in page and "Kurtosis at resid_pre, step 0" in page
  panel, = data_of(page)["analyses"][0]["panels"]
  assert panel["lines"][0]["y"] == pytest.approx([1.5, 544.4, 31.0])
  (tmp_path / "smol" / "measure.json").write_text('{"steps": 7}')
  with pytest.raises(UserError, match="measure.json: holds no measurements"):
    write(tmp_path / "smol")


def test_a_loaded_model_beside_a_trained_run(tmp_path):
  loaded_model(tmp_path / "r" / "smol")
  write_run(tmp_path / "r" / "own", config(), kurtosis=20.4)
  text = without_scripts(write(tmp_path / "r")[0])
  assert "smol was not trained here" in text and "150 steps" in text and "1,000" not in text


def test_no_loss_lies_outside_its_axis(tmp_path):
  # Validation far above the training loss, as of a model that has learnt its corpus by heart.
  run = tmp_path / "r" / "a"
  write_run(run, config([("train.steps", "40"), ("train.eval_every", "10")]))
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    if line["split"] == "eval":
      line["loss"] = 9.5
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  axes = Figure().add_subplot()
  plots._loss(axes, series.arrange({"a": load_run(run)}))
  low, high = axes.get_ylim()
  assert low < 9.5 < high
  assert min(line["loss"] for line in lines[-4:]) > low


def test_a_claim_names_the_runs_that_it_leaves_out(folder):
  claim = {"id": "x", "statement": "S", "paper": "P", "rule": "R", "verdict": "reproduced",
           "evidence": {}, "left_out": [{"run": "op_b", "final_loss": 3.966,
                                         "peak_kurtosis": 1.61},
                                        {"run": "op_c", "final_loss": None, "peak_kurtosis": None}]}
  (folder / "study.json").write_text(json.dumps(
      {"study": "elsewhere", "scale": "smoke", "claims": [claim],
       "runs": [{"name": "pre_a"}, {"name": "op_a"}]}))
  text = without_scripts(write(folder)[0])
  assert "op_b: loss 3.966, peak kurtosis 1.61<br>op_c: loss -, peak kurtosis -</dd>" in text


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


def parts(page):
  """Every id of a page, and the names of its headings."""
  text = without_scripts(page)
  return set(re.findall(r'id="([^"]+)"', text)), re.findall(r"<h[12][^>]*>(.*?)</h[12]>", text)


def a_study(folder, **more):
  """Leaves the record of a study that this clone does not declare."""
  part = {"name": "peak kurtosis of pre over op", "effect": "log ratio", "margin": math.log(5),
          "estimate": math.log(7.3), "interval": [math.log(5.6), math.log(12.7)],
          "tails": [0.05, 0.025], "seeds": [2], "verdict": "reproduced"}
  claim = {"id": "op_kurtosis", "statement": "S", "paper": "Orders of magnitude", "rule": "R",
           "verdict": "reproduced", "evidence": {"parts": [part]}}
  other = {**claim, "id": "second", "statement": "Another", "verdict": "inconclusive",
           "evidence": {"parts": [{**part, "interval": [None, None], "seeds": [1]}]}}
  (folder / "study.json").write_text(json.dumps(
      {"study": "elsewhere", "scale": "smoke", "claims": [claim, other],
       "paper_setup": {"model.width": "768", "model.depth": "6"},
       "runs": [{"name": "pre_a", "finished": True}, {"name": "op_a", "finished": True}], **more}))


def test_a_study_asks_and_answers(folder):
  a_study(folder, question="Does it?")
  page, _ = write(folder)
  text = without_scripts(page)
  ids, headings = parts(page)
  assert headings[0] == "Does it?" and "<title>Does it?</title>" in page
  assert ("Yes, at scale smoke: peak kurtosis of pre over op is a factor of 7.3 (92.5 % interval "
          "5.6 to 12.7 over 2 seeds; asked: above 5).") in text
  # In this order: answer, words, the figure that decides, the paper's setup, claims, settings.
  order = [text.index(part) for part in (
      "Yes, at scale", '<dl class="words">', 'id="deciding"', "Not the paper's setup",
      "<h2>Claims", "<h2>Runs", "<h2>Curves", "<h2>What differs", "<h2>Provenance")]
  assert order == sorted(order)
  assert "<td>width</td><td>128</td><td>768</td>" in text and "<td>depth</td>" not in text
  assert {"deciding", "claim-op_kurtosis", "claim-second", "layers", "heat"} <= ids
  for term in ("pre", "op", "kurtosis", "MMR"):
    assert f"<dfn>{term}</dfn>" in text
  data = data_of(page)
  shown, = data["lead"]["intervals"]
  row, = shown["intervals"]["rows"]
  assert shown["form"] == "log" and shown["intervals"]["margin"] == pytest.approx(5)
  assert [row["low"], row["estimate"], row["high"]] == pytest.approx([5.6, 7.3, 12.7])
  assert data["claims"]["second"][0]["intervals"]["rows"][0]["low"] is None
  assert data["lead"]["runs"] == [0, 1] and "92.5" not in data["claims"]["second"][0]["title"]


def test_the_named_claim_answers(folder):
  a_study(folder, question="Does it?", answer="second")
  assert "Undecided, at scale smoke" in write(folder)[0]


def test_a_row_a_setting_and_the_runs_folded_below(tmp_path):
  for seed, kurtosis in enumerate((10.0, 20.0)):
    write_run(tmp_path / "r" / f"pre_{seed}", config([("train.seed", str(seed))]),
              kurtosis=kurtosis, loss=4 + seed)
    write_run(tmp_path / "r" / f"op_{seed}", config([*OP, ("train.seed", str(seed))]), loss=4.25)
  quantised = {"analysis": "quantised", "definition": "d", "steps": [
      {"step": 150, "kurtosis": 3.0, "schemes": {"W8A8": {
          "weight_bits": 8, "increase": {"mean": 0.0125}}}}]}
  (tmp_path / "r" / "pre_0" / "quantised.json").write_text(json.dumps(quantised))
  text = without_scripts(write(tmp_path / "r")[0])
  settings = text[text.index("<h2>Settings"):text.index("<details>")]
  assert settings.count("<tr>") == 3 and "sortable" in settings
  assert '<td data-value="15">15.0<small>10.0 to 20.0</small></td>' in settings
  assert '<td data-value="4.5">4.500<small>4.000 to 5.000</small></td>' in settings
  # Known of one seed of two.
  assert '<td data-value="0.0125">+0.0125<small>of 1 of 2</small></td>' in settings
  runs = text[text.index("<details>"):text.index("</details>")]
  assert "Every run (4)" in runs and all(name in runs for name in ("pre_0", "pre_1", "op_1"))
  assert '<td data-value="20">20.0</td>' in runs and "1, 90" in runs


def test_runs_that_look_alike_are_named_where_they_end(tmp_path):
  write_run(tmp_path / "r" / "a", config())
  write_run(tmp_path / "r" / "b", config([("telemetry.level", "full")]))
  write_run(tmp_path / "r" / "c", config([("train.seed", "1")]))
  ends = {run["name"]: run["end"] for run in data_of(write(tmp_path / "r")[0])["runs"]}
  assert ends == {"a": "a", "b": "b", "c": ""}


def test_ten_runs_are_less_than_a_page_of_one_and_a_half_megabytes(tmp_path, with_figure):
  for i in range(10):
    write_run(tmp_path / "r" / f"run{i}", config([("train.seed", str(i)), ("train.steps", "600")]),
              kurtosis=5.4321 + i)
  assert len(write(tmp_path / "r")[0].encode()) < 1_500_000


def test_a_folder_of_studies_gets_an_index(tmp_path, folder):
  for name in ("one", "two & three"):
    (tmp_path / "all" / name).mkdir(parents=True)
    for run, overrides in (("pre_a", ()), ("op_a", OP)):
      write_run(tmp_path / "all" / name / run, config(overrides), steps=3, finished=False)
    a_study(tmp_path / "all" / name, question=f"Is it {name}?")
  write(tmp_path / "all" / "two & three")
  page, printed = write(tmp_path / "all")
  text = without_scripts(page)
  assert parts(page)[1] == ["2 studies", "Is it one?", "Is it two &amp; three?"]
  assert "4 claims: 2 reproduced, 2 inconclusive." in text and "REPRODUCED" in printed
  assert text.index("<table") < text.index('data-claim="0 op_kurtosis"')
  assert 'href="two%20%26%20three/report.html"' in text and 'href="one/' not in text
  assert set(data_of(page)["claims"]) == {f"{i} {c}" for i in (0, 1)
                                          for c in ("op_kurtosis", "second")}
  assert not (tmp_path / "all" / "figure.svg").exists()


def test_a_loaded_model_shows_sites_and_what_quantising_costs(tmp_path):
  loaded_model(tmp_path / "smol", {"path": "m.gguf", "kind": "GGUF"})
  one = {"loss": 3.9, "perplexity": 53.2, "num_tokens": 2048, "model": "smol", "step": 0,
         "telemetry": {"resid_pre": {"kurtosis": [1.5, 544.41, 31.0], "mmr": [2.0, None, 8.0]},
                       "final": {"kurtosis": [7.0]}},
         "provenance": {"data": "--text=t.md", "text": {"sha256": "feed" * 16}, "digest": "d1"}}
  (tmp_path / "smol" / "measure.json").write_text(json.dumps(one))
  cost = {"label": "W8A8", "perplexity": 99.0, "perplexity_quantised": {"mean": 15_600_000.0},
          "increase": {"mean": 11.9}, "by_site": {"resid_mid": {"all_but": 120.0, "only": 9e6}},
          "advice": {"costliest_site": "resid_mid", "site_perplexity": 9e6,
                     "plain_perplexity": 98.0, "alternatives": {"--hadamard": 110.0, "--x": None}}}
  (tmp_path / "smol" / "quantise.json").write_text(json.dumps(cost))
  text = without_scripts(write(tmp_path / "smol")[0])
  assert "<dfn>kurtosis</dfn>" in text and "<dfn>MMR</dfn>" in text
  assert "perplexity 99 becomes 15,600,000" in text and "resid_mid costs most" in text
  assert "Lower: 110 with --hadamard." in text
  assert '<td data-value="544.41">544<small>layer 1</small></td>' in text
  assert '<td data-value="8">8.00<small>layer 2</small></td>' in text
  assert '<td data-value="7">7.00</td><td data-value="">-</td>' in text
  for known in ("--text=t.md", "feed" * 16, "d1"):
    assert known in text[text.index("<h2>Provenance"):]


@pytest.mark.parametrize("name", studies.names())
def test_every_declared_study_asks_a_question(name):
  for scale in importlib.import_module(f"of_jax.commands.studies.{name}").SCALES:
    about = studies.about(studies.load(name, scale))
    assert about["question"].endswith("?") and len(about["question"]) < 100


@pytest.mark.parametrize("wrong, message", (
    ("answer='secund'", "its answer=secund is none of its claims"),
    ("figure='kurtosys'", "its figure=kurtosys is none of its metrics or analyses; did you mean "
     "kurtosis")))
def test_a_page_that_names_what_is_not_there_is_one_line(tmp_path, wrong, message):
  (tmp_path / "mine.py").write_text(
      "from of_jax.commands.studies import Scale\nSCALES = {'smoke': Scale('smoke.py', (), {}, (), "
      f"{{}}, {wrong})}}\n")
  with pytest.raises(UserError, match=message):
    studies.load(str(tmp_path / "mine.py"), "smoke")


def test_an_old_record_gets_the_question_that_its_study_declares_now(folder):
  claim = {"id": "op_kurtosis", "statement": "S", "paper": "P", "rule": "R",
           "verdict": "reproduced", "evidence": {}}
  (folder / "study.json").write_text(json.dumps(
      {"study": "op_block", "scale": "smoke", "claims": [claim],
       "runs": [{"name": "pre_a"}, {"name": "op_a"}]}))
  question = studies.load("op_block", "smoke").question
  assert parts(write(folder)[0])[1][0] == question
  assert json.loads((folder / "study.json").read_text())["question"] == question
