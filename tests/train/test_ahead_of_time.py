"""TPU slices by name, and the report on a step compiled for one; where libtpu is, the real one."""

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from of_jax.commands import compile_topology, ladder_pages
from of_jax.config import Config
from of_jax.cost_model import topology
from of_jax.cost_model.chips import CHIPS, Chip, peak_flops
from of_jax.errors import UserError
from of_jax.train import ahead_of_time, sharding
from tests.train.programs import compiled

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is the extra `tpu`")


def test_slices_that_exist() -> None:
  for name, chips in (("v5e:1x1", 1), ("v5e:2x4", 8), ("v6e:16x16", 256), ("v5p:2x2x1", 4),
                      ("v5p:4x4x12", 192), ("v5p:8x8x16", 1024)):
    assert math.prod(topology.parse_topology(name)[1]) == chips
  assert max(math.prod(shape) for shape in CHIPS["v5p"].slices) == 1024


def test_the_peak_of_a_device_is_that_of_the_longest_name() -> None:
  assert [peak_flops(kind) for kind in (
      "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "TPU v4", "TPU v5 lite", "TPU v5",
      "TPU v5p", "TPU v6 lite", "cpu", "NVIDIA L4")] == [
          989e12, 312e12, 275e12, 197e12, 459e12, 459e12, 918e12, None, None]


@pytest.mark.parametrize("name, message", [
    ("v5e:8x4", "the nearest is v5e:4x8 of 32 chips"),
    ("v5e:3x3", "the nearest is v5e:2x4 of 8 chips"),
    ("v6e:16x32", "the nearest is v6e:16x16 of 256 chips"),
    ("v5p:8x8x4", "the nearest is v5p:4x8x8 of 256 chips"),
    ("v5p:16x16x16", "of 1024 chips"),
    ("v5p:0x1x1", "the nearest is v5p:2x2x1 of 4 chips"),
    ("v5p:4", "the nearest is v5p:2x2x1 of 4 chips"),
    ("v5p", "no shape; v5p is given as in v5p:"),
    ("v5e:4*4", "no shape; v5e is given as in v5e:4x8"),
    ("v4:2x2", "there are v5e, v6e, v5p, a100, h100, h200, b200, as in v5p:4x4x8 or h100:16x8"),
    ("H100:8", "there are v5e"),
    ("h100", "h100 is given as in h100:8 or h100:16x8, 16 hosts of 8 GPUs"),
    ("h100:", "h100 is given as in h100:8"),
    ("a100:-8", "a100 is given as in a100:8"),
    ("b200:2x2x2", "b200 is given as in b200:8"),
    ("h100:0", "the nearest is h100:1"),
    ("h100:0x8", "from 1 to 512 hosts of 1 to 8 GPUs can be described; the nearest is h100:1x8"),
    ("h200:2x9", "the nearest is h200:2x8"),
    ("h100:9999x8", "the nearest is h100:512x8"),
    ("h100:16", "a host has at most 8 GPUs; give hosts too, as in h100:2x8"),
    ("h100:99999", "as in h100:512x8")])
def test_a_slice_that_does_not_exist_is_one_line(name: str, message: str) -> None:
  with pytest.raises(UserError) as error:
    topology.parse_topology(name)
  assert message in str(error.value) and str(error.value).startswith(f"--topology={name}: ")


def test_meshes_of_a_torus_take_whole_sides() -> None:
  assert set(sharding._meshes_of((4, 8))) == {
      (32, 1, 1), (1, 32, 1), (1, 1, 32), (4, 8, 1), (8, 4, 1), (4, 1, 8), (8, 1, 4), (1, 4, 8),
      (1, 8, 4)}


def test_a_program_without_room() -> None:
  message = ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
             "space hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity by 2.75G.")
  assert ahead_of_time._over_memory(message) == {
      "bytes_per_chip": round(18.5 * 2 ** 30), "hbm_bytes": round(15.75 * 2 ** 30), "fits": False}
  assert ahead_of_time._over_memory("INTERNAL: something else") is None


def test_the_compilers_warnings_fail_it() -> None:
  log = ["I0000 00:00:1795 12 a.cc:1] all is well",
         "W0000 00:00:1795 12 spmd_partitioner.cc:652] [SPMD] Involuntary full rematerialization.",
         "W0000 00:00:1795 12 spmd_partitioner.cc:652] [SPMD] Involuntary full rematerialization."]
  found = ahead_of_time._warnings(log)
  assert found == ["[SPMD] Involuntary full rematerialization."]
  good = {"topology": "v5e:2x2", "fits": True, "bytes_per_chip": 2 ** 30, "hbm_bytes": 2 ** 34,
          "warnings": [], "uncounted": []}
  assert ladder_pages.faults({"telemetry": {"off": good}}) == []
  bad = {**good, "fits": False, "warnings": found, "uncounted": ["trips of while.1"]}
  assert ladder_pages.faults({"telemetry": {"off": good, "basic": bad}}) == [
      "v5e:2x2, telemetry basic: needs 1.0 GiB a chip, and there are 16.0",
      "v5e:2x2, telemetry basic: the compiler warns: [SPMD] Involuntary full rematerialization.",
      "v5e:2x2, telemetry basic: trips of while.1 could not be counted"]


def test_seconds_follow_the_formula() -> None:
  """A program of one product, one copy and one sum over two chips, by hand."""
  text = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main (x: f32[512,512]) -> f32[512,512] {
  %x = f32[512,512]{1,0} parameter(0)
  %y = f32[512,512]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = f32[512,512]{1,0} copy(%y)
  ROOT %r = f32[512,512]{1,0} all-reduce(%z), replica_groups={{0,1}}, to_apply=%add
}
"""
  chip = Chip(flops=1e9, hbm_bytes=1, hbm_bandwidth=1e9, link_bandwidth=1e6, slices=())
  report = ahead_of_time._judge(text, chip, (0, 0), model_flops=2 ** 29)
  size = 512 * 512 * 4
  product, copied, summed = 2 * 512 ** 3 / 1e9, 2 * size / 1e9, 2 * size / 1e9
  sent = 2 * (1 / 2) * size / 1e6
  assert report["predicted_seconds"] == pytest.approx(product + copied + summed + sent)
  assert report["flops"] == 2 * (2 * 512 ** 3)
  assert report["predicted_mfu"] == pytest.approx(
      2 ** 29 / (report["predicted_seconds"] * 2 * 1e9))
  unknown = text.replace("copy(%y)", 'custom-call(%y), custom_call_target="Mystery"')
  report = ahead_of_time._judge(unknown, chip, (0, 0), model_flops=2 ** 29)
  assert report["predicted_seconds"] is None and report["uncounted"] == ["Mystery"]
  known = unknown.replace("Mystery", "ZeroCrop")
  cropped = ahead_of_time._judge(known, chip, (0, 0), model_flops=2 ** 29)
  assert cropped["uncounted"] == [] and cropped["flops"] == 2 * (2 * 512 ** 3)


def test_the_page_of_the_ladder() -> None:
  off: dict[str, Any] = {
      "topology": "v5e:2x4", "chips": 8, "fits": True, "bytes_per_chip": 2 ** 32,
      "hbm_bytes": 2 ** 34, "flops": 1.2e15, "model_flops": 1e15, "bytes_accessed": 4e9,
      "collectives": {"all-reduce": {"count": 3, "bytes": 5 * 10 ** 8}}, "predicted_seconds": 0.9,
      "predicted_seconds_formula": "FORMULA", "predicted_mfu": 0.41, "cycles": 1000,
      "statistics": {}, "warnings": [], "uncounted": []}
  site = {"layers": 2, "vectors": 6, "numbers": 8, "bytes": 4 * 2 * (6 * 16 + 8)}
  basic = {**off, "flops": 1.206e15, "bytes_accessed": 4.04e9, "cycles": 1100,
           "statistics": {"resid_pre": site},
           "collectives": {"all-reduce": {"count": 4, "bytes": 5 * 10 ** 8 + 640}}}
  row = ladder_pages.Row("130m", "v5e:2x4", (8, 1, 1), 64)
  ladder = dataclasses.replace(ladder_pages.TPU, rows=(row,))
  text = ladder_pages.markdown(ladder, {
      row.name: {"telemetry": {"off": off, "basic": basic}},
      "machine": {"jax": "0", "libtpu": "0", "date": "today"}})
  # 80,000 steps of 32 sequences are 40,000 of 64: 40,000 x 0.9 s x 8 chips = 80 chip-hours.
  assert ("| 130m | v5e:2x4 | 8 x 1 x 1 | 64 x 128 | 4.0 of 16.00 | yes | 1.2 | 1.200 | 4 | 0.5 | "
          "0.9 | 41% | 80 |") in text
  assert "| 130m | v5e:2x4 | basic | +0.50% | +1.00% | +10.00% | +640 | 0.7692 |" in text
  assert text.endswith("Nothing.\n")
  assert ladder_pages.collectives_text(off, basic) == (
      "collectives move +640 bytes; 4 x statistics x layers x width is 832, 0.7692 of it "
      "(of activations: resid_pre 2 layers of 6 vectors and 8 numbers)")
  more = ladder_pages.Row("7b", "v5p:2x2x2", (1, 8, 1))
  partial = ladder_pages.markdown(dataclasses.replace(ladder, rows=(row, more)), {
      row.name: {"telemetry": {"off": off}}, "machine": {"jax": "0", "libtpu": "0", "date": "x"}})
  assert "| 130m | v5e:2x4 | 8 x 1 x 1 |" in partial and "| basic |" not in partial
  assert partial.endswith("with it: 130m v5e:2x4, 7b v5p:2x2x2.\n")


def check_bounds(levels: Mapping[str, Any], config: Config) -> None:
  """What issue and README promise of a size: it fits, nothing is warned of, `basic` is all but
  free, and its collectives move every statistic once at most."""
  for own in levels.values():
    assert own["fits"] and own["warnings"] == [] and own["uncounted"] == []
  off, basic = levels["off"], levels["basic"]
  assert basic["flops"] <= 1.01 * off["flops"]
  assert basic["bytes_accessed"] <= 1.02 * off["bytes_accessed"]
  check_statistics(basic, config)
  moved = ladder_pages.moved_by_telemetry(off, basic)
  assert 0 < moved <= ladder_pages.statistics_bytes(basic)


def check_statistics(basic: Mapping[str, Any], config: Config) -> None:
  """By hand: of first and other tokens, sums of x, x^2 and centred x^2; and for each of two
  families the count, the largest |x| and the sum of its ratio to the median."""
  width = config.model.width
  assert basic["statistics"] == {
      site: {"layers": layers, "vectors": 2 * 3, "numbers": 2 * 4,
             "bytes": 4 * layers * (6 * width + 8)}
      for site, layers in (("resid_pre", config.model.depth), ("final", 1))}


@pytest.mark.parametrize("name", ["tpu_ladder.md", "gpu_ladder.md"])
def test_the_pages_of_docs_are_what_the_command_makes(name: str) -> None:
  """Of what the compiler said when it was last asked."""
  page = Path(__file__).parents[2] / "docs" / name
  reports = json.loads(page.with_suffix(".json").read_text())
  assert page.read_text() == ladder_pages.markdown(ladder_pages.ladder_of(name), reports)


LARGE = [pytest.param(row, id=row.name)
         for row in ladder_pages.TPU.rows if row.size in ("1b", "7b")]


@pytest.mark.parametrize("row", LARGE)
def test_large_sizes_of_the_page_keep_their_promises(row: ladder_pages.Row) -> None:
  reports = json.loads((Path(__file__).parents[2] / "docs" / "tpu_ladder.json").read_text())
  levels = reports[row.name]["telemetry"]
  check_bounds({level: levels[level] for level in ("off", "basic")}, row.config("off"))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("row", LARGE)
def test_large_sizes_on_their_slices(row: ladder_pages.Row) -> None:
  """About three minutes of a core for each of four programs."""
  levels = {level: row.config(level) for level in ("off", "basic")}
  check_bounds(compile_topology.compile_levels(levels, row.topology)["telemetry"], levels["off"])


@needs_libtpu
@pytest.mark.slow
def test_kernels_of_a_small_step(make_config: Callable[..., Config]) -> None:
  """A step of 2,048 tokens holds neither the pairs of tokens nor all logits, and telemetry moves
  what reading the stream once and copying it would, for each block and the final site, no more."""
  fields = {"mesh__data": 2, "mesh__fsdp": 2, "model__width": 256, "model__heads": 4,
            "model__depth": 2, "model__compute_dtype": "bfloat16", "train__batch_size": 16,
            "train__sequence_length": 2048, "data__vocab_size": 16384}
  configs = {level: make_config(**fields, telemetry__level=level) for level in ("off", "basic")}
  programs = {level: compiled(config, "v5e:2x2") for level, config in configs.items()}
  levels = {level: report for level, (_, report) in programs.items()}
  shapes = {tuple(map(int, dims.split(",")))
            for dims in re.findall(r"\w+\[([\d,]+)\]", programs["off"][0])}
  # A device has 4 sequences and 2^27 logits of them, and takes at most 2^26 at once.
  assert (4, 1024, 16384) in shapes
  assert not any(math.prod(shape) >= 4 * 2048 * 16384 or shape[-2:] == (2048, 2048)
                 for shape in shapes)
  off, basic = levels["off"], levels["basic"]
  assert not any(own["warnings"] or own["uncounted"] for own in levels.values())
  sites, stream = 3, 4 * 2048 * 256 * 2
  assert basic["bytes_accessed"] - off["bytes_accessed"] <= 3 * sites * stream
  assert 0 < ladder_pages.moved_by_telemetry(off, basic) <= 4 * sites * (6 * 256 + 6)
  check_statistics(basic, configs["basic"])


@needs_libtpu
def test_a_mesh_that_the_torus_does_not_have(make_config: Callable[..., Config]) -> None:
  # Of v5e, jax arranges the chips without regard to the torus.
  config = make_config(mesh__data=16, mesh__fsdp=4, train__batch_size=64)
  with pytest.raises(UserError, match="torus 8x8x1; the nearest that fits is data 8 x fsdp 8"):
    sharding.make_mesh(config, ahead_of_time.devices("v6e:8x8"))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_flops_of_the_tpu_program(make_config: Callable[..., Config], scan: bool) -> None:
  config = make_config(mesh__data=2, mesh__fsdp=2, model__scan_layers=scan, model__depth=4,
                       telemetry__level="off")
  report = ahead_of_time.compile_step(config, "v5e:2x2")
  assert report["matrix_flops"] == pytest.approx(report["model_flops"], rel=0.02)
  assert report["fits"] and not report["warnings"] and not report["uncounted"]
  assert report["predicted_seconds"] > 0 and report["cycles"] > 0
