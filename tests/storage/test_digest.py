"""Digests of every dtype: any bit that changes, and any entry that moves, changes them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from of_jax.storage.digest import Damaged, check_state, digest, digest_of_state

NARROW = ("bool", "int4", "uint4", "float4_e2m1fn")
DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "int8", "uint8",
          "int16", "uint16", "int32", "uint32", "complex64", "float64", "int64", "uint64",
          "complex128")


def sums(x: Any) -> list[int]:
  return np.asarray(digest({"x": x}, 1)["params"]).tolist()


def on_device(x: np.ndarray) -> Any:
  """As a run holds it; numbers wider than jax's own stay NumPy's."""
  return x if x.dtype.itemsize > 8 or x.dtype.kind in "fiu" and x.dtype.itemsize == 8 else (
      jnp.asarray(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype: str) -> None:
  x = np.random.default_rng(0).integers(0, 256, (3, 4, jnp.dtype(dtype).itemsize), np.uint8)
  whole = x.view(jnp.dtype(dtype))[..., 0]
  before = sums(on_device(whole))
  assert before == sums(on_device(whole.copy())) != sums(on_device(whole[::-1].copy()))
  for bit in range(8 * x.shape[-1]):
    changed = x.copy()
    changed[1, 2, bit // 8] ^= 1 << bit % 8
    assert sums(on_device(changed.view(jnp.dtype(dtype))[..., 0])) != before, bit


@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_of_a_narrow_type_counts(dtype: str) -> None:
  values = np.arange(2 if dtype == "bool" else 8).astype(jnp.dtype(dtype))
  assert len({sums(jnp.asarray(values[i:i + 1]))[0] for i in range(len(values))}) == len(
      set(values.astype(float).tolist()))


def test_keys_numbers_and_nothing() -> None:
  assert sums(jax.random.key(1)) != sums(jax.random.key(2))
  assert sums(2 ** 40) != sums(2 ** 40 + 1) and sums(1.0) != sums(np.nextafter(1.0, 2))
  assert sums(jnp.zeros((0, 3))) == [0]
  assert np.asarray(digest({}, 1)["params"]).size == 0


def test_it_is_the_same_on_a_mesh() -> None:
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.bfloat16)
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  for spec in (PartitionSpec("a", "b"), PartitionSpec("b"), PartitionSpec()):
    assert sums(jax.device_put(x, NamedSharding(mesh, spec))) == sums(x)


def test_a_state_is_held_against_what_was_written() -> None:
  state = {"params": {"w": jnp.ones(3)}, "opt_state": ({"m": jnp.ones(3)}, jnp.int32(7))}
  written = digest_of_state(state["params"], state["opt_state"], 7)
  assert check_state(state, 7, written, complete=True)
  assert not check_state(state, 7, digest(state["params"], 7), complete=False)
  assert not check_state(state, 7, {}, complete=False)
  other = {**state, "opt_state": ({"m": jnp.ones(3)}, jnp.int32(6))}
  for loaded, step, there, complete, reason in (
      (other, 7, written, True, "optimiser's state is not"), (state, 8, written, True, "step 7"),
      ({**state, "params": {"w": jnp.zeros(3)}}, 7, written, True, "parameters is not"),
      (state, 7, digest(state["params"], 7), True, "gone"), (state, 7, {}, True, "gone"),
      (state, 7, written, False, "gone")):
    with pytest.raises(Damaged, match=reason):
      check_state(loaded, step, there, complete)
