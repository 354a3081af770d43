"""Attention by TPU kernels, whose instructions JAX runs here, against attention written out."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from of_jax.config import Config
from of_jax.models import splash
from of_jax.models.attention import Attention
from of_jax.models.probe import Context
from of_jax.models.written_out import attend
from of_jax.train.sharding import make_mesh
from of_jax.xla import placement


def test_kernels_are_attention() -> None:
  """Shared keys, a window, a cap, a scale and documents, in value and gradient."""
  rng = np.random.default_rng(0)
  q = rng.standard_normal((2, 256, 4, 16)).astype(np.float32)
  k, v = rng.standard_normal((2, 2, 256, 2, 16)).astype(np.float32)
  documents = np.cumsum(rng.random((2, 256)) < 0.02, 1)
  near = np.arange(256)[:, None] - np.arange(256) < 100
  mask = near & (documents[:, :, None] == documents[:, None])
  assert 0.02 < mask.mean() < near.mean()

  def written_out(q: Any, k: Any, v: Any) -> Any:
    return attend(q, k, v, mask[:, None], jax.nn.softmax, cap=2.0, scale=0.4)

  def by_kernels(q: Any, k: Any, v: Any) -> Any:
    return splash.attend(q, k, v, jnp.asarray(documents), 100, cap=2.0, scale=0.4, interpret=True)

  cotangent = rng.standard_normal(q.shape).astype(np.float32)
  found = [[value, *pull(cotangent)] for value, pull in (
      jax.vjp(jax.jit(f), q, k, v) for f in (written_out, by_kernels))]
  for expected, ours in zip(*found):
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_a_layer_by_kernels_on_a_mesh(make_config: Callable[..., Config],
                                      monkeypatch: pytest.MonkeyPatch) -> None:
  """Where the platform is TPU: the same layer, its sequences and heads split over devices."""
  config = make_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__sequence_length=128)
  model = config.model
  graph, state = nnx.split(Attention(nnx.Rngs(0), model))
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4, 128, 32)).astype(np.float32)
  documents = jnp.asarray(np.cumsum(rng.random((4, 128)) < 0.03, 1))
  mask = (documents[:, :, None] == documents[:, None])[:, None]
  positions = jnp.broadcast_to(jnp.arange(128), (4, 128))

  def run(state: Any, x: Any) -> Any:
    return nnx.merge(graph, state)(x, Context(positions, mask, documents_BxT=documents))

  expected = jax.jit(run)(state, x)
  calls = []
  by_kernels = functools.partial(splash.attend, interpret=True)
  monkeypatch.setattr(placement, "platform", lambda: "tpu")
  monkeypatch.setattr(splash, "attend", lambda *a: calls.append(a) or by_kernels(*a))
  with jax.set_mesh(make_mesh(config)):
    ours = jax.jit(lambda *a: run(*a))(state, x)
  assert len(calls) == 1
  np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_where_the_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
  def serves(time: int, dtype: Any = jnp.bfloat16, sources: int | None = None) -> bool:
    return splash.serves(jax.ShapeDtypeStruct((2, time, 4, 64), dtype),
                         jax.ShapeDtypeStruct((2, sources or time, 2, 64), dtype))

  assert not serves(4096)  # This is a CPU.
  monkeypatch.setattr(placement, "platform", lambda: "tpu")
  assert serves(4096) and serves(384, jnp.float32)
  # Short, of no whole registers, too wide a type, with a sink.
  assert not (serves(256) or serves(4100) or serves(4096, jnp.float64))
  assert not serves(4096, sources=4097)


def test_what_the_kernels_compute() -> None:
  """Blocks counted one by one; two products of 512 x 512 x 64 forward, three and four backward."""
  for time, window in ((384, None), (1024, None), (2048, 512), (2048, 513), (2048, 514), (640, 1)):
    side = splash.block_size(time)
    back = np.arange(time)[:, None] - np.arange(time)
    allowed = (back >= 0) & (back < (window or time))
    tiles = allowed.reshape(time // side, side, time // side, side).any((1, 3))
    assert splash.blocks(time, window) == tiles.sum()
  assert [splash.block_size(time) for time in (128, 640, 768, 4096)] == [128, 128, 384, 512]
  shapes = [(1, 8, 8), (2, 4, 1024, 64), (2, 2, 1024, 64)]
  for name, products in (("fwd", 2), ("fwd_segmented", 2), ("dq_no", 3), ("dkv_no", 4)):
    assert splash.product_flops(f"splash_mha_{name}_residuals", shapes, None) == (
        2 * 4 * 3 * products * 2 * 512 * 512 * 64)
    # As the compiler has it of one sequence and one head: what to visit, documents, queries, keys
    # and sums of weights.
    alone = [(1, 2, 2), (1024, 128), (1, 1024, 64), (1, 1024, 64), (1, 8, 1024)]
    assert splash.product_flops(f"splash_mha_{name}_residuals", alone, None) == (
        3 * products * 2 * 512 * 512 * 64)
  assert splash.product_flops("another", shapes, None) is None
