"""Corpora of images by name. Enters: `data.corpus`. Leaves: an `ImageSource`.

  digits               scikit-learn's 1,797 handwritten digits of 8 x 8, from one pinned wheel
  fashion_mnist        60,000 + 10,000 of 28 x 28, from Debian's package or its makers' address
  fashion_mnist:PATH   the four idx files in a folder, gzipped or not
  cifar10:PATH         the folder of CIFAR-10's Python or binary version
  tfds:NAME            a data set with an image and a label, of TensorFlow Datasets
"""

import dataclasses
import gzip
import hashlib
import json
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from of_jax.config.paths import expanded
from of_jax.data import image_files, pypi_code, tfds_text
from of_jax.data.documents import held_out
from of_jax.data.image_files import Bytes, Labels
from of_jax.errors import UserError

Log = Callable[[str], None]

DIGITS_REQUIREMENTS = Path(__file__).with_name("digits_requirements.txt")
# Any wheel holds the same data; this is the smallest.
_DIGITS_WHEEL = ("macosx_12_0_arm64", "3.12", "cp")
_DIGITS_IN_WHEEL = "sklearn/datasets/data/digits.csv.gz"

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
# File -> sha256 of its content, unpacked; Debian packs it otherwise than its makers do.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"}
_SECONDS_TO_ANSWER = 20

_CIFAR10_PARTS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "validation": ["test_batch"]}


@dataclasses.dataclass(frozen=True)
class ImageSplit:
  """Images to train on and to validate on, as the corpus has them.

  Attributes:
    train, validation: images, uint8 [count, entries], and their labels [count], from 0.
    rule: how they were told apart, in words.
  """

  train: tuple[Bytes, Labels]
  validation: tuple[Bytes, Labels]
  rule: str


@dataclasses.dataclass(frozen=True)
class ImageSource:
  """Corpus of images before it is whitened.

  Attributes:
    name: as the config has it.
    fingerprint: changes whenever the images would.
    split: reads or downloads what `fingerprint` did not need; holds out the fraction given where
      the corpus has no validation images of its own.
  """

  name: str
  fingerprint: str
  split: Callable[[float], ImageSplit]


def source(corpus: str, log: Log) -> ImageSource:
  """Finds the source of images that `data.corpus` names.

  Raises:
    UserError: no such folder, a file that is missing or not what it should be, a package that
      is not installed, a download that fails.
  """
  kind, _, rest = corpus.partition(":")
  if kind == "digits":
    return _digits(log)
  if kind == "fashion_mnist":
    return _fashion_mnist(rest, log)
  if kind == "cifar10":
    return _cifar10(rest)
  return _tfds(rest)


def _digits(log: Log) -> ImageSource:
  """Describes the UCI repository's handwritten digits, entries 0 to 16, as in scikit-learn."""
  pin = DIGITS_REQUIREMENTS.read_text().split("sha256:")[1].strip()

  def split(fraction: float) -> ImageSplit:
    log("digits: downloading a wheel of scikit-learn with pip, 9 MB")
    with tempfile.TemporaryDirectory() as folder:
      pypi_code.download(DIGITS_REQUIREMENTS, Path(folder), "config.data.corpus=digits",
                         *_DIGITS_WHEEL)
      with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
        table = gzip.decompress(wheel.read(_DIGITS_IN_WHEEL)).decode("ascii")
    rows = np.array([[int(float(value)) for value in line.split(",")]
                     for line in table.splitlines()])
    held = np.array(held_out(len(rows), fraction), np.int64)
    if not 0 < len(held) < len(rows):
      raise UserError(f"config.data.validation_fraction={fraction}: holds out {len(held)} of the "
                      f"{len(rows):,} images of digits")
    kept = np.setdiff1d(np.arange(len(rows)), held)

    def part(indices: Labels) -> tuple[Bytes, Labels]:
      return rows[indices, :-1].astype(np.uint8), rows[indices, -1]

    return ImageSplit(part(kept), part(held), "by image, in the order of the indices' sha256")

  return ImageSource("digits", hashlib.sha256(pin.encode()).hexdigest(), split)


def _fashion_mnist(path: str, log: Log) -> ImageSource:
  name = f"fashion_mnist:{path}" if path else "fashion_mnist"
  where = f"config.data.corpus={name}"
  if path:
    folder = _folder(where, path)
    files = {stem: _idx_file(where, folder, stem) for stem in FASHION_MNIST_SHA256}
    fingerprint = _hash_of(files)
  else:
    files = {}
    fingerprint = hashlib.sha256(json.dumps(FASHION_MNIST_SHA256).encode()).hexdigest()

  def split(fraction: float) -> ImageSplit:
    raws = files or {stem: _known_file(stem, log) for stem in FASHION_MNIST_SHA256}
    pairs = {}
    for part, prefix in (("train", "train"), ("validation", "t10k")):
      try:
        pairs[part] = image_files.read_idx_pair(raws[f"{prefix}-images-idx3-ubyte"],
                                                raws[f"{prefix}-labels-idx1-ubyte"])
      except ValueError as error:
        raise UserError(f"{where}: {prefix}-*-ubyte {error}") from None
    return ImageSplit(pairs["train"], pairs["validation"], "its own test images")

  return ImageSource(name, fingerprint, split)


def _known_file(stem: str, log: Log) -> bytes:
  """Reads one of the four files from Debian's package or its makers' address; checks its hash."""
  here = DEBIAN_FOLDER / f"{stem}.gz"
  url = f"{FASHION_MNIST_URL}/{stem}.gz"
  where = "config.data.corpus=fashion_mnist"
  try:
    if here.exists():
      raw = here.read_bytes()
    else:
      log(f"fashion_mnist: downloading {stem}.gz")
      with urllib.request.urlopen(url, timeout=_SECONDS_TO_ANSWER) as answer:
        raw = answer.read(image_files.LARGEST)
    raw = image_files.unpack(raw)
  except (OSError, ValueError) as error:
    origin = here if here.exists() else url
    raise UserError(
        f"{where}: {origin} cannot be read: {' '.join(str(error).split())[:100]}; install Debian's "
        "package dataset-fashion-mnist, give fashion_mnist:PATH with the four files, or use "
        "digits, which comes from PyPI") from None
  if hashlib.sha256(raw).hexdigest() != FASHION_MNIST_SHA256[stem]:
    raise UserError(f"{where}: the sha256 of {stem} is not the known one")
  return raw


def _cifar10(path: str) -> ImageSource:
  name = f"cifar10:{path}"
  where = f"config.data.corpus={name}"
  folder = _folder(where, path)
  binary = (folder / "test_batch.bin").exists() or (folder / "data_batch_1.bin").exists()
  suffix, read = ((".bin", image_files.read_cifar10_binary) if binary
                  else ("", image_files.read_cifar10_python))
  raws = {stem: _file(where, folder / (stem + suffix))
          for stems in _CIFAR10_PARTS.values() for stem in stems}

  def split(fraction: float) -> ImageSplit:
    pairs = {}
    for part, stems in _CIFAR10_PARTS.items():
      batches = []
      for stem in stems:
        try:
          batches.append(read(raws[stem]))
        except ValueError as error:
          raise UserError(f"{where}: {stem}{suffix} {error}") from None
      pixels, labels = zip(*batches)
      pairs[part] = np.concatenate(pixels), np.concatenate(labels)
    return ImageSplit(pairs["train"], pairs["validation"], "its own test images")

  return ImageSource(name, _hash_of(raws), split)


def _tfds(name: str) -> ImageSource:
  where = f"config.data.corpus=tfds:{name}"
  builder = tfds_text.open_builder(where, name)
  features = {key: type(feature).__name__ for key, feature in builder.info.features.items()}
  image = next((key for key, kind in features.items() if kind == "Image"), None)
  label = next((key for key, kind in features.items() if kind == "ClassLabel"), None)
  if image is None or label is None:
    raise UserError(f"{where}: needs an image and a class label, and has "
                    + ", ".join(f"{key} ({kind})" for key, kind in features.items()))
  counts = {part: int(builder.info.splits[part].num_examples) for part in builder.info.splits}
  held = next((part for part in ("validation", "test") if counts.get(part)), None)
  if held is None or not counts.get("train"):
    raise UserError(f"{where}: needs a split train and a split validation or test, and has "
                    + ", ".join(counts))

  def read(part: str) -> tuple[Bytes, Labels]:
    data: Any = builder.as_data_source(split=part)
    images = [np.asarray(data[i][image], np.uint8).reshape(-1) for i in range(counts[part])]
    sizes = sorted({len(pixels) for pixels in images})
    if len(sizes) > 1:
      raise UserError(f"{where}: its images are not of one size, but of {sizes[0]} to {sizes[-1]} "
                      "entries")
    return np.stack(images), np.array([int(data[i][label]) for i in range(counts[part])])

  def split(fraction: float) -> ImageSplit:
    return ImageSplit(read("train"), read(held), f"the dataset's own split {held}")

  identity = json.dumps([builder.info.full_name, image, label, sorted(counts.items())])
  return ImageSource(f"tfds:{name}", hashlib.sha256(identity.encode()).hexdigest(), split)


def _folder(where: str, path: str) -> Path:
  folder = expanded(path, where)
  if not folder.is_dir():
    raise UserError(f"{where}: no such folder")
  return folder


def _idx_file(where: str, folder: Path, stem: str) -> bytes:
  packed = folder / f"{stem}.gz"
  return _file(where, packed if packed.exists() else folder / stem)


def _file(where: str, path: Path) -> bytes:
  try:
    return image_files.read_bytes(path)
  except ValueError as error:
    raise UserError(f"{where}: {path.name} {error}") from None


def _hash_of(raws: dict[str, bytes]) -> str:
  digest = hashlib.sha256()
  for stem, raw in sorted(raws.items()):
    digest.update(f"{stem} {hashlib.sha256(raw).hexdigest()}\n".encode())
  return digest.hexdigest()
