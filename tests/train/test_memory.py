"""A model that cannot fit the memory is refused before a corpus is asked for."""

from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from of_jax.config import Config
from of_jax.data import corpora
from of_jax.errors import UserError
from of_jax.sweep.trainer import train_together
from of_jax.train import memory, startup, train
from of_jax.train.sharding import make_mesh
from of_jax.train.trainer import make_trainer

MakeConfig = Callable[..., Config]


@pytest.fixture
def no_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
  def asked(*_: object) -> None:
    pytest.fail("a corpus was opened")

  monkeypatch.setattr(corpora, "prepare", asked)
  monkeypatch.setattr(startup, "prepare", asked)


@pytest.mark.parametrize("together", [False, True])
def test_it_is_refused_before_a_corpus_is_opened(
    make_config: MakeConfig, tmp_path: Path, no_corpus: None, together: bool) -> None:
  """A million neurons wide: terabytes. Nothing of the run is left."""
  configs = [make_config(model__width=2 ** 20, model__heads=1, data__corpus="pypi_code",
                         data__vocab_size=512, train__seed=seed) for seed in range(2)]
  with pytest.raises(UserError, match=r"take [\d,.]+ GB of this machine, which has") as error:
    if together:
      train_together({tmp_path / f"run_{i}": one for i, one in enumerate(configs)}, print)
    else:
      train(configs[0], tmp_path / "run_0", print)
  assert "\n" not in str(error.value)
  assert ("of 2 runs" in str(error.value)) == together
  assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_what_is_needed_is_what_a_device_holds(make_config: MakeConfig) -> None:
  """Each of two devices has half of the parameters and moments, but for what cannot be split."""
  found = {}
  for split in (1, 2):
    config = make_config(mesh__fsdp=split)
    trainer = make_trainer(config, make_mesh(config))
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    found[split] = memory.bytes_of_a_device(shapes, trainer.shardings)
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
  assert found[1] == whole and whole / 2 <= found[2] < 0.7 * whole


def test_the_line_is_drawn_at_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                            ) -> None:
  memory.check("a device", 10, 10)
  memory.check("a device", 10, None)
  with pytest.raises(UserError, match="a device, which has 0.0 GB"):
    memory.check("a device", 11, 10)
  limit = tmp_path / "memory.max"
  monkeypatch.setattr(memory, "_CONTAINER", (str(limit), str(tmp_path / "none")))
  machine = memory.of_this_machine()
  for text, expected in (("max\n", machine), ("4096\n", 4096), (str(2 ** 62), machine)):
    limit.write_text(text)
    assert memory.of_this_machine() == expected
