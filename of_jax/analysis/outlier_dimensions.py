"""Outlier dimensions of the final representation, and what they do to predictions.

Enters: what the unembedding reads at the last token of each context, [contexts, width], and the
unembedding. Leaves: which dimensions are outliers, and how predictions change without them, with
them alone, and with or without as many random others (Macocco et al. 2025, 2503.21718).

All of this is NumPy in float64.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Array = npt.NDArray[np.floating[Any]]

# A dimension is an outlier if at this quantile over contexts it exceeds that one of all entries.
LOCAL_QUANTILE, GLOBAL_QUANTILE = 0.5, 0.99
RANDOM_DRAWS = 5
TOP = 20
# Logits that are held at once, in entries.
_LOGITS_AT_ONCE = 2 ** 22
# What a comparison averages over contexts.
_MEANS = ("surprisal", "entropy", "kl_divergence", "top20_overlap", "accuracy")


def outlier_dimensions(h_NxD: Array) -> Ints:
  """Finds the dimensions whose median magnitude exceeds the 0.99 quantile of all magnitudes.

  That is, those that are among the largest hundredth of all entries for more than half of the
  contexts; sorted by their median, largest first. Quantiles interpolate linearly, as NumPy's do.
  """
  magnitudes = np.abs(np.asarray(h_NxD, np.float64))
  typical_D = np.quantile(magnitudes, LOCAL_QUANTILE, axis=0)
  found = np.flatnonzero(typical_D > np.quantile(magnitudes, GLOBAL_QUANTILE))
  return found[np.argsort(-typical_D[found], kind="stable")]


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Predictions of a kept set of dimensions, context by context; see `compare`."""

  surprisal: Floats
  entropy: Floats
  kl_divergence: Floats
  top20_overlap: Floats
  predicted: Ints
  targets: Ints
  corpus_counts: Ints

  def summary(self) -> dict[str, float | int | None]:
    """Averages over contexts, in nats, and counts how often which token is predicted.

    `frequency_slope` is that of a least-squares line, and `frequency_spearman` the rank
    correlation, between a token's share of the predictions and its share of the corpus, over the
    tokens that are predicted at least once and occur in the corpus. None with fewer than two
    distinct shares.
    """
    counts = np.bincount(self.predicted, minlength=len(self.corpus_counts))
    both = np.flatnonzero((counts > 0) & (self.corpus_counts > 0))
    corpus = self.corpus_counts[both] / self.corpus_counts.sum()
    predicted = counts[both] / len(self.predicted)
    means: dict[str, float | int | None] = {
        "surprisal": float(self.surprisal.mean()), "entropy": float(self.entropy.mean()),
        "kl_divergence": float(self.kl_divergence.mean()),
        "top20_overlap": float(self.top20_overlap.mean()),
        "accuracy": float((self.predicted == self.targets).mean())}
    return {**means, "distinct_predictions": int((counts > 0).sum()),
            "mean_corpus_share_of_predicted": float(
                (self.corpus_counts[self.predicted] / self.corpus_counts.sum()).mean()),
            "frequency_slope": slope(corpus, predicted),
            "frequency_spearman": spearman(corpus, predicted)}


def compare(h_NxD: Array, table_DxV: Array, targets_N: Ints, corpus_counts_V: Ints,
            kept: Ints | None = None) -> Predictions:
  """Compares predictions from the dimensions `kept` alone with those from all.

  Args:
    h_NxD: what the unembedding reads.
    table_DxV: the unembedding, logits are h W.
    targets_N: the tokens that came.
    corpus_counts_V: how often each token is in the corpus.
    kept: dimensions; the others are zero. None keeps all.

  Returns:
    of each context: surprisal -log p(target) and entropy in nats, KL(all || kept) in nats, the
    share of the 20 likeliest tokens of all that are among the 20 likeliest of kept, the likeliest.
  """
  columns: dict[str, list[Any]] = {name: [] for name in (*_MEANS[:4], "predicted")}
  table = np.asarray(table_DxV, np.float64)
  top = min(TOP, table.shape[1])
  for rows in _chunks(len(h_NxD), table.shape[1]):
    h = np.asarray(h_NxD[rows], np.float64)
    log_p = log_softmax(h @ table)
    log_q = log_p if kept is None else log_softmax(h[:, kept] @ table[kept])
    p, q = np.exp(log_p), np.exp(log_q)
    ours, theirs = _top(log_p, top), _top(log_q, top)
    columns["surprisal"].append(-log_q[np.arange(len(h)), targets_N[rows]])
    columns["entropy"].append(-(q * log_q).sum(1))
    columns["kl_divergence"].append((p * (log_p - log_q)).sum(1))
    columns["top20_overlap"].append((ours & theirs).sum(1) / top)
    columns["predicted"].append(log_q.argmax(1))
  joined = {name: np.concatenate(parts) for name, parts in columns.items()}
  return Predictions(**joined, targets=np.asarray(targets_N), corpus_counts=corpus_counts_V)


def ablations(h_NxD: Array, table_DxV: Array, targets_N: Ints, corpus_counts_V: Ints,
              seed: int = 0) -> dict[str, Any]:
  """Runs the paper's experiment on one set of representations.

  Returns:
    `outlier_dimensions` and `unembedding_outlier_dimensions` (the same rule on the unembedding's
    rows, a token each); `full`, and `only_` and `without_` each of `outlier_dimensions`,
    `unembedding_outlier_dimensions` and `random`: summaries, see Predictions.summary, or None where
    there are none of these dimensions. Random sets are as large as the outlier dimensions and
    drawn from what is in neither, five times: `random` is the mean, `random_range` the
    smallest and largest of each number.
  """
  width = table_DxV.shape[0]
  own, unembedding = outlier_dimensions(h_NxD), outlier_dimensions(np.asarray(table_DxV).T)

  def summary(kept: Ints | None) -> dict[str, float | int | None]:
    return compare(h_NxD, table_DxV, targets_N, corpus_counts_V, kept).summary()

  def others(dimensions: Ints) -> Ints:
    return np.setdiff1d(np.arange(width), dimensions)

  result: dict[str, Any] = {
      "outlier_dimensions": own.tolist(), "unembedding_outlier_dimensions": unembedding.tolist(),
      "full": summary(None)}
  for name, dimensions in (("outlier_dimensions", own),
                           ("unembedding_outlier_dimensions", unembedding)):
    result[f"only_{name}"] = summary(dimensions) if len(dimensions) else None
    result[f"without_{name}"] = summary(others(dimensions)) if len(dimensions) else None
  rest = np.setdiff1d(others(own), unembedding)
  rng = np.random.default_rng(seed)
  draws = [rng.choice(rest, len(own), replace=False) for _ in range(RANDOM_DRAWS)
           ] if 0 < len(own) <= len(rest) else []
  for name, keep in (("only_random", lambda drawn: drawn), ("without_random", others)):
    each = [summary(keep(drawn)) for drawn in draws]
    result[name] = _over(each, np.mean) if each else None
    result[f"{name}_range"] = [_over(each, np.min), _over(each, np.max)] if each else None
  return result


def boost(dimensions: Ints, writes: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
  """Computes how much more of something the outlier dimensions get than a usual one.

  Args:
    dimensions: the outlier dimensions.
    writes: name -> a number a dimension, [width], such as the norms of the columns of the last
      MLP's down projection, or the final norm's gain.

  Returns:
    name -> `ratios` of the dimensions' magnitudes to the median magnitude of all, and their
    `ranks` among all, 0 for the largest.
  """
  result: dict[str, dict[str, Any]] = {}
  for name, values_D in writes.items():
    magnitudes = np.abs(np.asarray(values_D, np.float64))
    usual = np.median(magnitudes)
    ranks = (magnitudes[None] > magnitudes[dimensions][:, None]).sum(1)
    result[name] = {"ratios": (magnitudes[dimensions] / usual).tolist() if usual else None,
                    "ranks": ranks.tolist()}
  return result


def log_softmax(logits_NxV: Floats) -> Floats:
  """Computes the log of the softmax over the last axis."""
  shifted = logits_NxV - logits_NxV.max(-1, keepdims=True)
  result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  return result


def slope(x: Floats, y: Floats) -> float | None:
  """Fits the slope b of the line y = a + b x; None where x has fewer than two values."""
  if len(x) < 2 or np.ptp(x) == 0:
    return None
  centred = x - x.mean()
  return float((centred * (y - y.mean())).sum() / np.square(centred).sum())


def spearman(x: Floats, y: Floats) -> float | None:
  """Computes Spearman's rank correlation, ties sharing their mean rank; None without two values."""
  if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return None
  # Here, since it is slow to import. Its spearmanr rounds otherwise than what analyses recorded.
  from scipy.stats import rankdata
  return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _top(scores_NxV: Floats, count: int) -> npt.NDArray[np.bool_]:
  chosen = np.argpartition(-scores_NxV, count - 1, axis=1)[:, :count]
  mask = np.zeros(scores_NxV.shape, bool)
  np.put_along_axis(mask, chosen, True, axis=1)
  return mask


def _chunks(rows: int, vocab: int) -> Iterator[slice]:
  step = max(1, _LOGITS_AT_ONCE // vocab)
  return (slice(start, start + step) for start in range(0, rows, step))


def _over(summaries: list[dict[str, Any]], of: Any) -> dict[str, float | None]:
  columns = {name: [one[name] for one in summaries if one[name] is not None]
             for name in summaries[0]}
  return {name: float(of(values)) if values else None for name, values in columns.items()}
