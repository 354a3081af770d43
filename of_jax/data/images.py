"""Whitened images. Enters: a DataConfig of a corpus of images. Leaves: an `Images`, memory-mapped
out of the cache or whitened into it.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from of_jax.config import DataConfig
from of_jax.data import cache, folder, image_sources
from of_jax.data.folder import Damaged
from of_jax.data.image_files import Bytes
from of_jax.data.image_sources import ImageSource
from of_jax.errors import UserError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Log = Callable[[str], None]

# A direction counts as having no variance below this share of the largest: float64 leaves about
# 1e-13 of it by rounding, and the smallest of Fashion-MNIST's 784 is 5e-9 of it.
_NO_VARIANCE = 1e-10
_ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Images:
  """Images to train on and to validate on, as the network reads them.

  Attributes:
    train, validation: float32 memory maps [count, input size].
    train_labels, validation_labels: classes, int32 [count], from 0.
    corpus_sha256: hash of the raw images and labels of both parts.
    description: one line: name, counts, classes, inputs, whitening.
    tokenizer_sha256, tokenizer_path, text: "" and None; a run records them for every corpus.
  """

  train: Floats
  train_labels: npt.NDArray[np.int32]
  validation: Floats
  validation_labels: npt.NDArray[np.int32]
  corpus_sha256: str
  description: str
  tokenizer_sha256: str = ""
  tokenizer_path: Path | None = None
  text: None = None


def prepare(data: DataConfig, log: Log) -> Images:
  """Opens the images that `data` names, whitening them first where that was not done before.

  Args:
    data: the `data` section of a resolved config, with `input_size` and `classes`.
    log: is given progress lines; images that are in the cache give none.

  Raises:
    UserError: an unknown or damaged corpus, a download that fails, labels that are no class, or
      an `input_size` that is larger than an image.
  """
  found = image_sources.source(data.corpus, log)
  key = {"corpus": found.fingerprint, "whitening": data.whitening, "input_size": data.input_size,
         "classes": data.classes, "validation_fraction": data.validation_fraction}
  kind = data.corpus.partition(":")[0]
  return cache.open_or_build(
      data.cache_dir, f"{kind}-{data.whitening}-{data.input_size}", key,
      lambda entry: _build(entry, found, data, log), log, _open)


def _build(entry: Path, found: ImageSource, data: DataConfig, log: Log) -> None:
  """Writes the whitened images of `found` into the empty folder `entry`."""
  where = f"config.data.corpus={data.corpus}"
  split = found.split(data.validation_fraction)
  assert data.input_size is not None and data.classes is not None
  content = hashlib.sha256()
  meta: dict[str, Any] = {"corpus": found.name, "split": split.rule, "whitening": data.whitening,
                          "input_size": data.input_size, "classes": data.classes}
  entries = split.train[0].shape[1]
  for part, (pixels, labels) in (("train", split.train), ("validation", split.validation)):
    if pixels.shape[1] != entries or not len(pixels):
      raise UserError(f"{where}: its {part} images are {len(pixels)} of {pixels.shape[1]} entries")
    if labels.min() < 0 or labels.max() >= data.classes:
      raise UserError(f"{where}: a {part} label is {labels.max()}, and there are "
                      f"config.data.classes={data.classes}")
    content.update(f"{part} {pixels.shape}\n".encode())
    content.update(pixels.tobytes())
    content.update(labels.astype("<i4").tobytes())
  if data.input_size > entries or data.whitening == "none" and data.input_size != entries:
    raise UserError(f"config.data.input_size={data.input_size}: an image of {data.corpus} has "
                    f"{entries} entries")
  log(f"{found.name}: {data.whitening} whitening of {len(split.train[0]):,} images of {entries:,} "
      "entries")
  mean, projection = (pca(split.train[0], data.input_size) if data.whitening == "pca"
                      else standardise(split.train[0]))
  for part, (pixels, labels) in (("train", split.train), ("validation", split.validation)):
    with (entry / f"{part}.bin").open("wb") as file:
      for start in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = (pixels[start:start + _ROWS_AT_ONCE] - mean)
        rows = rows * projection if projection.ndim < 2 else rows @ projection
        file.write(rows.astype("<f4").tobytes())
    (entry / f"{part}_labels.bin").write_bytes(labels.astype("<i4").tobytes())
    meta[part] = {"images": len(pixels),
                  "sha256": folder.file_sha256(entry / f"{part}.bin"),
                  "labels_sha256": folder.file_sha256(entry / f"{part}_labels.bin")}
  folder.write_meta(entry, {**meta, "corpus_sha256": content.hexdigest()})


def pca(pixels: Bytes, keep: int) -> tuple[Doubles, Doubles]:
  """Computes the principal components that whiten, float64: (mean [entries], projection).

  The projection is [entries, keep]. (x - mean) projection has, over the images given, mean 0 and
  the identity as its covariance (divided by the count). Columns are the principal directions by
  falling variance, each over its standard deviation, with its largest entry positive; a direction
  without variance gives 0, for there is nothing to scale.
  """
  count, entries = pixels.shape
  mean = pixels.mean(0, dtype=np.float64)
  if count > entries:
    covariance = np.zeros((entries, entries))
    for start in range(0, count, _ROWS_AT_ONCE):
      rows = pixels[start:start + _ROWS_AT_ONCE] - mean
      covariance += rows.T @ rows
    variances, directions = np.linalg.eigh(covariance / count)
  else:
    # Fewer images than entries: the small matrix of their products has the same variances.
    centred = pixels - mean
    variances, weights = np.linalg.eigh(centred @ centred.T / count)
    lengths = np.sqrt(np.maximum(variances, np.finfo(np.float64).tiny) * count)
    directions = centred.T @ weights / lengths
  order = np.argsort(variances)[::-1][:keep]
  variances, directions = variances[order], directions[:, order]
  has_variance = variances > _NO_VARIANCE * max(variances[0], np.finfo(np.float64).tiny)
  largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0)
  scales = np.where(has_variance, np.sign(largest) / np.sqrt(np.where(has_variance, variances, 1)),
                    0)
  projection = np.zeros((entries, keep))
  projection[:, :len(order)] = np.where(has_variance, directions * scales, 0)
  return mean, projection


def standardise(pixels: Bytes) -> tuple[Doubles, Doubles]:
  """Computes (mean [entries], one scale) that centre and scale pixels, float64.

  (x - mean) x scale has a mean square of 1 over images and pixels.

  Raises:
    UserError: all images are the same.
  """
  mean = pixels.mean(0, dtype=np.float64)
  total = sum(float(np.square(pixels[i:i + _ROWS_AT_ONCE] - mean).sum())
              for i in range(0, len(pixels), _ROWS_AT_ONCE))
  if not total:
    raise UserError("config.data.corpus: all training images are the same")
  return mean, np.array(np.sqrt(pixels.size / total))


def _open(entry: Path) -> Images:
  """Opens the images in `entry`, once every file's hash was compared with meta.json."""
  meta = folder.read_meta(entry)
  arrays: dict[str, Any] = {}
  for part in folder.PARTS:
    count = meta[part]["images"]
    for suffix, dtype, shape, sha256 in (
        ("", "<f4", (count, meta["input_size"]), meta[part]["sha256"]),
        ("_labels", "<i4", (count,), meta[part]["labels_sha256"])):
      path = entry / f"{part}{suffix}.bin"
      if not path.is_file() or folder.file_sha256(path) != sha256:
        raise Damaged(f"{path.name} is missing or does not have the sha256 in {folder.META}")
      arrays[part + suffix] = np.memmap(path, dtype, "r", shape=shape)
  return Images(**arrays, corpus_sha256=meta["corpus_sha256"], description=(
      f"{meta['corpus']}: {meta['train']['images']:,} train and {meta['validation']['images']:,} "
      f"validation images ({meta['split']}) of {meta['classes']} classes, "
      f"{meta['input_size']:,} inputs, {meta['whitening']} whitening"))
