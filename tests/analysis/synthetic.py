"""Run directories as the trainer leaves them, with made-up curves of known peaks."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.config import Config, ModelConfig, apply_overrides, to_dict

DEPTH = 6


def config(overrides: Sequence[tuple[str, str]] = ()) -> Config:
  return apply_overrides(
      Config(model=ModelConfig(depth=DEPTH)),
      [("train.steps", "150"), ("train.batch_size", "16"), ("train.eval_every", "25"), *overrides])


def write_run(path: pathlib.Path, run_config: Config, *, kurtosis: float = 1.2,
              loss: float = 4.5, mmr: float = 8.0, correlation: float = 0.1, seconds: float = 0.4,
              steps: int | None = None, finished: bool = True, nan_from: int | None = None,
              corpus_sha256: str = "c0ffee" * 10, accuracy: float | None = None) -> None:
  """A run whose kurtosis peaks at exactly `kurtosis`, in layer 1 at 60 % of the steps, and whose
  last validation loss is exactly `loss`. From step `nan_from` all numbers are null. With `accuracy`
  its evaluations have that, as those of images do."""
  path.mkdir(parents=True)
  (path / "config.json").write_text(json.dumps(to_dict(run_config)))
  (path / "env.json").write_text(json.dumps({
      "versions": {"jax": "0.10.2", "of_jax": "0.1.0"},
      "git": {"commit": "0123456789abcdef", "dirty": True},
      "devices": {"platform": "cpu", "kind": "cpu", "count": 1}, "mesh": {},
      "corpus": "python_stdlib", "corpus_sha256": corpus_sha256, "tokenizer_sha256": "beef" * 16,
      "parameters": 2_245_120, "parameters_without_embeddings": 1_180_160,
      "flops_per_token": 1, "command": "python -m experiments.train"}))
  total = run_config.train.steps
  last = total if steps is None else steps
  peak_step = max(1, round(0.6 * last))
  noise = np.random.default_rng(run_config.train.seed)
  metrics, timing = [], []
  for step in range(1, last + 1):
    bad = nan_from is not None and step >= nan_from
    # Rises until the peak, then falls a little; equals 1 at both ends of the smallest case.
    height = math.sin(min(1, step / peak_step) * math.pi / 2) ** 4
    height *= 1 - 0.3 * max(0, step - peak_step) / max(1, last - peak_step)
    layers = [1 + (kurtosis - 1) * height * weight for weight in (0.4, 1, 0.8, 0.6, 0.5, 0.4)]
    decay = math.exp(-step / 30)
    now = loss + (8.3 - loss) * (decay - math.exp(-last / 30))
    cells = {
        "kurtosis": layers, "kurtosis_centred": layers, "kurtosis_no_first": layers,
        "mmr": [1 + (mmr - 1) * (0.3 + 0.7 * height) * (1 - 0.1 * i) for i in range(DEPTH)],
        "rms": [1 + 0.1 * i for i in range(DEPTH)],
        "max_abs": [5.0] * DEPTH, "input_correlation": [correlation] * DEPTH}
    if bad:
      cells = {name: [None] * DEPTH for name in cells}
    line = {"step": step, "split": "train",
            "loss": None if bad else now + 0.05 * noise.standard_normal(),
            "learning_rate": 1e-2, "grad_norm": None if bad else 1.0,
            "telemetry": {"resid_pre": cells, "final": {k: v[-1:] for k, v in cells.items()}}}
    metrics.append(line)
    timing.append({"step": step, "seconds": seconds, "tokens_per_second": 5000, "mfu": None})
    if step % run_config.train.eval_every == 0 or step == total:
      metrics.append({"step": step, "split": "eval", "loss": None if bad else now,
                      **({} if accuracy is None else {"accuracy": accuracy})})
  for name, lines in (("metrics.jsonl", metrics), ("timing.jsonl", timing)):
    (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
  if finished:
    (path / "DONE").touch()


def leaning(evidence: Mapping[str, Any], verdict: str) -> str:
  """The verdict by estimates alone, where seeds are too few or too alike for an interval."""
  if "parts" not in evidence or verdict != "inconclusive":
    return verdict
  return "reproduced" if all(part["estimate"] > part["margin"] for part in evidence["parts"]
                             ) else "not reproduced"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a synthetic run of the op_block study comes to."""

  kurtosis: float
  loss: float
  correlation: float


def outcome(run_config: Config) -> Outcome:
  """The numbers measured before for such a run, or near them."""
  model, seed = run_config.model, run_config.train.seed
  if model.embedding_scale == 50:
    return Outcome(1.2, 4.376 if model.block == "pre" else 4.340, 0.1)
  fast = run_config.optim.learning_rate == 1e-2
  if model.block == "op":
    return Outcome(1.1, (4.331, 4.252)[seed] + (0 if fast else 0.2), 0.3)
  return Outcome((20.4, 18.8)[seed] if fast else 1.5 + 0.1 * seed,
                 (4.469, 4.490)[seed] + (0 if fast else 0.11), 0.8)


def train(run_config: Config, path: pathlib.Path) -> None:
  """In the trainer's place: writes the whole run at once."""
  result = outcome(run_config)
  write_run(path, run_config, kurtosis=result.kurtosis, loss=result.loss,
            mmr=4 + 2 * result.kurtosis, correlation=result.correlation)
