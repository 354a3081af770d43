"""Points from CSV files and run directories, and the binary from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from of_jax.errors import UserError
from of_jax.scaling import figure, targets, variables
from of_jax.scaling.table import read_csv
from tests.analysis.synthetic import config, write_run

ROOT = Path(__file__).parents[2]
WIDTHS = (64, 128, 256, 512)


def write_ladder(root: Path) -> None:
  """Runs of four widths and two seeds: kurtosis 1 + 0.1 width, loss 3 + 40 / width."""
  for width in WIDTHS:
    for seed in (0, 1):
      write_run(root / f"w{width}_s{seed}",
                config([("model.width", str(width)), ("train.seed", str(seed))]),
                kurtosis=(1 + 0.1 * width) * (1 + 0.02 * seed), loss=3 + 40 / width + 0.01 * seed)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
  root = tmp_path_factory.mktemp("ladder")
  write_ladder(root)
  write_run(root / "bad", config([("model.width", "256")]), nan_from=50)
  write_run(root / "going", config([("model.width", "256")]), steps=20, finished=False)
  return root


def read(root, y, **given):
  return variables.read_root(root, targets.parse(y, **given))


def test_runs_become_points(ladder):
  table = read(ladder, "peak_kurtosis")
  assert len(table.names) == 8
  assert table.left_out == {"diverged": ("bad",), "not finished": ("going",)}
  by_name = dict(zip(table.names, table.y, strict=True))
  assert by_name["w128_s1"] == pytest.approx(13.8 * 1.02)
  width = dict(zip(table.names, table.columns["width"], strict=True))
  assert width["w128_s1"] == 128
  tokens = 150 * 16 * config().train.sequence_length
  for name, value in (("tokens", tokens), ("flops", tokens), ("parameters", 2_245_120),
                      ("parameters_without_embeddings", 1_180_160), ("batch", 16),
                      ("steps", 150), ("depth", 6), ("optim.learning_rate", 1e-3),
                      ("learning_rate", 1e-3)):
    assert set(table.columns[name]) == {value}, name
  assert set(table.columns["seed"]) == {0, 1}
  assert "kurtosis at resid_pre, the largest over layers, the largest over all" in table.y_says


@pytest.mark.parametrize("y, given, value", (
    ("final_loss", {}, 3 + 40 / 64),
    ("loss", {"over": "last"}, 3 + 40 / 64),
    ("peak_kurtosis", {"layer": "1"}, 7.4),
    ("peak_kurtosis", {"layer": "0"}, 1 + 6.4 * 0.4),
    ("kurtosis", {"over": "peak", "every": 90}, 7.4),
    ("peak_kurtosis", {"layer": "mean"}, 1 + 6.4 * (0.4 + 1 + 0.8 + 0.6 + 0.5 + 0.4) / 6),
    ("last_kurtosis", {}, 1 + 6.4 * 0.7),
    ("peak_max_abs", {"site": "final"}, 5.0),
))
def test_targets_name_their_aggregate(ladder, y, given, value):
  table = read(ladder, y, **given)
  assert table.y[table.names.index("w64_s0")] == pytest.approx(value)


def test_targets_of_json_files(tmp_path):
  write_ladder(tmp_path)
  for folder in tmp_path.iterdir():
    width = json.loads((folder / "config.json").read_text())["model"]["width"]
    (folder / "measure.json").write_text(json.dumps({"steps": [
        {"step": step, "loss": 3.0 + step, "telemetry": {"resid_pre": {"mmr": [step, width]}}}
        for step in (2, 1)]}))
    (folder / "quantise.json").write_text(json.dumps({
        "perplexity": 10.0, "perplexity_quantised": {"mean": 10.0 + width}}))
  assert set(read(tmp_path, "measure.loss").y) == {5.0}
  assert set(read(tmp_path, "measure.mmr").y) == {*map(float, WIDTHS)}
  assert set(read(tmp_path, "measure.mmr", layer="0").y) == {2.0}
  np.testing.assert_allclose(sorted({*read(tmp_path, "quantisation_loss").y}),
                             np.log(1 + np.array(WIDTHS) / 10))
  assert set(read(tmp_path, "quantise.perplexity").y) == {10.0}


def test_aggregates_that_are_not_alike_are_noted(tmp_path):
  write_run(tmp_path / "a", config())
  write_run(tmp_path / "b", config([("train.steps", "300"), ("model.depth", "12")]))
  assert [note.split(" ")[0] for note in read(tmp_path, "peak_kurtosis").notes] == ["a", "a"]
  assert "largest of 6 to 12 layers" in read(tmp_path, "peak_kurtosis").notes[0]
  assert "peak over 150 to 300 steps" in read(tmp_path, "peak_kurtosis").notes[1]
  assert read(tmp_path, "last_kurtosis", layer="mean").notes == ()


@pytest.mark.parametrize("y, given, message", (
    ("peak_kurtosi", {}, "no run logged kurtosi; did you mean kurtosis"),
    ("peak_kurtosis", {"site": "resid_per"}, "did you mean resid_pre"),
    ("peak_kurtosis", {"over": "last"}, "already says peak"),
    ("peak_kurtosis", {"layer": "top"}, "must be largest, mean or a layer"),
    ("peak_kurtosis", {"layer": "9"}, "no run can be used: .*8 no peak_kurtosis"),
    ("quantisation_loss", {}, "no run has it"),
    ("final_loss", {"layer": "1"}, "has no layer"),
    ("measure.loss", {"every": 2}, "is one number"),
    ("measure.loss", {}, "no run has it"),
))
def test_mistakes_of_targets(ladder, y, given, message):
  with pytest.raises(UserError, match=message):
    read(ladder, y, **given)


def test_csv(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("# made\nname, width,loss,diverged\none,64,3.0,0\n\ntwo,128,2.5,0\n"
                  "three,256,9,1\n")
  table = read_csv(str(path), "loss")
  assert table.names == ("one", "two") and table.left_out == {"diverged": ("three",)}
  assert set(table.columns) == {"width"} and list(table.y) == [3.0, 2.5]


@pytest.mark.parametrize("text, message", (
    ("", "empty"),
    ("width,loss\n64", "line 2: 1 values, of 2 columns"),
    ("width,loss\n64,x\n", "line 2: loss is x, not a number"),
    ("width,loss\n64,\n", "line 2: loss is empty, not a number"),
    ("width,loss\n64,1\nb,2\n", "line 3: width is b, not a number"),
    ("width,loss\n64,nan\n", "line 2: loss is nan"),
    ("width,loss\n64,-1\n", "line 2: loss is -1; .* positive"),
    ("width,loss\n64,inf\n", "line 2: loss is inf"),
    ("width,los\n64,1\n", "--y=loss: no such column; did you mean los"),
    ("width,width\n64,1\n", "must name every column once"),
    ("width,loss\n", "no line below the first$"),
    ("width,loss,diverged\n64,1,1\n", "no line below the first is of a run that did not diverge"),
))
def test_mistakes_of_csv(tmp_path, text, message):
  path = tmp_path / "a.csv"
  path.write_text(text)
  with pytest.raises(UserError, match=message) as fault:
    read_csv(str(path), "loss")
  assert "\n" not in str(fault.value)


def fit(*given):
  return subprocess.run([sys.executable, "-m", "experiments.fit", *given], cwd=ROOT,
                        capture_output=True, text=True)


@pytest.mark.slow
def test_the_binary_on_runs(ladder, tmp_path):
  done = fit(f"--root={ladder}", "--y=peak_kurtosis", "--law=a * width^b + c", "--hold_out=1",
             "--forecast=width=1024", "--resamples=99", "--simulate=0", f"--out={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert "left out, diverged: 1 (bad)" in done.stdout and "inside 90 %" in done.stdout
  found = json.loads((tmp_path / "fit.json").read_text())
  assert {"law", "y", "x", "parameters", "points", "held_out", "comparison"} <= set(found)
  assert found["x"] == ["width"] and len(found["points"]) == 6
  for one in found["parameters"].values():
    assert {"value", "low", "high", "standard_error"} <= set(one)
  assert found["parameters"]["b"]["low"] < 1 < found["parameters"]["b"]["high"]
  held = found["held_out"]["points"]
  assert [p["width"] for p in held] == [512, 512] and all(p["is_inside"] for p in held)
  (tmp_path / "fit.png").unlink()
  figure.save(found, tmp_path)
  assert (tmp_path / "fit.png").stat().st_size > 10_000


@pytest.mark.parametrize("given, message", (
    (["--y=loss", "--law=power"], "exactly one is needed"),
    (["--csv=none.csv", "--y=loss", "--law=power"], "no such file"),
    (["--root=nowhere", "--y=loss", "--law=power"], "no such folder"),
    (["--csv=a.csv", "--law=power"], "--y: needs a value"),
    (["--csv=a.csv", "--y=loss", "--law=power", "--layer=1"], "--layer: is of runs"),
    (["--csv=a.csv", "--y=loss", "--law=power", "--level=90"], "between 0.01 and"),
    (["--csv=a.csv", "--y=loss", "--law=power", "--delta=0"], "above 0"),
    (["--csv=a.csv", "--y=loss", "--law=power", "--forecast=big"], "VARIABLE=NUMBER"),
    (["--coverage=10", "--law=power"], "leave out --law"),
    (["--csv=a.csv", "--y=loss", "--law=power", "--resamples=99999999999999999999"], "1000000"),
))
def test_mistakes_on_the_command_line(given, message, tmp_path):
  (tmp_path / "a.csv").write_text("width,loss\n64,1\n128,2\n")
  done = fit(*(text.replace("a.csv", str(tmp_path / "a.csv")) for text in given))
  assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
