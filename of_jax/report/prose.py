"""The page's first paragraphs. Enters: runs and study.json's object. Leaves: sentences.

Every number is read from a run or from the record; none is typed in here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import Run
from of_jax.claims.study_record import flatten
from of_jax.report.series import field_name, shown, varied
from of_jax.report.terminal import show, status

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve")


def title(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  """Makes the page's heading."""
  if study is not None:
    return f"Study {study['study']}, scale {study['scale']}"
  return f"Run {next(iter(runs))}" if len(runs) == 1 else f"{len(runs)} runs"


def trained(runs: Mapping[str, Run]) -> str:
  """Says what was trained, in a few sentences."""
  configs = [flatten(run.config) for run in runs.values()]

  def values(path: str) -> str:
    return _listed(dict.fromkeys(_value(c[path]) for c in configs))

  parameters = _listed(dict.fromkeys(
      _millions(run.env["parameters"]) for run in runs.values() if "parameters" in run.env))
  differ = [field_name(p) for p in varied(runs)]
  images = all(run.reads_images for run in runs.values())
  noun, read, batch = (
      ("residual MLP", f"{values('data.classes')} classes", "images") if images else
      ("decoder-only transformer", f"vocabulary {values('data.vocab_size')}",
       f"x {values('train.sequence_length')} tokens"))
  text = (f"{_count(len(runs), noun)} of depth {values('model.depth')} and "
          f"width {values('model.width')}{f' ({parameters} parameters)' if parameters else ''} on "
          f"{values('data.corpus')}, {read}: "
          f"{values('train.steps')} steps of {values('train.batch_size')} {batch}"
          f"{' each' if len(runs) > 1 else ''}, with {values('optim.name')}.")
  if differ:
    text += f" They differ in {_listed(differ)}."
  unfinished = [r.name for r in runs.values() if status(r) != "finished"]
  if unfinished:
    text += f" Not finished or diverged: {_listed(unfinished)}."
  return text[0].upper() + text[1:]


def found(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> list[tuple[str, str]]:
  """Lists (verdict, sentence) of each claim; without a study, of what the kurtosis did."""
  if study is not None:
    # What was not judged must still say what was asked.
    return [(str(c["verdict"]), sentence(str(c.get("summary") or c["statement"]))
             if c["verdict"] != "inconclusive" else
             f"{sentence(str(c['statement']))} Not judged: {c.get('summary', '')}.")
            for c in study["claims"]]
  peaks = {n: run.peak("kurtosis") for n, run in runs.items()}
  peaks = {n: p for n, p in peaks.items() if math.isfinite(p)}
  if not peaks:
    return [("", "No kurtosis was measured.")]
  top, bottom = max(peaks, key=lambda n: peaks[n]), min(peaks, key=lambda n: peaks[n])
  text = f"Kurtosis peaks at {show(peaks[top])} in {top}"
  if top != bottom:
    text += f", the highest, and at {show(peaks[bottom])} in {bottom}, the lowest"
  return [("", text + ". No study is recorded here, so no claim is judged.")]


def against_paper(runs: Mapping[str, Run],
                  study: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
  """Lists (field, here, in the paper) where the runs' values are not the paper's."""
  rows = []
  for path, paper in ((study or {}).get("paper_setup") or {}).items():
    here = list(dict.fromkeys(_value(flatten(run.config)[path]) for run in runs.values()))
    if here != [paper]:
      rows.append((field_name(path), _listed(here), paper))
  return rows


def small(runs: Mapping[str, Run]) -> str:
  """Says how far one experiment of this size reaches."""
  tokens = [run.config.train.steps * run.config.train.batch_size
            * run.config.train.sequence_length for run in runs.values()]
  seeds = sorted({run.config.train.seed for run in runs.values()})
  unit = "images" if all(run.reads_images for run in runs.values()) else "tokens"
  return (f"Each run reads {_listed(dict.fromkeys(map(_millions, tokens)))} {unit} and there "
          f"{'is one seed' if len(seeds) == 1 else f'are {_word(len(seeds))} seeds'}, so small "
          "differences in loss mean little: only differences between the means of seeds count.")


def _value(value: Any) -> str:
  is_count = isinstance(value, int) and not isinstance(value, bool)
  return f"{value:,}" if is_count else shown(value)


def _millions(number: float) -> str:
  for size, word in ((1e9, "billion"), (1e6, "million")):
    if number >= size:
      return f"{number / size:.3g} {word}"
  return f"{number:,.0f}"


def _word(number: int) -> str:
  return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def _count(number: int, noun: str) -> str:
  return f"{_word(number)} {noun}{'' if number == 1 else 's'}"


def _listed(items: Any) -> str:
  items = list(items)
  return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] \
      if items else ""


def sentence(text: str) -> str:
  """Makes a sentence of `text`: a capital and a full stop."""
  if not text:
    return text
  # A run's name at the beginning keeps its own spelling.
  first = text.split(" ", 1)[0]
  text = text if "_" in first else text[:1].upper() + text[1:]
  return text if text.endswith(".") else text + "."


def evidence_rows(evidence: Mapping[str, Any], prefix: Sequence[str] = ()) -> list[
    tuple[str, str]]:
  """Flattens nested evidence into rows (what, value), numbers to four digits."""
  rows: list[tuple[str, str]] = []
  for key, value in evidence.items():
    path = (*prefix, str(key) if "=" in str(key) or prefix else str(key))
    if isinstance(value, Mapping):
      rows += evidence_rows(value, path)
    else:
      items = value if isinstance(value, (list, tuple)) else [value]
      text = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in items)
      rows.append((" · ".join(p if _is_run_name(p) else p.replace("_", " ") for p in path),
                   text))
  return rows


def _is_run_name(text: str) -> bool:
  return any(c.isdigit() for c in text)
