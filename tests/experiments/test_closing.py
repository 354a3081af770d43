"""Last lines of commands: a training's summary, and a quantisation's sentence."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax.analysis import (
    imported,
    load_run,
    quantisation,
    quantisation_advice,
    quantisation_words,
    replay,
)
from of_jax.quantise.scheme import Scheme
from of_jax.report.closing import closing
from of_jax.train.progress import TrainingProgress
from tests.analysis.synthetic import config, write_run
from tests.golden import foreign


def test_a_training_ends_with_what_was_reached(tmp_path: Path) -> None:
  write_run(tmp_path / "a b", config(), kurtosis=20.4, loss=4.469, seconds=0.5)
  said = closing(load_run(tmp_path / "a b"), str(tmp_path / "a b"))
  assert said == [
      "  150 of 150 steps in 1 min 15 s, 5,000 tokens a second", "  validation loss 4.469",
      "  peak kurtosis 20.4 of the stream entering layer 1, at step 90",
      f"  left in {tmp_path / 'a b'}: metrics.jsonl, 0 checkpoints",
      f"  next: python -m of_jax report --root='{tmp_path / 'a b'}'"]
  write_run(tmp_path / "lost", config(), nan_from=1)
  said = closing(load_run(tmp_path / "lost"), "lost")
  assert said[0].endswith(", diverged") and len(said) == 3


def test_lines_have_kurtosis_and_the_compilers_seconds(capsys: pytest.CaptureFixture[str]) -> None:
  with TrainingProgress("run", 0, 2) as progress:
    progress.update(1, 2.5, 10.0)
    progress.update(2, 2.5, 10.0, kurtosis=20.44)
  lines = capsys.readouterr().out.splitlines()
  assert re.fullmatch(r"run: compiled and at step 1 after \d+\.\d s", lines[1])
  assert "  kurtosis 20.44  0 s left" in lines[2]


@pytest.mark.slow
def test_a_quantisation_ends_with_its_cause_and_what_lowers_it(tmp_path: Path) -> None:
  model: Any = imported.load(foreign.save_folder(tmp_path, "gemma2"))
  # One neuron of the MLPs' outputs is far larger than the rest: a range a tensor loses the others.
  down = model.params["stacks"]["0"]["mlp"]["down"]
  kernel = np.array(down["kernel"])
  kernel[..., 0] *= 300
  down["kernel"] = kernel
  windows = np.pad(foreign.TOKENS, ((0, 0), (0, 1)), constant_values=3)
  batches = replay.token_batches(model.config, windows, "t")
  scheme = Scheme(weight_bits=4, sites=("mlp_up", "mlp_down"))
  found = quantisation.quantise(model, batches, batches, scheme, [0])
  advice = quantisation_advice.advise(model, batches, batches, scheme, found, 0)
  json.dumps(advice)
  only = {site: quantisation.quantise(
      model, batches[:1], batches, Scheme(weight_bits=4, sites=(site,)),
      [0])["perplexity_quantised"]["mean"] for site in scheme.sites}
  assert advice["costliest_site"] == max(only, key=lambda site: only[site])
  assert advice["site_perplexity"] == max(only.values())
  said = quantisation_words.sentence(found, advice)
  assert f"Of its sites {advice['costliest_site']} costs most" in said
  for flags, value in advice["alternatives"].items():
    lower = value < found["perplexity_quantised"]["mean"]
    assert (flags in said) == lower
  assert any(flags in said for flags in advice["alternatives"])


def test_one_that_costs_nothing_says_so() -> None:
  found = {"label": "W8A8", "increase": {"mean": 0.001}, "perplexity": 20.0,
           "perplexity_quantised": {"mean": 20.02}}
  assert not quantisation_words.is_notable(found)
  assert quantisation_words.sentence(found, None) == (
      "W8A8 costs 0.0010 nats a token: perplexity 20 becomes 20.02, next to nothing.")
  assert quantisation_words.is_notable({"increase": {"mean": float("nan")}})
