"""GPUs that are not there: their figures, what follows from them, and the real compiler's steps."""

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from of_jax import config as config_lib
from of_jax.commands import ladder_pages
from of_jax.config import Config, presets
from of_jax.cost_model import gpus, topology
from of_jax.cost_model.chips import peak_flops
from of_jax.cost_model.gpus import GPUS, Gpu
from of_jax.errors import UserError
from of_jax.train import ahead_of_time, environment, startup
from tests.train.programs import compiled

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "gpu_programs.json"
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="the GPU compiler is the extra `gpu-compiler`")


def test_hosts_that_exist() -> None:
  for name, gpu, shape in (("h100:8", "h100", (1, 8)), ("h100:1", "h100", (1, 1)),
                           ("a100:16x8", "a100", (16, 8)), ("h200:2x4", "h200", (2, 4)),
                           ("b200:512x8", "b200", (512, 8))):
    assert topology.parse_topology(name) == (GPUS[gpu], shape)
    assert topology.platform(name) == "gpu"
  assert topology.platform("v5e:2x4") == "tpu"


def test_figures_agree_with_each_other() -> None:
  """The tensor cores' peak is what the cores do in a clock times the clock, flops a core and clock
  as the white papers have them; B200's clock is the driver's, above that of the peak."""
  per_clock = {"a100": 2048, "h100": 4096, "h200": 4096, "b200": 8192}
  for name, gpu in GPUS.items():
    ratio = gpu.cores * per_clock[name] * gpu.clock_ghz * 1e9 / gpu.flops
    assert ratio == pytest.approx(1, abs=0.002 if name != "b200" else 0.1), name
    assert peak_flops(gpu.device_kind) == gpu.flops
    text = gpu.target()
    for field, value in (("core_count", gpu.cores), ("l2_cache_size", gpu.l2_bytes),
                         ("memory_bandwidth", round(gpu.hbm_bandwidth))):
      assert f"{field}: {value}\n" in text
    assert text.count("{") == text.count("}") and f'"{gpu.device_kind}"' in text
  assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H200 NVL") == 835e12


def test_a_missing_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"GPU compiler is not .*'\.\[gpu-compiler\]'"):
    topology.check_compiler("gpu")
  with pytest.raises(UserError, match=r"TPU compiler is not .*'\.\[tpu\]'"):
    topology.check_compiler("tpu")


def test_what_is_sent_goes_by_nvlink_or_by_network() -> None:
  """Sums over two GPUs of a host, over two hosts by one GPU of each, and over all four."""
  reduce = ("  %{name} = f32[512,512]{{1,0}} all-reduce({x}), replica_groups={groups}, "
            "to_apply=%add\n")
  sums = "".join(reduce.format(name=name, x=x, groups=groups) for name, x, groups in (
      ("y", "%x", "{{0,1},{2,3}}"), ("z", "%y", "{{0,2},{1,3}}"), ("w", "%z", "{{0,1,2,3}}")))
  text = f"""HloModule m, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[512,512]) -> f32[512,512] {{
  %x = f32[512,512]{{1,0}} parameter(0)
{sums.replace("%w =", "ROOT %w =")}}}
"""
  gpu = dataclasses.replace(GPUS["h100"], hbm_bandwidth=1e12, nvlink_bandwidth=9e6,
                            network_bandwidth=2e6)
  report = ahead_of_time._judge(text, gpu, (0, 0, 1, 1), model_flops=1)
  size = 512 * 512 * 4
  pair, four = size * 2 / 2, size * 2 * 3 / 4
  kinds = report["collectives_by_link"]
  assert kinds == {"nvlink": {"all-reduce": {"count": 1, "bytes": size, "sent": pair}},
                   "network": {"all-reduce": {"count": 2, "bytes": 2 * size, "sent": pair + four}}}
  # Two rings at once over the cards of both GPUs of a host.
  assert report["predicted_seconds"] == pytest.approx(
      pair / 9e6 + pair / 2e6 + four / 4e6 + 3 * 2 * size / 1e12)


def test_products_of_float32_are_at_the_peak_of_tf32() -> None:
  text = """HloModule m

ENTRY %main (x: f32[512,512], b: bf16[512,512]) -> f32[512,512] {
  %x = f32[512,512]{1,0} parameter(0)
  %b = bf16[512,512]{1,0} parameter(1)
  %y = f32[512,512]{1,0} dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %z = f32[512,512]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
  gpu = dataclasses.replace(GPUS["h100"], flops=3e9, tf32_flops=1e9)
  product = 2 * 512 ** 3
  report = ahead_of_time._judge(text, gpu, (0,), model_flops=product)
  assert report["matrix_flops"] == 2 * product
  assert report["predicted_seconds"] == pytest.approx(product / 3e9 + product / 1e9)
  # The utilization is of the peak that a run's is of.
  assert report["predicted_mfu"] == pytest.approx(1 / (1 + 3))


def test_the_page_of_gpus() -> None:
  links = {"nvlink": {"all-gather": {"count": 3, "bytes": 8, "sent": 4e9}},
           "network": {"all-reduce": {"count": 1, "bytes": 9, "sent": 5e8}}}
  off: dict[str, Any] = {
      "topology": "h100:2x8", "chips": 16, "fits": False, "bytes_per_chip": 2 ** 37,
      "hbm_bytes": 80 * 10 ** 9, "flops": 1.2e15, "model_flops": 1e15, "bytes_accessed": 4e9,
      "collectives": {"all-reduce": {"count": 3, "bytes": 5 * 10 ** 8}}, "predicted_seconds": 0.9,
      "predicted_seconds_formula": "FORMULA", "predicted_mfu": 0.41, "cycles": 0,
      "collectives_by_link": links, "statistics": {}, "warnings": [], "uncounted": []}
  row = ladder_pages.Row("130m", "h100:2x8", (16, 1, 1), 64, micro_batches=2)
  text = ladder_pages.markdown(dataclasses.replace(ladder_pages.GPU, rows=(row,)), {
      row.name: {"telemetry": {"off": off, "basic": {
          **off, "flops": 1.206e15, "collectives_by_link": {**links, "network": {
              "all-reduce": {"count": 1, "bytes": 9, "sent": 5e8 + 1234}}}}}},
      "machine": {"jax": "0", "jax-cuda12-plugin": "1", "nvidia-cudnn-cu12": "2", "date": "today"}})
  assert ("| 130m | h100:2x8 | 16 x 1 x 1 | 64 x 128 in 2 parts | 128.0 of 74.51 | no | 1.2 | "
          "1.200 | 4 | 4 | 0.5 | 0.9 | 41% | 160 |") in text
  assert "| 130m | h100:2x8 | basic | +0.50% | +0.00% | +0 | - | +0 | +1,234 |" in text
  assert "needs 128.0 GiB a GPU, and there are 74.5" in text and "cycles" not in text


def test_a_run_on_a_gpu_says_its_form_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
  capped = config_lib.apply_overrides(presets.preset("1b"), [("model.attention_cap", "30")])
  images = config_lib.resolve(presets.residual_mlp("smoke"))
  assert environment.attention_on_gpu(capped) is None  # This is a CPU.
  gpu = SimpleNamespace(platform="gpu", device_kind=GPUS["h100"].device_kind)
  monkeypatch.setattr(environment.jax, "devices", lambda: [gpu])
  assert environment.attention_on_gpu(images) is None
  lines: list[str] = []
  startup._say_what_is_unfused(config_lib.resolve(presets.preset("1b")), lines.append)
  assert lines == []
  startup._say_what_is_unfused(capped, lines.append)
  assert lines == ["attention is unfused, some queries at a time (a softcap): it holds and moves "
                   "more than the rest of the step may"]


def arrays(text: str) -> set[tuple[int, ...]]:
  """Shapes of every array in a program's text."""
  return {tuple(map(int, dims.split(","))) for dims in re.findall(r"\w\[([\d,]+)\]", text)}


def holds_logits(text: str, config: Config) -> bool:
  """Whether any array has all pairs of a sequence's tokens, by head: cuDNN's own description of
  what it does not keep apart."""
  time, heads = config.train.sequence_length, config.model.heads
  return any(shape[-2:] == (time, time) and (len(shape) > 3 or math.prod(shape[:-2]) % heads == 0)
             for shape in arrays(text))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("size", presets.SIZES)
def test_no_preset_holds_the_logits_of_attention(size: str) -> None:
  """On one H100, with as few sequences as the batch can be cut to; those of many layers, fewer.

  Sequences as long as the stream is wide are halved, so that shapes tell the two apart.
  """
  preset = presets.preset(size)
  parts, time = preset.train.grad_accumulation, preset.train.sequence_length
  config = config_lib.apply_overrides(preset, [
      ("train.batch_size", str(2 * parts)), ("telemetry.level", "off"),
      ("train.sequence_length", str(time // 2 if time == preset.model.width else time)),
      ("model.depth", str(min(preset.model.depth, 4)))])
  text, report = compiled(config, "h100:1")
  assert report["uncounted"] == []
  if size == "released_tanh":  # Its softcap is unfused, and 128 tokens too few to take in parts.
    assert report["attention"] == "unfused, all pairs of tokens at once (a softcap, float32)"
  else:
    assert report["attention"].startswith("fused") and not holds_logits(text, config)
  assert report["matrix_flops"] > 0 and report["predicted_mfu"] > 0


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name, fields, heads_of_pairs", [
    ("cudnn", {}, False), ("cudnn window", {"model__attention_window": 300}, False),
    ("cudnn shared keys", {"model__kv_heads": 2, "model__remat": "dots"}, False),
    ("documents", {"data__cross_documents": False}, False),
    ("softcap", {"model__attention_cap": 30.0}, False),
    ("sink", {"model__attention_sink": "key_value"}, False),
    ("float32", {"model__compute_dtype": "float32"}, False),
    ("dropout", {"model__attention_dropout": 0.1}, True)])
def test_each_form_compiles_on_a_mesh(name: str, fields: dict[str, Any], heads_of_pairs: bool,
                                      make_config: Callable[..., Config]) -> None:
  """On two hosts of four GPUs, split along every axis."""
  config = make_config(**{
      "mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "model__width": 128,
      "model__depth": 2, "model__compute_dtype": "bfloat16", "train__sequence_length": 1024,
      "telemetry__level": "off", **fields})
  text, report = compiled(config, "h100:2x4")
  assert report["uncounted"] == [] and report["warnings"] == []
  assert holds_logits(text, config) == heads_of_pairs
  assert ("__cudnn$fmha" in text) == name.startswith("cudnn")
  assert ("xla.gpu.triton" in text) == (name in ("documents", "float32"))
  assert report["collectives_by_link"]["network"] and report["collectives_by_link"]["nvlink"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_every_gpu_can_be_compiled_for(gpu: str, make_config: Callable[..., Config]) -> None:
  config = make_config(model__compute_dtype="bfloat16", train__sequence_length=512,
                       model__width=64, mesh__data=8, telemetry__level="off")
  text, report = compiled(config, f"{gpu}:8")
  assert "__cudnn$fmha" in text and report["fits"] and report["uncounted"] == []
  chip = GPUS[gpu]
  assert isinstance(chip, Gpu) and report["hbm_bytes"] == chip.hbm_bytes
  assert report["chips"] == gpus.GPUS_PER_HOST


def measured(config: Config, name: str) -> dict[str, Any]:
  """Reads of a program the numbers that goldens hold."""
  text, report = compiled(config, name)
  logits = math.prod((config.train.batch_size // 4, config.train.sequence_length,
                      config.data.vocab_size))
  return {
      "flops": report["flops"], "bytes": report["bytes_accessed"],
      "memory": report["bytes_per_chip"],
      "largest": max(math.prod(shape) for shape in arrays(text)),
      "sorts": text.count(" sort("), "attention_logits": holds_logits(text, config),
      "token_logits": any(math.prod(shape) >= logits and shape[-1] == config.data.vocab_size
                          for shape in arrays(text))}


def small(level: str, dtype: str) -> Config:
  """A step that compiles in seconds, on 2 x 2 of four GPUs."""
  return config_lib.apply_overrides(presets.smoke(), [
      ("telemetry.level", level), ("model.compute_dtype", dtype), ("train.sequence_length", "1024"),
      ("train.batch_size", "16"), ("mesh.data", "2"), ("mesh.fsdp", "2"), ("model.depth", "2")])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["off bfloat16", "basic bfloat16", "off float32"])
def test_the_program_of_a_small_step_is_the_golden_one(name: str) -> None:
  """Compares with the goldens within 2 %, under their jax alone: another compiler fuses otherwise.

  They are written anew by `JAX_PLATFORMS=cpu python -m tests.train.test_gpu_topology`.
  """
  import jax
  golden = json.loads(GOLDEN.read_text())
  if jax.__version__ != golden["jax"]:
    pytest.skip(f"the golden program is jax {golden['jax']}'s")
  expected = golden["programs"][name]
  found = measured(small(*name.split()), "h100:4")
  for key in ("flops", "bytes", "memory"):
    assert found[key] == pytest.approx(expected[key], rel=0.02), key
  assert {key: found[key] for key in found.keys() - {"flops", "bytes", "memory"}} == {
      key: expected[key] for key in expected.keys() - {"flops", "bytes", "memory"}}


if __name__ == "__main__":
  import jax
  GOLDEN.write_text(json.dumps({"jax": jax.__version__, "programs": {
      name: measured(small(*name.split()), "h100:4")
      for name in ("off bfloat16", "basic bfloat16", "off float32")}}, indent=1) + "\n")
