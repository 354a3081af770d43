"""Texts of a user's own function, `data.corpus=FILE.py:NAME`.

The function takes nothing and yields texts, or pairs of a name and a text. It is run once for the
content of its file: the tokens stay in the cache, and a later run reads them there.
"""

from collections.abc import Callable, Iterable

from of_jax import user_code
from of_jax.data.documents import Document, Source, Split, hold_out
from of_jax.errors import THEIRS, UserError, reason_of


def source(text: str) -> Source:
  """Finds the corpus that FILE.py:NAME stands for.

  Raises:
    UserError: no such file.
  """
  where = f"config.data.corpus={text}"
  user_code.check(where, text)
  name = user_code.split(text)[1]
  return Source(user_code.shown(text), f"{user_code.sha256(user_code.file_of(text))}:{name}",
                lambda fraction: _split(user_code.load(text, where), where, fraction))


def _split(function: Callable[[], Iterable[object]], where: str, fraction: float) -> Split:
  texts = _texts(function, where)
  sizes = {name: len(text.encode("utf-8", "replace")) for name, text in texts.items()}
  held = hold_out(sizes, fraction)
  documents = {name: Document(name, sizes[name], lambda text=text: text)  # type: ignore[misc]
               for name, text in texts.items()}
  for part, names in (("validation", held), ("training", {*texts} - held)):
    if not names:
      raise UserError(f"{where}: {len(texts)} texts leave none for {part}; give more, or another "
                      "config.data.validation_fraction")
  return Split([documents[name] for name in texts if name not in held],
               [documents[name] for name in texts if name in held],
               f"whole texts by the sha256 of their names, {fraction:g} of the bytes")


def _texts(function: Callable[[], Iterable[object]], where: str) -> dict[str, str]:
  texts: dict[str, str] = {}
  try:
    for i, item in enumerate(function()):
      name, text = item if isinstance(item, tuple) and len(item) == 2 else (f"{i:09}", item)
      if not isinstance(name, str) or not isinstance(text, str):
        raise UserError(f"{where}: gives {type(text).__name__} as text {i}; it yields texts, or "
                        "pairs of a name and a text")
      if name in texts:
        raise UserError(f"{where}: gives two texts of the name {name}")
      texts[name] = text
  except UserError:
    raise
  except THEIRS as error:
    raise UserError(user_code.fault(error) or f"{where}: fails with {reason_of(error)}") from error
  return texts
