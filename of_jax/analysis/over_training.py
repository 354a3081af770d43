"""Analyses over the checkpoints of a run. Enters: a run directory and steps. Leaves: one object
for JSON each, with its definitions beside its numbers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from of_jax.analysis import composition as composition_lib
from of_jax.analysis import outlier_dimensions as outliers
from of_jax.analysis import sparsity as sparsity_lib
from of_jax.analysis import spectra as spectra_lib
from of_jax.analysis.evaluation import Batch, Model, measure, network_of, observed
from of_jax.analysis.interventions import Intervention
from of_jax.analysis.replay import Restored, corpus_batches, restore
from of_jax.config import Config
from of_jax.data.corpora import prepare
from of_jax.data.folder import Corpus
from of_jax.errors import UserError
from of_jax.models.probe import Observer, Statistics
from of_jax.storage import remote

Floats = npt.NDArray[np.float64]

# Of the paper about 5,000 contexts of 100 words; ours are windows of the config's length.
CONTEXTS = 512
SPARSITY_TOKENS = 2 * sparsity_lib.BATCH_TOKENS
# Units active for less than this share of tokens are pruned.
RARE = 0.01


@dataclasses.dataclass(frozen=True)
class _LastToken:
  """The activation of each sequence's last token."""

  def __call__(self, weights_BxT: jax.Array) -> Observer:
    del weights_BxT

    def observe(site: str, x_BxTxD: jax.Array, first_BxT: jax.Array | None
                ) -> Statistics | None:
      del first_BxT
      return {"last": x_BxTxD[:, -1].astype(jnp.float32)} if site in ("final", "mlp_out") else None

    return observe


@dataclasses.dataclass(frozen=True)
class Contexts:
  """Representations that predict the token behind each context.

  Attributes:
    h_NxD: what the unembedding reads at the context's last token.
    mlp_NxD: what the last block's MLP adds there.
    targets_N: the token that came.
  """

  h_NxD: npt.NDArray[np.float32]
  mlp_NxD: npt.NDArray[np.float32]
  targets_N: npt.NDArray[np.int64]


def contexts(model: Model, batches: Sequence[Batch]) -> Contexts:
  """Collects the last token of every sequence of the batches where it has any weight."""
  final, mlp, targets = [], [], []
  for batch, kept in observed(model, batches, _LastToken()):
    rows = batch["weights"][:, -1] > 0
    final.append(kept["final"]["last"][0][rows])
    mlp.append(kept["mlp_out"]["last"][-1][rows])
    targets.append(batch["targets"][:, -1][rows])
  return Contexts(np.concatenate(final), np.concatenate(mlp),
                  np.concatenate(targets).astype(np.int64))


def outlier_dimensions(run: Path, steps: Sequence[int]) -> dict[str, Any]:
  """Analyses outlier dimensions as Macocco et al. do, at checkpoints, see
  of_jax.analysis.outlier_dimensions."""
  found, corpus, batches, counts_V = [], None, [], np.zeros(0, np.int64)
  for step in steps:
    model = restore(run, step)
    if corpus is None:
      corpus = _tokens(model)
      batches = _held_out(model.config, corpus, CONTEXTS)
      counts_V = token_counts(corpus.train, model.config.data.vocab_size)
    read = contexts(model, batches)
    table_DxV = unembedding(model)
    result = outliers.ablations(read.h_NxD, table_DxV, read.targets_N, counts_V)
    dimensions = np.asarray(result["outlier_dimensions"], np.int64)
    found.append({"step": step, **result, "boost": outliers.boost(
        dimensions, last_writes(model, read.mlp_NxD))})
  return {
      "analysis": "outlier_dimensions", "run": remote.name_of(run), "contexts": len(read.h_NxD),
      "definition": "dimensions of what the unembedding reads at each context's last token whose "
      "median magnitude over contexts exceeds the 0.99 quantile of all magnitudes "
      "(Macocco et al. 2025, 2503.21718)",
      "corpus_sha256": corpus.corpus_sha256 if corpus else "", "steps": found}


def sparsity(run: Path, steps: Sequence[int]) -> dict[str, Any]:
  """Analyses activity of the MLPs' hidden units at checkpoints, see of_jax.analysis.sparsity."""
  found: list[dict[str, Any]] = []
  batches, dead = None, []
  for step in steps:
    model = restore(run, step)
    if batches is None:
      corpus = _tokens(model)
      batches = _held_out(model.config, corpus, -(-SPARSITY_TOKENS
                                                  // model.config.train.sequence_length))
    active = sparsity_lib.activity(model, batches)
    dead.append(active.dead_LxF)
    found.append({"step": step, "layers": active.by_layer()})
  for entry, layers in zip(found, sparsity_lib.turnover(dead)):
    for row, more in zip(entry["layers"], layers):
      row.update(more)
  return {
      "analysis": "sparsity", "run": remote.name_of(run), "tokens": int(sum(
          b["weights"].sum() for b in batches or [])), "batch_tokens": active.batch_tokens,
      "definition": "active: a hidden unit of an MLP that is not zero; shares of units active for "
      "a token, at least once in a sequence, at least once in a batch; dead: never on the whole "
      "held-out set, not only in a batch as the metric dead_fraction (after Wild & Anderson 2024, "
      "2407.07848)", "steps": found,
      "pruning": pruning(model, batches or [])}


def pruning(model: Model, batches: Sequence[Batch]) -> dict[str, Any]:
  """Measures what zeroing the rarely active hidden units does to the loss.

  Which are rare, active for less than RARE of the tokens, is read off the first half of the
  batches; the loss is that of the second half. Empty where there are fewer than two batches.
  """
  half = len(batches) // 2
  if not half:
    return {}
  frequency_LxF = sparsity_lib.activity(model, batches[:half]).frequency_LxF
  rare = [np.flatnonzero(units < RARE) for units in frequency_LxF]
  zeros = [Intervention("zero", sparsity_lib.SITE, tuple(map(int, units)), layer)
           for layer, units in enumerate(rare) if len(units)]
  # One metric at one site, since something must be watched.
  loss, pruned = (measure(model, batches[half:], ("final",), ("rms",), (), changes,
                          [None] * len(changes))["loss"] for changes in ([], zeros))
  return {"definition": "units active for less than the threshold's share of the tokens of the "
          "first half of the held-out batches are zeroed; losses are those of the second half",
          "threshold": RARE, "share": sum(map(len, rare)) / frequency_LxF.size,
          "share_by_layer": [len(units) / frequency_LxF.shape[1] for units in rare],
          "loss": loss, "loss_pruned": pruned, "loss_change": pruned - loss}


def spectra(run: Path, steps: Sequence[int]) -> dict[str, Any]:
  """Analyses singular values of hidden matrices at checkpoints, see of_jax.analysis.spectra."""
  found = []
  for step in steps:
    model = restore(run, step)
    found.append({"step": step, "matrices": spectra_lib.spectra(model.config, model.params)})
  return {
      "analysis": "spectra", "run": remote.name_of(run), "definition": "of every hidden matrix W "
      "of every layer: top singular value s_1, Frobenius norm |W|_F, stable rank |W|_F^2 / s_1^2",
      "steps": found}


def composition(run: Path, steps: Sequence[int]) -> dict[str, Any]:
  """Analyses which heads read which heads' outputs, see of_jax.analysis.composition."""
  found = []
  for step in steps:
    model = restore(run, step)
    found.append({"step": step, **composition_lib.composition(model.config, model.params)})
  return {
      "analysis": "composition", "run": remote.name_of(run), "definition":
      "score |A B|_F / (|A|_F |B|_F), A = W_OV of a head, B = W_QK (q), W_QK^T (k) or W_OV (v) of "
      "a head of a later block; component score |v_i^T B| / |B|_F, v_i the directions that the "
      "first head writes; random matrices have about 1 / sqrt(width). Positions, offsets and "
      "QK-norm are left out",
      "steps": found}


def unembedding(model: Model) -> npt.NDArray[np.float32]:
  """Computes the matrix that makes logits of the final representation, [width, vocabulary]."""
  return np.asarray(_unembedding(model.config)(model.params))


@functools.lru_cache(maxsize=4)
def _unembedding(config: Config) -> Any:
  tokens = jnp.zeros((1, 1), jnp.int32)
  return jax.jit(lambda params: network_of(config).stream(params, tokens)[1])


def last_writes(model: Model, mlp_NxD: npt.NDArray[np.float32]) -> dict[str, Floats]:
  """Finds what may boost a dimension of the final representation, a number a dimension.

  `down_projection`, the norms of the columns of the last MLP's down projection; `mlp_output`, the
  median magnitude of what that MLP adds to the stream; `final_norm_gain`, where there is one.
  Empty where a projection stands before the unembedding: dimensions of the stream are then not
  those of the representation.
  """
  if model.config.model.embedding_projection:
    return {}
  stacks = model.params["stacks"]
  down_FxD = np.asarray(stacks[max(stacks, key=int)]["mlp"]["down"]["kernel"][-1], np.float64)
  found = {"down_projection": np.linalg.norm(down_FxD, axis=0),
           "mlp_output": np.median(np.abs(mlp_NxD.astype(np.float64)), axis=0)}
  gain = model.params.get("final_norm", {}).get("scale")
  if gain is not None and np.ndim(gain) == 1:
    found["final_norm_gain"] = np.asarray(gain, np.float64)
  return found


def token_counts(tokens: npt.NDArray[np.integer], vocab_size: int) -> npt.NDArray[np.int64]:
  """Counts how often each token occurs: [vocabulary]."""
  counts, chunk = np.zeros(vocab_size, np.int64), 1 << 24
  for start in range(0, len(tokens), chunk):
    counts += np.bincount(tokens[start:start + chunk], minlength=vocab_size)
  return counts


def _tokens(model: Restored) -> Corpus:
  corpus = prepare(model.config.data, lambda line: None)
  if not isinstance(corpus, Corpus):
    raise UserError(f"{model.path}: reads images; this analysis is of tokens")
  return corpus


def _held_out(config: Config, corpus: Corpus, sequences: int) -> list[Batch]:
  """`sequences` windows evenly spread over the validation tokens, or all there are."""
  windows = (len(corpus.validation) - 1) // config.train.sequence_length
  data = dataclasses.replace(config.data, eval_sequences=min(sequences, windows))
  return corpus_batches(dataclasses.replace(config, data=data), corpus)
