"""Damaged, mislabelled and malicious files: one clear line each, and nothing is executed."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax.errors import UserError
from of_jax.interop import load
from of_jax.interop.safetensors import read_header
from tests.golden import foreign

GOOD = foreign.safetensors({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})


class Bomb:
  """Runs when it is unpickled."""

  def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
    return exec, ("raise SystemExit('executed')",)


def zipped() -> bytes:
  with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
  return stream.getvalue()


def with_header(header: Any, data: bytes = bytes(40)) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def entry(**fields: Any) -> dict[str, Any]:
  return {"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40], **fields}}


CASES = {
    "empty": (b"", "not a safetensors file"),
    "pickle": (pickle.dumps(Bomb()), "it begins as a pickle, which could run code"),
    "torch archive": (zipped(), "it begins as a zip archive, as of torch.save"),
    "gguf": (b"GGUF" + bytes(60), "it begins as a GGUF file"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "header of 10 GB": (struct.pack("<Q", 10 ** 10) + b"{" + bytes(100),
                        "claims 10,000,000,000 bytes"),
    "header of all bytes": (struct.pack("<Q", 2 ** 64 - 1) + b"{" + bytes(100), "claims 18,446"),
    "truncated": (GOOD[:-1], "the file is truncated"),
    "longer": (GOOD + b"x", "1 bytes follow the last tensor"),
    "no JSON": (with_header(b"{not json at all"), "its header is not JSON"),
    "nested": (with_header(b"{\"a\":" + b"[" * 100_000), "its header is not JSON"),
    "no entry": (with_header({"a": 3}), "lacks dtype, shape or data_offsets"),
    "unknown type": (with_header(entry(dtype="F31")), "unknown type F31"),
    "negative size": (with_header(entry(shape=[-10])), "is not a list of sizes"),
    "size of true": (with_header(entry(shape=[True])), "is not a list of sizes"),
    "wrong size": (with_header(entry(shape=[9])), r"takes 36 bytes, its data_offsets span 40"),
    "huge size": (with_header(entry(shape=[2 ** 62, 2 ** 62])), "its data_offsets span 40"),
    "falling": (with_header(entry(data_offsets=[40, 0])), "not two rising positions"),
    "beyond": (with_header(entry(data_offsets=[4, 44])), "the file is truncated"),
    "gap": (with_header(entry(shape=[9], data_offsets=[4, 40])), "overlap or gap"),
    "overlap": (with_header({**entry(), "b": entry()["a"]}), "overlap or gap"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_one_line(case: str, tmp_path: Path) -> None:
  content, message = CASES[case]
  path = tmp_path / "model.safetensors"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    read_header(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_good_file_is_read(tmp_path: Path) -> None:
  path = tmp_path / "model.safetensors"
  path.write_bytes(GOOD)
  found = read_header(path)
  np.testing.assert_array_equal(found["a"].load("a"), np.ones((2, 3)))
  np.testing.assert_array_equal(found["b"].load("b"), np.zeros(4))
  path.write_bytes(with_header(entry(dtype="I32")))
  with pytest.raises(UserError, match="a is of type I32; parameters must be F32, F16, BF16 or F64"):
    read_header(path)["a"].load("a")


@pytest.mark.parametrize("name", (
    "../outside.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "..safetensors",
    "model.bin", "nul\0.safetensors"))
def test_an_index_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path / "model", "gpt2")
  (tmp_path / "outside.safetensors").write_bytes(GOOD)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": name, "b": name}}))
  with pytest.raises(UserError, match="must be the plain name of a .safetensors file of its own"):
    load(folder)


def test_an_index_that_is_wrong(tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path, "gpt2")
  index = folder / "model.safetensors.index.json"
  for content, message in (
      ("[]", "not a JSON object"), ("{", "not JSON"), ("{}", "lacks weight_map"),
      ('{"weight_map": {"a": 3}}', "lacks weight_map"),
      ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: cannot be read: No such"),
      ('{"weight_map": {"a": "model.safetensors"}}', "lacks the tensor a, which .* lists there; "
       "say --weights=single to read model.safetensors alone, or write model.saf.* anew")):
    index.write_text(content)
    with pytest.raises(UserError, match=message):
      load(folder)


def test_a_folder_of_pickles_alone(tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path, "gpt2")
  (folder / "model.safetensors").unlink()
  with pytest.raises(UserError, match="holds neither model.safetensors nor"):
    load(folder)
  (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(UserError, match="pytorch_model.bin, a pickle, which could run code"):
    load(folder)
