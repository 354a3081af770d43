"""Attention on GPUs: which form serves, and the forms against attention written out."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax.config import Config
from of_jax.config import gpu_attention as forms
from of_jax.config.gpu_attention import Case, Choice, choose
from of_jax.models import gpu_attention
from of_jax.models.attention import Attention
from of_jax.models.probe import Context
from of_jax.models.written_out import attend
from of_jax.train.sharding import make_mesh
from of_jax.xla import placement

H100 = "NVIDIA H100 80GB HBM3"
LONG = Case(H100, "bfloat16", 128, 4096)
SHORT = Case(H100, "float32", 64, 128)


@pytest.mark.parametrize("case, changes, form, reasons", [
    (LONG, {}, "cudnn", ()),
    (LONG, {"card": "NVIDIA A100-SXM4-40GB"}, "cudnn", ()),
    (LONG, {"card": "NVIDIA H200"}, "cudnn", ()),
    (LONG, {"card": "NVIDIA B200"}, "cudnn", ()),
    (LONG, {"window": 512}, "cudnn", ()),
    (LONG, {"is_causal": False}, "cudnn", ()),
    (LONG, {"time": 4099}, "cudnn", ()),
    (LONG, {"head_dim": 8}, "cudnn", ()),
    (LONG, {"documents": True}, "pallas", ()),
    (LONG, {"dtype": "float32"}, "pallas", ()),
    (LONG, {"head_dim": 100}, "pallas", ()),
    (LONG, {"no_cudnn": "cuDNN is not detected"}, "pallas", ()),
    (SHORT, {}, "pallas", ()),
    (SHORT, {"time": 32}, "pallas", ()),
    (SHORT, {"documents": True}, "pallas", ()),
    (SHORT, {"time": 48}, "whole", ("float32", "48 tokens")),
    (SHORT, {"time": 1}, "whole", ("float32", "1 tokens")),
    (SHORT, {"head_dim": 8}, "blocks", ("float32", "heads of 8")),
    (SHORT, {"window": 16}, "whole", ("float32", "a window")),
    (SHORT, {"dtype": "float64"}, "whole", ("float64",)),
    (LONG, {"head_dim": 256}, "blocks", ("heads of 256",)),
    (LONG, {"card": "Tesla V100-SXM2-16GB"}, "blocks", ("on Tesla V100-SXM2-16GB",)),
    (LONG, {"card": "AMD Instinct MI300X"}, "blocks", ("on AMD Instinct MI300X",)),
    (LONG, {"window": 512, "is_causal": False}, "blocks",
     ("a window that looks ahead", "a window")),
    (LONG, {"window": 512, "documents": True}, "blocks", ("documents", "a window")),
    (LONG, {"others": ("a softcap",)}, "blocks", ("a softcap",)),
    (LONG, {"others": ("a sink", "a softcap")}, "blocks", ("a sink", "a softcap")),
    (LONG, {"others": ("a softcap",), "time": 512}, "whole", ("a softcap",)),
    (LONG, {"others": ("a softcap",), "time": 4099}, "whole", ("a softcap", "4099 tokens")),
    (LONG, {"unique": ("dropout of weights",)}, "whole", ("dropout of weights",))])
def test_the_form_follows_the_case(case: Case, changes: dict[str, Any], form: str,
                                   reasons: tuple[str, ...]) -> None:
  choice = choose(dataclasses.replace(case, **changes))
  assert (choice.form, choice.reasons) == (form, reasons)
  assert choice.is_fused == (not reasons)


def test_a_config_is_such_a_case(make_config: Callable[..., Config]) -> None:
  """Every field that a kernel does not compute is named."""
  for fields, reasons in (
      ({}, ()), ({"kv_heads": 2}, ()), ({"attention_window": 100}, ()),
      ({"attention_cap": 5.0}, ("a softcap",)),
      ({"attention_sink": "key_value"}, ("a sink",)),
      ({"attention_softmax": "clipped"}, ("clipped softmax",)),
      ({"attention_window": 100, "full_attention_every": 2},
       ("a window in some blocks alone",)),
      ({"attention_dropout": 0.1}, ("dropout of weights",))):
    config = make_config(model__compute_dtype="bfloat16", model__width=64, **{
        f"model__{name}": value for name, value in fields.items()})
    case = forms.case_of(config.model, 4096, H100)
    assert choose(case).reasons == reasons and choose(case).is_fused == (not reasons), fields
  assert Choice("blocks", ("a sink", "a softcap")).text() == (
      "unfused, some queries at a time (a sink, a softcap)")
  assert Choice("cudnn").text() == "fused, by cuDNN"


def test_where_cudnn_is_not_installed_another_form_serves() -> None:
  """As here: the reason is the library's own."""
  reason = gpu_attention.cudnn_refuses("bfloat16", 64)
  if not reason:
    pytest.skip("cuDNN is installed")
  assert "\n" not in reason
  assert choose(dataclasses.replace(LONG, no_cudnn=reason)).form == "pallas"
  windowed = dataclasses.replace(LONG, no_cudnn=reason, window=9)
  assert choose(windowed).reasons == (reason, "a window")


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_pallas_kernel_is_attention(dtype: str, tolerance: float) -> None:
  """Shared keys, a scale and documents, in value and gradient."""
  rng = np.random.default_rng(0)
  q = jnp.asarray(rng.standard_normal((2, 128, 4, 16)), dtype)
  k, v = jnp.asarray(rng.standard_normal((2, 2, 128, 2, 16)), dtype)
  documents = jnp.asarray(np.cumsum(rng.random((2, 128)) < 0.05, 1))
  mask = documents[:, :, None] == documents[:, None]
  assert 0.05 < mask.mean() < 0.8

  def written_out(q: Any, k: Any, v: Any) -> Any:
    return attend(q, k, v, mask[:, None], jax.nn.softmax, scale=0.4)

  def by_kernels(q: Any, k: Any, v: Any) -> Any:
    return gpu_attention.attend("pallas", q, k, v, documents, None, 0.4, True, interpret=True)

  cotangent = jnp.asarray(rng.standard_normal(q.shape), dtype)
  found = [[value, *pull(cotangent)] for value, pull in (
      jax.vjp(jax.jit(f), q, k, v) for f in (written_out, by_kernels))]
  for expected, ours in zip(*found):
    assert ours.dtype == dtype
    expected, ours = (np.asarray(x, np.float64) for x in (expected, ours))
    np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())


def layer(config: Config, documents: Any) -> tuple[Callable[..., Any], Any, Any]:
  """An attention layer as a function of its parameters and input, and these."""
  graph, state = nnx.split(Attention(nnx.Rngs(0), config.model))
  rng = np.random.default_rng(0)
  time = config.train.sequence_length
  x = rng.standard_normal((4, time, config.model.width)).astype(np.float32)
  positions = jnp.broadcast_to(jnp.arange(time), (4, time))
  mask = None if documents is None else (documents[:, :, None] == documents[:, None])[:, None]

  def run(state: Any, x: Any) -> Any:
    context = Context(positions, mask, layer=1, documents_BxT=documents)
    y = nnx.merge(graph, state)(x, context)
    return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

  return jax.value_and_grad(run, (0, 1), has_aux=True), state, x


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, used: list[str]) -> None:
  """Has programs be traced as for an H100, and run on what is here; notes forms as they serve."""
  monkeypatch.setattr(placement, "platform", lambda: "gpu")
  monkeypatch.setattr(gpu_attention, "card", lambda: H100)
  fused, blocks = gpu_attention.attend, gpu_attention.in_blocks

  def attend_here(form: Any, *arguments: Any) -> Any:
    used.append(form)
    return fused(form, *arguments, interpret=True)

  monkeypatch.setattr(gpu_attention, "attend", attend_here)
  monkeypatch.setattr(gpu_attention, "in_blocks", lambda *a: used.append("blocks") or blocks(*a))


def agree(expected: Any, ours: Any) -> None:
  for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(ours)):
    np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())


@pytest.mark.parametrize("fields, with_documents", [
    ({"attention_cap": 5.0, "kv_heads": 2}, False),
    ({"attention_sink": "key_value"}, True),
    ({"attention_softmax": "clipped", "softmax_zeta": 1.03}, False),
    ({"attention_window": 20, "full_attention_every": 2}, True),
    ({"attention_window": 20}, False)])
def test_a_layer_in_blocks_is_the_layer(
    fields: dict[str, Any], with_documents: bool, make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch) -> None:
  """Value and gradients; no array holds all pairs of a sequence's tokens."""
  config = make_config(train__sequence_length=96, model__positions="rotary", **{
      f"model__{name}": value for name, value in fields.items()})
  documents = jnp.asarray(
      np.cumsum(np.random.default_rng(1).random((4, 96)) < 0.05, 1)) if with_documents else None
  run, state, x = layer(config, documents)
  expected = jax.jit(run)(state, x)
  used: list[str] = []
  on_a_gpu(monkeypatch, used)
  compiled = jax.jit(lambda *a: run(*a)).lower(state, x).compile()
  assert used == ["blocks"]
  agree(expected, compiled(state, x))
  assert "96,96]" not in compiled.as_text()


def test_a_layer_by_pallas_on_a_mesh(make_config: Callable[..., Config],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
  """The same layer, its sequences and heads split over devices."""
  config = make_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__sequence_length=64,
                       model__width=64)
  documents = jnp.asarray(np.cumsum(np.random.default_rng(1).random((4, 64)) < 0.05, 1))
  run, state, x = layer(config, documents)
  expected = jax.jit(run)(state, x)
  used: list[str] = []
  on_a_gpu(monkeypatch, used)
  with jax.set_mesh(make_mesh(config)):
    ours = jax.jit(lambda *a: run(*a))(state, x)
  assert used == ["pallas"]
  agree(expected, ours)


def test_cudnn_is_asked_for_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
  """By what it is given, which the library's plain form computes here."""
  plain = functools.partial(jax.nn.dot_product_attention)
  asked: list[Any] = []

  def library(*arrays: Any, implementation: str, **options: Any) -> Any:
    asked.append(implementation)
    return plain(*arrays, **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", library)
  rng = np.random.default_rng(0)
  q = rng.standard_normal((2, 32, 4, 16)).astype(np.float32)
  k, v = rng.standard_normal((2, 2, 32, 2, 16)).astype(np.float32)
  index = np.arange(32)
  for window, is_causal in ((None, True), (None, False), (1, True), (7, True)):
    mask = (index[:, None] - index < (window or 32))[None, None]
    expected = attend(q, k, v, jnp.asarray(mask), jax.nn.softmax, scale=0.3, is_causal=is_causal)
    ours = gpu_attention.attend("cudnn", q, k, v, None, window, 0.3, is_causal)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
  assert asked == ["cudnn"] * 4


def test_flops_of_the_pallas_kernel() -> None:
  """Blocks with an allowed pair, counted one by one: 64 tokens forward, 32 backward."""
  shapes = [(2, 256, 4, 16)] * 3
  for kernel, side, products in (("mha_forward", 64, 2), ("mha_backward", 32, 7)):
    allowed = np.tril(np.ones((256, 256), bool)).reshape(
        256 // side, side, 256 // side, side).any((1, 3)).sum()
    assert gpu_attention.product_flops(kernel, shapes) == (
        products * 2 * 2 * 4 * allowed * side * side * 16)
  assert gpu_attention.product_flops("mha_preprocess_backward", shapes) == 0
  assert gpu_attention.product_flops("another", shapes) is None
