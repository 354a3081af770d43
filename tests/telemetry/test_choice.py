"""Choice of sites, metrics, cadences and own metrics by a config, and mistakes in it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from of_jax.analysis.runs import load_run
from of_jax.config import Config, declared_metrics
from of_jax.errors import UserError
from of_jax.report import page_data
from of_jax.storage import run_directory
from of_jax.train.loop import train

MakeConfig = Callable[..., Config]


def test_a_run_measures_what_its_config_names(make_config: MakeConfig, own_file: Path,
                                              tmp_path: Path) -> None:
  """Sites, metrics and cadences by name; a user's file; what the run directory holds of it."""
  config = make_config(
      model__depth=1, train__steps=4, train__checkpoint_every=4, telemetry__every=2,
      telemetry__sites="mlp_out,final", telemetry__metrics="kurtosis_no_first,top_neurons,"
      "attention_entropy,m4_u2,update_rms_ratio", telemetry__cadences="attention=3",
      telemetry__user_metrics=f"{own_file}:above_one", telemetry__quantised_perplexity_every=3)
  lines: list[str] = []
  train(config, tmp_path / "run", lines.append)
  records = {r["step"]: r for r in run_directory.read_lines(tmp_path / "run" / "metrics.jsonl")
             if r["split"] == "train"}
  # An id brings its twin along; the twin's own does not bring the id.
  plain = {"kurtosis_no_first", "top_neurons", "top_neurons_no_first", "above_one"}
  for step, record in records.items():
    changed = {"m4_u2"} if step in (1, 4) else set()
    expected: dict[str, set[str]] = {
        site: plain | changed for site in ("mlp_out", "final") if step != 3}
    if step in (1, 3, 4):
      expected["attention"] = {"attention_entropy"}
      expected.setdefault("final", set()).update(
          {"quantised_perplexity", "quantised_loss_increase"})
    assert {site: set(found) for site, found in record.get("telemetry", {}).items()} == expected
    assert ("optimizer" in record) == (step != 3)
  assert all(set(m) == {"update_rms_ratio"} for m in records[1]["optimizer"].values())
  top = records[2]["telemetry"]["final"]["top_neurons"]
  assert len(top) == 1 and len(set(top[0])) == 5 and all(isinstance(j, int) for j in top[0])
  assert any(line.startswith("telemetry attention: measured 3 times") for line in lines)
  own = own_file.read_text()
  assert (tmp_path / "run" / "user_metrics" / "0_own.py").read_text() == own
  # The page has every number that was logged; formulas of the user's from the run's own copy.
  own_file.unlink()
  drawn = page_data.page_data({"run": load_run(tmp_path / "run")})
  (shown,), about = drawn["runs"], drawn["metrics"]["above_one at mlp_out"]
  assert about["formula"] == "Share of entries above 1 in size."
  curve = shown["metrics"]["above_one at mlp_out"]
  assert curve["steps"] == [1, 2, 4] and curve["layers"][0] == pytest.approx(
      [records[step]["telemetry"]["mlp_out"]["above_one"][0] for step in (1, 2, 4)], rel=1e-3)
  assert {"attention_entropy at attention", "m4_u2 at final", "quantised_perplexity at final",
          "update_rms_ratio at hidden parameters"} <= set(drawn["metrics"])
  own_file.write_text(own + "\n")
  with pytest.raises(UserError, match="is not what the run in .* began with"):
    train(config, tmp_path / "run", lines.append)


def test_the_page_has_the_registry() -> None:
  page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
  begin = "<!-- begin: python -m experiments.measure --list_metrics -->\n"
  assert page.partition(begin)[2].partition("\n<!-- end -->")[0] == declared_metrics.table()


def test_undefined_is_null() -> None:
  undefined = np.array([[np.iinfo(np.int32).min, 3]], np.int32)
  assert run_directory.plain({"top_neurons": undefined, "kurtosis": np.array([np.nan, 1.0])}) == {
      "top_neurons": [[None, 3]], "kurtosis": [None, 1.0]}


MISTAKES = {
    "site": ({"telemetry__sites": "resid_mdi"}, "did you mean resid_mid?"),
    "metric": ({"telemetry__metrics": "kurtosi"}, "did you mean kurtosis?"),
    "off": ({"telemetry__level": "off", "telemetry__metrics": "kurtosis"}, "level=off"),
    "cadence of what": ({"telemetry__cadences": "atention=3"}, "is not one of attention, gram"),
    "cadence form": ({"telemetry__cadences": "attention"}, "FAMILY=STEPS"),
    "cadence of a step's": ({"telemetry__level": "full", "telemetry__cadences": "mmr=3"},
                            "has telemetry.every"),
    "cadence of nothing": ({"telemetry__cadences": "gram=3"}, "measures nothing of gram"),
    "no file": ({"telemetry__user_metrics": "DIR/none.py:f"}, "no such file as"),
    "no such function": ({"telemetry__user_metrics": "DIR/own.py:above_on"},
                         "did you mean above_one?"),
    "no form": ({"telemetry__user_metrics": "above_one"}, "FILE.py:NAME"),
    "no metrics": ({"telemetry__user_metrics": "DIR/bare.py:Bare"}, "does not state metrics"),
    "taken": ({"telemetry__user_metrics": "DIR/bare.py:kurtosis"}, "already is a metric kurtosis"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, make_config: MakeConfig, own_file: Path) -> None:
  (own_file.parent / "bare.py").write_text(
      "class Bare:\n  pass\n\n\ndef kurtosis(x):\n  return x\n")
  fields, message = MISTAKES[mistake]
  fields = {name: text.replace("DIR", str(own_file.parent)) for name, text in fields.items()}
  with pytest.raises(UserError) as error:
    make_config(**fields)
  assert message in str(error.value) and "\n" not in str(error.value)
