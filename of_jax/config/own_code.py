"""Fields that take code of a user's own, FILE.py:NAME, in place of a name of the package.

They are those that choose a file of a variant of the model or an optimiser, the corpus, and the
loss's own term.
"""

from pathlib import Path
from typing import Any

from of_jax import user_code, variants
from of_jax.config import traits
from of_jax.config.fields import fields, get, replaced
from of_jax.config.sections import Config
from of_jax.errors import UserError

CORPUS, TERM = "data.corpus", "train.loss_term"
# What stands before the colon of corpora that are no file of Python.
_KINDS_OF_CORPORA = ("text", "tokens", "tfds", "fashion_mnist", "cifar10")


def takes(path: str) -> bool:
  """Says whether the field at a dotted path takes code of a user's own."""
  folder = fields()[path].metadata["folder"]
  return folder in (*variants.FOLDERS, traits.OPTIMIZERS) or path in (CORPUS, TERM)


def is_own(path: str, value: Any) -> bool:
  """Says whether the value of such a field is meant as FILE.py:NAME."""
  return user_code.is_own(value) and not (
      path == CORPUS and value.partition(":")[0] in _KINDS_OF_CORPORA)


def check(path: str, text: str) -> None:
  """Checks FILE.py:NAME of a field, without running it.

  Raises:
    UserError: nothing there, or a variant without the trait that the field asks for.
  """
  user_code.check(f"config.{path}={text}", text)
  folder, trait = (fields()[path].metadata[name] for name in ("folder", "trait"))
  if folder in traits.KINDS:
    found = traits.of(folder, text)
    if trait and not getattr(found, trait):
      raise UserError(f"config.{path}={text}: must state {trait.upper()} = True at its top, if it "
                      "may stand there")


def named(config: Config) -> dict[str, str]:
  """Lists what a config names of a user's own: the field's path -> FILE.py:NAME."""
  return {path: value for path in fields()
          if takes(path) and is_own(path, value := get(config, path))}


def copies(config: Config, folder: Path) -> dict[str, Path]:
  """Says where a run directory has copies: the file as it was typed -> its copy in `folder`."""
  files = dict.fromkeys(user_code.split(text)[0] for text in named(config).values())
  return {file: folder / user_code.FOLDER / f"{i}_{Path(file).name}"
          for i, file in enumerate(files)}


def of_run(config: Config, folder: Path) -> Config:
  """Has a config that was read from a run directory name the copies there, and nothing else."""
  there = copies(config, folder)
  changed = {}
  for path, text in named(config).items():
    file, name = user_code.split(text)
    changed[path] = f"{there[file]}:{name}" if name.isidentifier() else text
  return replaced(config, changed)


def trust(config: Config) -> None:
  """Lets copies in run directories be run that say the same as what a user's config names."""
  for text in named(config).values():
    user_code.trust(text)


def shown(config: Config) -> Config:
  """Has a config name its user's own code by the files' own names, for people."""
  return replaced(config, {path: user_code.shown(text) for path, text in named(config).items()})
