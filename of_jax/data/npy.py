"""Arrays of numbers in .npy files, as memory maps.

Enters: a path. Leaves: the array. What its head says is held against the file's size before
anything is made of it; pickles and archives are not opened.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY"
# What stands in place of a .npy file, by its first bytes.
_OTHERS = {b"PK": "it is an archive of arrays, .npz; save one array", b"\x80": "it is a pickle"}
_MOST_AXES = 8


def open_npy(path: Path) -> npt.NDArray[Any]:
  """Opens an array, of whole numbers or floats of any size.

  Raises:
    ValueError: it holds something else; the message is why, in a few words.
    OSError: it cannot be read.
  """
  with path.open("rb") as file:
    start = file.read(len(_MAGIC))
    if start != _MAGIC:
      raise ValueError(next((words for magic, words in _OTHERS.items() if start.startswith(magic)),
                            "it does not begin as one"))
    file.seek(0)
    try:
      version = np.lib.format.read_magic(file)
      read = {(1, 0): np.lib.format.read_array_header_1_0,
              (2, 0): np.lib.format.read_array_header_2_0}[version]
      shape, is_fortran, dtype = read(file)
    except Exception as error:  # The head is parsed as Python, which can fail in any way.
      raise ValueError(f"its head cannot be read: {type(error).__name__}") from None
    offset, size = file.tell(), file.seek(0, 2)
  if dtype.kind not in "iufb" or dtype.shape:
    raise ValueError(f"it holds {str(dtype)[:40]}, and no plain numbers")
  if len(shape) > _MOST_AXES or any(type(n) is not int or not 0 <= n <= size for n in shape):
    raise ValueError(f"its shape {str(shape)[:60]} is none of an array in so many bytes")
  count = math.prod(shape)
  if offset + count * dtype.itemsize != size:
    raise ValueError(f"{dtype} of shape {str(shape)[:60]} takes {count * dtype.itemsize:,} bytes, "
                     f"and there are {size - offset:,}: it is truncated or damaged")
  order: Literal["C", "F"] = "F" if is_fortran else "C"
  flat = np.memmap(path, dtype, "r", offset) if count else np.zeros(0, dtype)
  return flat.reshape(shape, order=order)
