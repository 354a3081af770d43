"""Word among a job's processes that one of them ends by itself, so that all end with a line.

Without it the others would wait for that process until JAX misses it, and then be aborted with a
page of JAX's own. That is left for what cannot speak any more: a kill, a lost machine.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from of_jax import signals

_PLACE = "of_jax/ended"
_POLL = 1.0
# What a process has that fails for the same reason, to say so itself.
_GRACE = 2.0
# What process 0, at which all meet, waits for the others to have heard.
_HEARING = 15.0
# What a person waits who pressed Ctrl-C where there is nothing to save.
_AT_MOST = 8.0


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Ends this process, while the block runs, once another of its job has said that it ends."""
  over = threading.Event()
  thread = threading.Thread(target=_listen, args=(over,), name="parting", daemon=True)
  thread.start()
  watch = signals.current()
  if watch is not None:
    watch.tells(lambda message, status: _tell_for(_AT_MOST, message, status))
  try:
    yield
  finally:
    if watch is not None:
      watch.tells(None)
    over.set()
    thread.join(_POLL)


def end(message: str, status: int) -> None:
  """Ends this process at once with a line, and the others of its job with the same status."""
  _tell_for(_HEARING + _GRACE, message, status)
  signals.end(message, status)


def end_as_another_did(seconds: float) -> None:
  """Ends this process as another of its job did, if that one says so within this time."""
  deadline = time.monotonic() + seconds
  with contextlib.suppress(Exception):  # The meeting point is gone, which is JAX's to say.
    while not (word := _word_of_another()) and time.monotonic() < deadline:
      time.sleep(_POLL / 10)
    if word:
      end(*word)


def _listen(over: threading.Event) -> None:
  while not over.wait(_POLL):
    try:
      word = _word_of_another()
    except Exception:  # The meeting point is gone, which is JAX's to say.
      return
    if word and not over.wait(_GRACE):
      end(*word)


def _word_of_another() -> tuple[str, int] | None:
  """Reads whether another process has said that it ends, and this one has not; what to say of it,
  and its status."""
  ours, said = jax.process_index(), _said()
  if not said or ours in said:
    return None
  first = min(said)
  return (f"process {ours} of {jax.process_count()}: process {first} ended: "
          f"{said[first]['message']}", said[first]["status"])


def _tell_for(seconds: float, message: str, status: int) -> None:
  # Where the meeting point is gone, nobody is told, and nothing waits for that.
  telling = threading.Thread(target=_tell, args=(message, status), daemon=True)
  telling.start()
  telling.join(seconds)


def _tell(message: str, status: int) -> None:
  with contextlib.suppress(Exception):
    _client().key_value_set(f"{_PLACE}/{jax.process_index()}",
                            json.dumps({"message": message, "status": status}))
    deadline = time.monotonic() + _HEARING
    while jax.process_index() == 0 and len(_said()) < jax.process_count():
      if time.monotonic() > deadline:
        return
      time.sleep(_POLL / 10)
    if jax.process_index() == 0:
      time.sleep(_GRACE)  # They are gone before the meeting point is.


def _said() -> dict[int, dict[str, Any]]:
  found = _client().key_value_dir_get(_PLACE)
  return {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in found}


def _client() -> Any:
  # JAX has no public name for what its processes tell each other by.
  from jax._src import distributed
  return distributed.global_state.client
