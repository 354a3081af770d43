"""The kernel that reads activations once on TPU, whose instructions JAX runs here."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.telemetry import one_pass
from of_jax.telemetry.activations import Activations
from of_jax.train.sharding import make_mesh
from of_jax.xla import placement

SUMS = ("sum_ratio_G", "sum_GxD", "sum_square_GxD", "sum_square_centred_GxD")


def activations(dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
  """x [4, 64, 256] with a few large values, ties and a token of zeros that does not count."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4, 64, 256)) * np.exp(rng.standard_normal(256))
  x[1, 3, :200] = 0.5
  x[2, 9] *= 1e12
  x[3, 1] = 0
  weights = rng.random((4, 64)) < 0.8
  weights[3, 1], weights[1, 3], weights[2, 9] = False, True, True
  first = jnp.broadcast_to(jnp.arange(64) % 32 == 0, (4, 64))
  return jnp.asarray(x, dtype), first, jnp.asarray(weights, jnp.float32)


@pytest.mark.parametrize("dtype, sequences", (("float32", 4), ("bfloat16", 4), ("float32", 1)))
def test_the_kernels_sums(dtype: str, sequences: int) -> None:
  """Against NumPy in float64; the median to its 2^-14, and to the last bit of bfloat16's. A single
  sequence is read in the other order."""
  x, first, weights = (array.reshape(sequences, -1, *array.shape[2:])
                       for array in activations(dtype))
  ours = one_pass.ReadOnce(x, first, weights, interpret=True)
  x64 = np.asarray(x, np.float64)
  size = np.abs(x64)
  with np.errstate(divide="ignore", invalid="ignore"):
    ratio = size.max(-1) / np.median(size, -1)
  centred = x64 - x64.mean(-1, keepdims=True)
  for group, counts in enumerate((first & (weights > 0), ~first & (weights > 0))):
    counts = np.asarray(counts)
    expected = (ratio[counts].sum(), x64[counts].sum(0), (x64[counts] ** 2).sum(0),
                (centred[counts] ** 2).sum(0))
    for name, value in zip(SUMS, expected):
      # Of what is added or subtracted, not of what is left where it cancels.
      scale = {"sum_GxD": size[counts].sum(0), "sum_square_centred_GxD": np.square(
          size + np.abs(x64.mean(-1, keepdims=True)))[counts].sum(0)}.get(name, value)
      tolerance = 2 ** -14 if (name, dtype) == ("sum_ratio_G", "float32") else 2e-6
      assert np.all(np.abs(getattr(ours, name)[group] - value) <= tolerance * scale), name
    assert ours.max_G[group] == size[counts].max()


def test_what_cannot_be_squared_is_left_out(make_config: Callable[..., Config],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
  """As without the kernel, over eight devices: one group's NaN is not the other's."""
  x, first, weights = activations("float32")
  x, first, weights = (jnp.concatenate([a] * 2, 1) for a in (x, first, weights))
  x = jnp.concatenate([x, x])  # Eight sequences of 128 tokens, for a block a device.
  first, weights = (jnp.concatenate([a, a]) for a in (first, weights))
  x = x.at[6, 4, 7].set(1e30).at[5, 6, 0].set(jnp.nan)
  weights = weights.at[6, 4].set(1).at[5, 6].set(1)
  expected = Activations(x, first, weights)
  monkeypatch.setattr(placement, "platform", lambda: "tpu")
  monkeypatch.setattr(one_pass, "ReadOnce", functools.partial(one_pass.ReadOnce, interpret=True))

  def read(x: jax.Array) -> list[jax.Array]:
    found = one_pass.read(x, first, weights)
    assert type(found) is not Activations
    return [getattr(found, name) for name in (*SUMS, "max_G", "is_within_G")]

  with jax.set_mesh(make_mesh(make_config(mesh__data=2, mesh__fsdp=4))):
    ours = jax.jit(read)(x)
  assert expected.is_within_G.tolist() == [True, False] and np.isnan(expected.max_G[1])
  for name, value in zip((*SUMS, "max_G", "is_within_G"), ours):
    # Values of 1e12 stand in the sums: what is added in another order differs by their rounding.
    np.testing.assert_allclose(value, getattr(expected, name), rtol=2e-6, atol=1e7, err_msg=name)


def test_where_the_kernel_serves(monkeypatch: pytest.MonkeyPatch) -> None:
  def serves(*shape: int, dtype: str = "bfloat16") -> bool:
    return one_pass.serves(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)))

  assert not serves(2, 128, 256)  # This is a CPU.
  monkeypatch.setattr(placement, "platform", lambda: "tpu")
  assert serves(2, 128, 256) and serves(8, 16, 8192, dtype="float32")
  assert not (serves(2, 128, 200) or serves(2, 100, 256) or serves(2, 128, 16384)
              or serves(2, 128, 256, dtype="float16"))


def test_flops_of_the_kernel() -> None:
  """A pass over 22 bits of float32, 15 of bfloat16, and one more: 2 flops an element each."""
  for dtype, passes in (("float32", 22), ("bfloat16", 15)):
    products = 3 * 2 * 8 * 128 * 256
    assert one_pass.flops((128, 256), dtype) == (
        128 * 256 * (2 * (passes + 1) + 12) + products, products)


def test_members_trained_together() -> None:
  """Under vmap, as in a vectorised sweep, each member has its own sums."""
  x, first, weights = activations("bfloat16")
  members = jnp.stack([x, 2 * x])

  def sums(x: jax.Array) -> list[jax.Array]:
    found = one_pass.ReadOnce(x, first, weights, interpret=True)
    return [getattr(found, name) for name in SUMS]

  for ours, alone, times in zip(jax.vmap(sums)(members), sums(x), (1, 2, 4, 4)):
    np.testing.assert_array_equal(ours, jnp.stack([alone, times * alone]))
