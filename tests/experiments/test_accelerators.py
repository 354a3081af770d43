"""libtpu is passed by where there is no accelerator, and nowhere else."""

import importlib.util
from pathlib import Path

import pytest

from of_jax.commands import accelerators


@pytest.fixture(autouse=True)
def libtpu_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def platforms(root: Path, **environment: str) -> str | None:
  accelerators.keep_libtpu_silent(root, environment)
  return environment.get("JAX_PLATFORMS")


def test_a_machine_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  (tmp_path / "dev/vfio").mkdir(parents=True)
  (tmp_path / "dev/vfio/vfio").touch()
  assert platforms(tmp_path) == "cpu"
  assert platforms(tmp_path, JAX_PLATFORMS="tpu") == "tpu"
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert platforms(tmp_path) is None


@pytest.mark.parametrize("device", ("accel0", "vfio/0", "nvidia0", "kfd"))
def test_a_machine_with_a_device(tmp_path: Path, device: str) -> None:
  (tmp_path / "dev" / device).parent.mkdir(parents=True)
  (tmp_path / "dev" / device).touch()
  assert platforms(tmp_path) is None


def test_other_signs_of_a_tpu(tmp_path: Path) -> None:
  assert platforms(tmp_path, TPU_WORKER_ID="0") is None
  vendor = tmp_path / "sys/bus/pci/devices/0000:00:04.0/vendor"
  vendor.parent.mkdir(parents=True)
  vendor.write_text("0x8086\n")
  assert platforms(tmp_path) == "cpu"
  vendor.write_text("0x1ae0\n")
  assert platforms(tmp_path) is None
