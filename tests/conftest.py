"""Eight CPU devices for every test, and a corpus of random tokens that needs no tokenizer."""

import fnmatch
import os
import signal
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # As of_jax/commands/cli.py does, and for its reason.
# Compiling is most of the suite's time. Tests of bits run the binary, without these.
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if version("jaxlib").startswith("0.10."):
  # A third of the time. Later versions have no such flag, and end the process over it.
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(_FLAGS)

# Where tests run behind `&` it is ignored, and so it would be by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from of_jax import config as config_lib  # noqa: E402

VOCAB = 64
# Where `-m quick` looks, in under two minutes on two cores: fnmatch patterns of test ids.
QUICK = (
    "tests/analysis/test_runs.py::*", "tests/config/*", "tests/cost_model/*",
    "tests/data/test_cache.py::*", "tests/data/test_loader.py::*", "tests/data/test_tokens.py::*",
    "tests/experiments/test_variants.py::*", "tests/interop/test_safetensors.py::*",
    "tests/models/test_conformance.py::*[[]op[]]",
    "tests/models/test_conformance.py::*[[]pre rms[]]", "tests/models/test_norms.py::*",
    "tests/objectives/test_losses.py::*", "tests/optim/test_matrices.py::*",
    "tests/optim/test_radial.py::*", "tests/optim/test_scaling.py::*",
    "tests/quantise/test_quantisers.py::*", "tests/quantise/test_scheme.py::*",
    "tests/test_[!d]*.py::*", "tests/test_docs.py::test_[elt]*")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
  """Passes by the files of which `-m quick` has nothing, since importing them takes seconds."""
  if config.getoption("markexpr") != "quick" or not collection_path.match("test_*.py"):
    return None
  name = collection_path.relative_to(config.rootpath).as_posix()
  return not any(fnmatch.fnmatch(name, pattern.partition("::")[0]) for pattern in QUICK) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  for item in items:
    if not item.get_closest_marker("slow") and any(
        fnmatch.fnmatch(item.nodeid, pattern) for pattern in QUICK):
      item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Tokens in which each mostly decides the next, so that a loss can fall; 0 ends a document."""
  rng = np.random.default_rng(0)
  follower = rng.permutation(VOCAB)
  tokens = np.empty(20_000, np.uint16)
  tokens[0] = 1
  noise = rng.random(len(tokens)) < 0.2
  for i in range(1, len(tokens)):
    tokens[i] = rng.integers(VOCAB) if noise[i] else follower[tokens[i - 1]]
  path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
  np.save(path, tokens)
  return path


@pytest.fixture
def make_config(token_file: Path) -> Callable[..., config_lib.Config]:
  """A model that compiles in seconds; keywords are fields, as `model__block="op"`."""

  def make(**fields: object) -> config_lib.Config:
    settings = {
        "model__width": 32, "model__depth": 3, "model__heads": 4, "model__embedding_scale": 8,
        "train__steps": 6, "train__batch_size": 8, "train__sequence_length": 16,
        "train__eval_every": 4, "train__checkpoint_every": 3, "train__tensorboard": False,
        "data__corpus": f"tokens:{token_file}", "data__vocab_size": VOCAB,
        "data__eval_sequences": 16, "optim__warmup_steps": 0, "mesh__data": 1, **fields}
    texts = [(path.replace("__", "."), "none" if value is None else str(value))
             for path, value in settings.items()]
    return config_lib.apply_overrides(config_lib.Config(), texts)

  return make
