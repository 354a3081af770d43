"""Rotary frequencies that are stretched, for a model to read further than it was first made for."""

import math

import numpy as np

from of_jax.config import ModelConfig


def frequency_scale(model: ModelConfig) -> tuple[float, ...] | None:
  """Factor of each rotary frequency of a head; None where nothing is stretched.

  `linear` divides all by s = `model.rope_factor` (Chen et al. 2023, 2306.15595, eq. 4); `llama3`
  see `llama3_scale`.
  """
  assert model.head_dim is not None, "resolve the config first"
  if model.positions != "rotary" or model.rope_scaling == "none":
    return None
  count = int(model.head_dim * model.rope_fraction) // 2
  if model.rope_scaling == "linear":
    return (1 / model.rope_factor,) * count
  scale = llama3_scale(model.rope_theta, count, model.rope_factor, model.rope_low_frequency,
                       model.rope_high_frequency, model.rope_original_length)
  return tuple(scale.tolist())


def llama3_scale(theta: float, count: int, factor: float, low: float, high: float, length: int
                 ) -> np.ndarray:
  """Factors of LLaMA 3's stretched frequencies, in float64.

  They are (1 - c) / s + c with c = clip((n - low) / (high - low), 0, 1), where
  n = length theta^(-2i / K) / 2 pi is how often pair i of K / 2 = count turns within the `length`
  that the model was made for first. Pairs that turn at least `high` times stay, those below `low`
  are slowed by s = factor, and in between it is interpolated (Llama Team 2024, 2407.21783; code of
  transformers, rope_type llama3).
  """
  turns = length * theta ** (-np.arange(count) / count) / (2 * math.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  result: np.ndarray = (1 - kept) / factor + kept
  return result
