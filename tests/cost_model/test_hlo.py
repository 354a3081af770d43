"""What is read off a program's text: against formulas, against the compiler, and by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from of_jax.config import Config
from of_jax.cost_model import hlo, hlo_groups, hlo_products, hlo_text
from of_jax.objectives.tasks import task_of
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.trainer import make_trainer

# The TPU compiler's forms, in a program small enough to count by hand. A loop of 4 (its count is in
# the condition alone) holds a matrix product, written as a convolution, of [16, 32] and [32, 64],
# and a gather of [32, 64] bf16 over 8 chips that is started in one fusion and waited for in
# another; behind the loop an all-reduce whose parts are kept, over pairs.
TPU_TEXT = (Path(__file__).parent / "tpu_program.hlo").read_text()


def test_the_tpu_compilers_forms_by_hand() -> None:
  program = hlo.read(TPU_TEXT)
  assert program.uncounted == ()
  assert program.matrix_flops == 4 * 2 * 16 * 32 * 64
  assert program.cycles == 4 * 500
  gathered, reduced = 32 * 64 * 2, 4 * 16 * 64 * 4
  assert program.by_kind() == {"all-gather": {"count": 4, "bytes": 4 * gathered},
                               "reduce-scatter": {"count": 1, "bytes": reduced}}
  sent = {c.kind: (c.group, c.sent) for c in program.collectives}
  assert sent == {"all-gather": (8, gathered * 7 / 8), "reduce-scatter": (2, reduced / 2)}
  runs = {op.name: (op.trips, op.bytes) for op in program.operations}
  # A slice is read and written, not the stack; what lies on the chip costs no memory traffic; an
  # update in place writes a row.
  assert runs["slice"] == (4, 2 * 16 * 32 * 4 + 4 + 2 * 4)
  assert runs["fusion.2"] == (4, 4 * 64 * 2)
  assert runs["fusion.3"] == (4, 16 * 32 * 4 + 16 * 64 * 4 + 4)


# The GPU compiler's forms, by hand likewise: cuDNN's attention of two sequences of 128 tokens, four
# heads of 16 and half as many of keys, forward within a window of 100 tokens and backward without a
# mask; two kernels of Pallas; a product of [64, 32] and [32, 16] by cuBLAS, one by a fusion; sums
# over pairs of four GPUs, 0 and 2, then 0 and 1.
GPU_TEXT = (Path(__file__).parent / "gpu_program.hlo").read_text()


def test_the_gpu_compilers_forms_by_hand() -> None:
  asked = []

  def kernels(name: str, shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    asked.append((name, shapes))
    return 7, 5

  program = hlo.read(GPU_TEXT, kernels)
  assert program.uncounted == ()
  assert {name: len(shapes) for name, shapes in asked} == {"mha_forward": 3, "mha_backward": 4}
  assert all(shape == (2, 64, 4, 16) for _, shapes in asked for shape in shapes)
  flops = {op.name: op.matrix_flops for op in program.operations}
  pairs = sum(min(i + 1, 100) for i in range(128))
  assert flops["dot_product_attention_fwd.5"] == 2 * 2 * 2 * 4 * pairs * 16
  assert flops["dot_product_attention_bwd.8"] == 5 * 2 * 2 * 4 * 128 ** 2 * 16
  assert flops["pallas_call.0"] == flops["pallas_call.12"] == 5
  assert flops["cublas-gemm.1"] == flops["gemm_fusion_dot.1"] == 2 * 64 * 32 * 16
  moved = {op.name: op.bytes for op in program.operations}
  query, keys, sums = 2 * 128 * 4 * 16 * 2, 2 * 128 * 2 * 16 * 2, 2 * 4 * 128 * 4
  assert moved["dot_product_attention_fwd.5"] == 2 * query + 2 * keys + sums
  assert moved["dot_product_attention_bwd.8"] == 4 * query + 4 * keys + sums
  assert [c.groups for c in program.collectives] == [((0, 2), (1, 3)), ((0, 1), (2, 3))]
  assert hlo.read(GPU_TEXT).uncounted == ("__gpu$xla.gpu.triton",)


@pytest.mark.parametrize("text, groups", [
    ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("replica_groups={{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
    ("channel_id=1, source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}",
     [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'b'}",
     [[7, 6, 5, 4], [3, 2, 1, 0]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}", [[0, 1, 4, 5], [2, 3, 6, 7]])])
def test_groups_of_devices_by_hand(text: str, groups: list[list[int]]) -> None:
  instruction = hlo_text.Instruction("x", (), "all-reduce", (), "", text, False)
  assert [list(group) for group in hlo_groups.device_groups(instruction, 8)] == groups
  hosts = (0, 0, 0, 0, 1, 1, 1, 1)
  spans = any(len({device // 4 for device in group}) == 2 for group in groups)
  assert hlo_groups.spans_hosts(tuple(map(tuple, groups)), hosts) == spans
  with pytest.raises(ValueError, match="not known"):
    hlo_groups.device_groups(dataclasses.replace(instruction, attributes="groups=1"), 8)


def test_a_kernel_counts_as_told() -> None:
  """One with a description of itself that goes over lines."""
  text = """HloModule m

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %mine.3 = f32[4,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block\\": 1}"
}}, metadata={op_name="jit(f)/while/body/mine/pallas_call" stack_frame_id=1}
  ROOT %copied = f32[4,8]{1,0} copy(%mine.3)
}
"""
  program = hlo.read(text, lambda name, shapes: (7, 5) if (name, shapes) == (
      "mine", [(4, 8)]) else None)
  assert (program.flops, program.matrix_flops, program.uncounted) == (7, 5, ())
  assert program.bytes == 4 * 4 * 8 * 4  # Both read an array and write one.
  assert hlo.read(text).uncounted == ("tpu_custom_call",)


def lowered(make_config: Callable[..., Config], **fields: object) -> tuple[hlo.Program, float, int]:
  """The CPU program of a train step, 6 N D and attention, and the number of devices."""
  config = make_config(telemetry__level="off", model__depth=2, **fields)
  mesh = make_mesh(config)
  shape = (config.train.batch_size, config.train.sequence_length)
  batch = {"inputs": np.zeros(shape, np.int32), "targets": np.zeros(shape, np.int32),
           "weights": np.ones(shape, np.float32)}
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    compiled = trainer.step.lower(jax.eval_shape(trainer.init, jax.random.key(0)),
                                  place_batch(mesh, batch), jax.random.key(1)).compile()
  flops_per_token = task_of(config.model.kind).flops_per_token(config, trainer.network)
  formula = flops_per_token * shape[0] * shape[1]
  return hlo.read(compiled.as_text()), formula, mesh.size


def test_flops_of_a_step_are_six_n_d_and_attention(make_config: Callable[..., Config]) -> None:
  """Scanned, over eight devices, or unrolled, on one."""
  mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  for fields in ({"model__scan_layers": True, **mesh}, {"model__scan_layers": False}):
    program, formula, devices = lowered(make_config, **fields)
    assert program.uncounted == () and bool(program.collectives) == (devices == 8)
    assert program.matrix_flops * devices == pytest.approx(formula, rel=0.02)


def test_a_loops_collectives_count_as_often_as_it_runs() -> None:
  """Five products over a split axis, each with a sum over the mesh."""
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec(None, "x", None))

  def f(x: jax.Array, stack: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

  compiled = jax.jit(f, in_shardings=(None, rows)).lower(
      jnp.zeros((16, 32)), jnp.zeros((5, 32, 32))).compile()
  program = hlo.read(compiled.as_text())
  assert program.matrix_flops == 5 * 2 * 16 * 32 * 32 / 8
  assert program.by_kind() == {"all-reduce": {"count": 5, "bytes": 5 * 16 * 32 * 4}}
  assert {c.group for c in program.collectives} == {8}


def test_agrees_with_the_compiler_where_there_is_no_loop() -> None:
  """Flops to the last, bytes to a tenth; sums over the mesh as many and as large as written."""
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("x"))

  def f(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w).sum(0) + jnp.exp(w).sum(0)

  compiled = jax.jit(f, in_shardings=(split, None)).lower(
      jnp.zeros((64, 32)), jnp.zeros((32, 48))).compile()
  program, known = hlo.read(compiled.as_text()), compiled.cost_analysis()
  assert program.matrix_flops == 2 * 8 * 32 * 48
  # XLA counts tanh and exp apart, as transcendentals.
  assert program.flops == pytest.approx(known["flops"] + known["transcendentals"], rel=0.02)
  assert program.bytes == pytest.approx(known["bytes accessed"], rel=0.1)
  assert program.by_kind() == {"all-reduce": {"count": 1, "bytes": 48 * 4}}


def test_products_of_a_convolution_that_count() -> None:
  """Against every pair of positions, one by one."""
  rng = np.random.default_rng(0)
  for _ in range(300):
    length, kernel, stride, left, right = (int(n) for n in rng.integers(1, 6, 5))
    pad, extra = (int(n) for n in rng.integers(0, 4, 2))
    end = (length - 1) * left + 1
    result = (end + pad + extra - ((kernel - 1) * right + 1)) // stride + 1
    if result < 1:
      continue
    inputs = [(at - pad) // left for at in range(end + pad + extra)
              if 0 <= at - pad < end and (at - pad) % left == 0]
    assert len(inputs) == length
    occupied = {index * left + pad for index in range(length)}
    expected = sum(p * stride + k * right in occupied
                   for p in range(result) for k in range(kernel))
    assert hlo_products.valid_pairs(length, kernel, result, stride, pad, left, right) == expected
