"""Small models of each family and of each way to set rotary frequencies, against their own code."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from of_jax.interop import load
from tests.fidelity import Comparison
from tests.golden import foreign

GOLDEN = np.load(Path(foreign.__file__).with_suffix(".npz"))
# Against what a form is compared, and on which day: transformers, and the released OF code.
_LIBRARY = "transformers, float32, eager", "5.24.0", "2026-11-27"
_RELEASED = "bobby-he/simplified_transformers", "8d4ea79, transformers 5.23.0", "2026-11-22"


def logit_error(form: str) -> float:
  """Returns the largest difference of a logit of a form from theirs."""
  with tempfile.TemporaryDirectory() as folder:
    logits = load(foreign.save_folder(Path(folder), form)).logits(foreign.TOKENS)
  return float(np.abs(logits.astype(np.float64) - GOLDEN[f"{form}/logits"]).max())


COMPARISONS = [
    Comparison(f"small model {form}, weights from a seed",
               *(_RELEASED if form.startswith("of_") else _LIBRARY),
               measure="largest difference of a logit",
               error=functools.partial(logit_error, form), tolerance=2e-4, slow=True)
    for form in foreign.FORMS
]
