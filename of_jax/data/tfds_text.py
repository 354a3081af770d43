"""Documents from TensorFlow Datasets, without TensorFlow.

Enters: a dataset's name. Leaves: a `Source` of the texts in its text feature.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, overload

from of_jax.data.documents import Document, Source, Split, held_out
from of_jax.errors import UserError

_TEXT_NAMES = ("text", "document", "content", "article", "story", "book_text", "sentence")


def source(name: str, field: str = "") -> Source:
  """Describes the corpus of the dataset `name`, preparing the dataset where that was not done.

  Its texts are those of the feature `field`, by default of one that is named like a text.

  A name is as in `lm1b`, `wiki40b/en` or `pg19:0.1.1`. Held out for validation is the dataset's own
  validation split, else its test split, else examples of train chosen by the sha256 of their index.

  Raises:
    UserError: tfds is not installed, does not know or cannot prepare the dataset, or the
      dataset has no text.
  """
  where = f"config.data.corpus=tfds:{name}"
  builder = open_builder(where, name)
  feature = _text_feature(where, builder.info.features, field)
  splits = builder.info.splits
  if "train" not in splits:
    raise UserError(f"{where}: has no split train, only {', '.join(splits)}")
  counts = {part: int(splits[part].num_examples) for part in splits}
  identity = json.dumps([builder.info.full_name, feature, sorted(counts.items())])
  return Source(f"tfds:{name}", hashlib.sha256(identity.encode()).hexdigest(),
                functools.partial(_split, where, builder, feature, counts), {
                    "policy": "as the data set has it; bytes that are not UTF-8 become U+FFFD",
                    "text_fields": {feature: counts["train"]}})


def open_builder(where: str, name: str) -> Any:
  """Opens the dataset `name` of TensorFlow Datasets, downloading and preparing it if needed.

  Args:
    where: begins an error's message: the field that names the dataset.
    name: as TensorFlow Datasets takes it.

  Returns:
    Its builder, whose data can be read in any order.

  Raises:
    UserError: the package is not installed, or cannot open or prepare the dataset.
  """
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise UserError(f"{where}: tensorflow_datasets is not installed; "
                    "run pip install -e '.[tfds]'") from None
  try:
    builder = tfds.builder(name, file_format="array_record")
  except Exception as error:  # Its own errors have no common class, and span many lines.
    raise UserError(f"{where}: tensorflow_datasets cannot open it: {_short(error)}") from None
  try:
    builder.download_and_prepare()
  except Exception as error:
    raise UserError(f"{where}: could not be downloaded and prepared: {_short(error)}") from None
  return builder


def _split(where: str, builder: Any, feature: str, counts: dict[str, int],
           fraction: float) -> Split:
  own = next((part for part in ("validation", "test") if counts.get(part)), None)
  train = _Examples(builder, "train", feature, range(counts["train"]))
  if own:
    return Split(train, _Examples(builder, own, feature, range(counts[own])),
                 f"the dataset's own split {own}")
  held = held_out(counts["train"], fraction)
  if not held or len(held) == counts["train"]:
    raise UserError(f"{where}: {counts['train']} examples are too few to hold out "
                    f"config.data.validation_fraction={fraction}")
  known = set(held)
  kept = [i for i in range(counts["train"]) if i not in known]
  return Split(_Examples(builder, "train", feature, kept),
               _Examples(builder, "train", feature, held),
               "by example, in the order of the indices' sha256")


def _text_feature(where: str, features: Any, wanted: str) -> str:
  """Chooses a text feature: the one that is wanted, one that is named like a text, the first."""
  names = [name for name in features if type(features[name]).__name__ == "Text"]
  if not names:
    raise UserError(f"{where}: has no text feature, only {', '.join(features)}")
  if wanted and wanted not in names:
    raise UserError(f"{where}: has no text feature {wanted}, only {', '.join(names)}")
  return wanted or next((name for name in _TEXT_NAMES if name in names), names[0])


class _Examples(Sequence[Document]):
  """Documents at `indices` of a split, read one at a time."""

  def __init__(self, builder: Any, part: str, feature: str, indices: Sequence[int]):
    self._data = builder.as_data_source(split=part)
    self._part, self._feature, self._indices = part, feature, indices

  def __len__(self) -> int:
    return len(self._indices)

  @overload
  def __getitem__(self, index: int) -> Document:
    ...

  @overload
  def __getitem__(self, index: slice) -> Sequence[Document]:
    ...

  def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    i = self._indices[index]
    return Document(f"{self._part}/{i}", 0, functools.partial(self._read, i))

  def _read(self, i: int) -> str:
    value = self._data[i][self._feature]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _short(error: Exception) -> str:
  """Shortens an error, which may be pages, to its type and first line."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason'}"
