"""Forms of attention on an NVIDIA GPU, and which serves: read without importing jax.

Written out, [batch, heads, time, time] logits are most of what a step at 4,096 tokens moves and
holds. `choose` takes the first form that computes the function asked for; of_jax.models has them:

  cudnn   cuDNN's flash attention, fused
  pallas  JAX's Pallas kernel, fused: what cuDNN does not take, as float32 and documents
  blocks  unfused, some queries at a time, computed again in the backward pass: what neither takes
  whole   unfused, all pairs of tokens at once, as on a CPU: dropout of weights, and sequences so
          short that the logits are not what memory goes to
"""

import dataclasses
from typing import Literal

from of_jax.config.kinds import kind_of
from of_jax.config.model_section import ModelConfig
from of_jax.config.sections import Config

Form = Literal["cudnn", "pallas", "blocks", "whole"]
# Cards whose tensor cores the fused kernels are made for, by how jax's `device_kind` begins.
CARDS = ("NVIDIA A100", "NVIDIA H100", "NVIDIA H200", "NVIDIA GH200", "NVIDIA B200", "NVIDIA GB200")
# One of them, for what is said where no GPU is at hand.
USUAL_CARD = "NVIDIA H100"
# What Triton multiplies is at least so long and wide.
LEAST = 16
# Tokens of a block of the Pallas kernel: forward, backward.
FORWARD, BACKWARD = 64, 32
# Queries at a time, of the unfused form.
_QUERIES = 512


@dataclasses.dataclass(frozen=True)
class Case:
  """Everything that decides on the form.

  Attributes:
    card: jax's `device_kind`.
    dtype: of queries, keys and values.
    head_dim, time: their sizes.
    is_causal: whether a query sees no key behind it.
    documents: whether attention stays within a document.
    window: tokens that a query sees, or None.
    no_cudnn: why cuDNN cannot be asked at all, "" where it can.
    others: what else there is that no kernel computes, each in a few words.
    unique: what cannot be computed for some queries at a time either, likewise.
  """

  card: str
  dtype: str
  head_dim: int
  time: int
  is_causal: bool = True
  documents: bool = False
  window: int | None = None
  no_cudnn: str = ""
  others: tuple[str, ...] = ()
  unique: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Choice:
  """A form, and what kept the fused ones from serving."""

  form: Form
  reasons: tuple[str, ...] = ()

  @property
  def is_fused(self) -> bool:
    """Whether one kernel computes it."""
    return self.form in ("cudnn", "pallas")

  def text(self) -> str:
    """Says it in a few words."""
    form = {"cudnn": "fused, by cuDNN", "pallas": "fused, by a Pallas kernel",
            "blocks": "unfused, some queries at a time",
            "whole": "unfused, all pairs of tokens at once"}[self.form]
    return f"{form} ({', '.join(self.reasons)})" if self.reasons and not self.is_fused else form


def choose(case: Case) -> Choice:
  """Chooses the form of attention on a GPU, see the module."""
  common = (*case.others, *case.unique)
  if not case.card.startswith(CARDS):
    common = (f"on {case.card}", *common)
  cudnn = [*common, *([case.no_cudnn] if case.no_cudnn else [])]
  if case.dtype not in ("bfloat16", "float16"):
    cudnn.append(case.dtype)
  if case.head_dim > 128 or case.head_dim % 8:
    cudnn.append(f"heads of {case.head_dim}")
  if case.documents:
    cudnn.append("documents")
  if case.window is not None and not case.is_causal:
    cudnn.append("a window that looks ahead")
  if not cudnn:
    return Choice("cudnn")
  pallas = [*common]
  if case.dtype not in ("bfloat16", "float16", "float32"):
    pallas.append(case.dtype)
  if not LEAST <= case.head_dim <= 128:
    pallas.append(f"heads of {case.head_dim}")
  if case.window is not None:
    pallas.append("a window")
  if case.time % FORWARD and case.time not in (LEAST, 2 * LEAST):
    pallas.append(f"{case.time} tokens")
  if not pallas:
    return Choice("pallas")
  reasons = tuple(dict.fromkeys([*cudnn, *pallas]))
  if case.unique or case.time <= 4 * case.head_dim or block_size(case.time) == case.time:
    return Choice("whole", reasons)
  return Choice("blocks", reasons)


def case_of(model: ModelConfig, time: int, card: str, *, is_causal: bool = True,
            documents: bool = False, drops: bool | None = None, others: tuple[str, ...] = (),
            unique: tuple[str, ...] = ()) -> Case:
  """Reads off a resolved config what decides, for `time` tokens.

  Args:
    drops: whether weights are dropped, by default as in training.
    others, unique: what there is beside what the config says.
  """
  assert model.head_dim is not None, "resolve the config first"
  drops = bool(model.attention_dropout) if drops is None else drops
  alternates = None not in (model.attention_window, model.full_attention_every)
  found = {
      "a softcap": model.attention_cap is not None,
      "a sink": model.attention_sink != "none",
      f"{model.attention_softmax} softmax": model.attention_softmax != "plain",
      "a window in some blocks alone": alternates}
  return Case(
      card, model.compute_dtype, model.head_dim, time, is_causal, documents,
      None if alternates else model.attention_window,
      others=(*(name for name, is_so in found.items() if is_so), *others),
      unique=(*(("dropout of weights",) if drops else ()), *unique))


def choice_of(config: Config, card: str) -> Choice | None:
  """Chooses for the training of a resolved config on a card; None where nothing has a softmax."""
  model = config.model
  if not kind_of(model.kind).has_attention or model.attention != "softmax":
    return None
  return choose(case_of(model, config.train.sequence_length, card,
                        documents=not config.data.cross_documents))


def block_size(time: int) -> int:
  """Finds how many queries of a sequence the unfused form takes at a time.

  The largest divisor up to _QUERIES; the whole sequence where none is worth a loop.
  """
  largest = max((size for size in range(1, min(_QUERIES, time // 2) + 1) if time % size == 0),
                default=1)
  return largest if largest >= LEAST else time
