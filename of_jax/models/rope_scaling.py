"""Rotary frequencies that are stretched, for a model to read further than it was first made for."""

import math

import numpy as np

from of_jax.config import ModelConfig


def frequency_scale(model: ModelConfig, length: int = 1) -> tuple[float, ...] | None:
  """Factor of each rotary frequency of a head; None where nothing is stretched.

  `linear` divides all by s = `model.rope_factor` (Chen et al. 2023, 2306.15595, eq. 4). `longrope`
  divides each by its own number, and in sequences longer than `model.rope_original_length` by
  another (Ding et al. 2024, 2402.13753). The others have functions of their own below.

  Args:
    model: resolved.
    length: tokens of the sequence, which dynamic and longrope depend on.
  """
  assert model.head_dim is not None, "resolve the config first"
  if model.positions != "rotary" or model.rope_scaling == "none":
    return None
  count = int(model.head_dim * model.rope_fraction) // 2
  factor, original = model.rope_factor, model.rope_original_length
  if model.rope_scaling == "linear":
    return (1 / factor,) * count
  if model.rope_scaling == "longrope":
    short, long = model.rope_short_divisors, model.rope_long_divisors
    return tuple(1 / divisor for divisor in (long if length > original else short))
  if model.rope_scaling == "dynamic":
    return None if length <= original else tuple(
        dynamic_scale(count, factor, original, length).tolist())
  scale = (yarn_scale(model.rope_theta, count, factor, model.rope_fast_turns,
                      model.rope_slow_turns, original, model.rope_whole_pairs)
           if model.rope_scaling == "yarn" else
           llama3_scale(model.rope_theta, count, factor, model.rope_low_frequency,
                        model.rope_high_frequency, original))
  return tuple(scale.tolist())


def dynamic_scale(count: int, factor: float, original: int, length: int) -> np.ndarray:
  """Factors of a base that grows with the sequence, in float64.

  For T tokens, more than the L = `original` of before, the base is multiplied by
  (s T / L - s + 1)^(K / (K - 2)), K / 2 = count (code of transformers, rope_type dynamic).
  """
  growth = factor * length / original - factor + 1
  result: np.ndarray = growth ** (-np.arange(count) / (count - 1))
  return result


def yarn_scale(theta: float, count: int, factor: float, fast: float, slow: float, original: int,
               whole: bool) -> np.ndarray:
  """Factors of YaRN's frequencies, in float64 (Peng et al. 2023, 2309.00071, Sec. 3.2).

  Pair i stays where it turns more than `fast` times within the `original` length and is divided by
  s = factor where it turns less than `slow` times. In between the share that is divided rises with
  i, not with the turns, between the two pairs, with `whole` rounded outwards, at which the limits
  lie (code of transformers, rope_type yarn).
  """
  low, high = (count * math.log(original / (turns * 2 * math.pi)) / math.log(theta)
               for turns in (fast, slow))
  if whole:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * count - 1)
  divided = np.clip((np.arange(count) - low) / (high - low if high != low else 0.001), 0, 1)
  result: np.ndarray = divided / factor + 1 - divided
  return result


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
