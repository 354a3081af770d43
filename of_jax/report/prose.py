"""The page's first paragraphs. Enters: runs and study.json's object. Leaves: sentences.

Every number is read from a run or from the record; none is typed in here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import SITE, Run, read_measurements
from of_jax.claims.study_record import flatten
from of_jax.report.series import field_name, shown, varied
from of_jax.report.terminal import show, show_loss, status

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve")


def title(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  """Makes the page's heading: a study's question, where it declares one."""
  if study is not None:
    return str(study.get("question") or f"Study {study['study']}, scale {study['scale']}")
  if len(runs) > 1:
    return f"{len(runs)} runs side by side"
  return f"{'Model' if all(run.is_loaded for run in runs.values()) else 'Run'} {next(iter(runs))}"


def described(runs: Mapping[str, Run]) -> str:
  """Says what was trained, and what came from elsewhere, in a few sentences."""
  here = {name: run for name, run in runs.items() if not run.is_loaded}
  return " ".join([*([trained(here)] if here else []),
                   *(loaded(run) for run in runs.values() if run.is_loaded)])


def loaded(run: Run) -> str:
  """Says what is known of a model that was loaded from elsewhere."""
  model, source = run.config.model, run.env.get("loaded_from") or {}
  parameters = source.get("parameters")
  known = f"{source['kind']}, " if "kind" in source else ""
  known += f"{_millions(parameters)} parameters, " if isinstance(parameters, int) else ""
  return (f"{run.name} was not trained here: its weights come from "
          f"{source.get('path', 'elsewhere')} ({known}depth {model.depth}, width {model.width:,}, "
          f"vocabulary {run.config.data.vocab_size:,}, at most "
          f"{run.config.train.sequence_length:,} tokens). How it was trained, on what and for how "
          "long is not known.")


def trained(runs: Mapping[str, Run]) -> str:
  """Says how runs were trained, in a few sentences."""
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


def measured(runs: Mapping[str, Run]) -> list[str]:
  """Says what the kurtosis of runs did, a sentence each; of loaded models, what was measured."""
  if all(run.is_loaded for run in runs.values()):
    return [text for run in runs.values() for text in _measured(run)]
  peaks = {n: run.peak("kurtosis") for n, run in runs.items()}
  peaks = {n: p for n, p in peaks.items() if math.isfinite(p)}
  if not peaks:
    return ["No kurtosis was measured."]
  top, bottom = max(peaks, key=lambda n: peaks[n]), min(peaks, key=lambda n: peaks[n])
  text = f"Kurtosis peaks at {show(peaks[top])} in {top}"
  if top != bottom:
    text += f", the highest, and at {show(peaks[bottom])} in {bottom}, the lowest"
  return [text + ". No study is recorded here, so no claim is judged."]


def _measured(run: Run) -> list[str]:
  """Says what was measured of a model, a sentence a step; how to, where nothing was."""
  measured = read_measurements(run)
  if not measured:
    return [f"Nothing was measured of {run.name} yet: experiments.measure --run={run.path} "
            f"--out={run.path} --text=FILE leaves its numbers here."]
  texts = []
  for one in measured:
    layers = one["telemetry"].get(SITE, {}).get("kurtosis") or []
    finite = [value for value in layers if isinstance(value, (int, float))]
    kurtosis = (f"; kurtosis of the stream entering each block is largest, {show(max(finite))}, "
                f"in layer {layers.index(max(finite))}" if finite else "")
    texts.append(f"{run.name}: loss {one['loss']:.3f} nats a token over "
                 f"{one.get('num_tokens', 0):,} tokens{_begun(one)}{kurtosis}.")
  return texts


def _begun(measured: Mapping[str, Any]) -> str:
  """Says that windows were begun, which moves all numbers of some models."""
  begin = measured.get("begin_token") or {}
  return f", each window behind the begin token {begin['id']}" if begin.get("added") else ""


def left_out(claim: Mapping[str, Any]) -> str:
  """Says in a line each which of the study's runs a claim's rule does not read, and what they came
  to, in the digits of the table of runs."""
  told = [f"{one['run']}: loss {show_loss(_known(one['final_loss']))}, peak kurtosis "
          f"{show(_known(one['peak_kurtosis']))}" for one in claim.get("left_out") or ()]
  return "\n".join(["These runs decide nothing here.", *told]) if told else ""


def _known(number: float | None) -> float:
  return math.nan if number is None else number


def against_paper(runs: Mapping[str, Run],
                  study: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
  """Lists (field, here, in the paper) where the runs' values are not the paper's."""
  rows = []
  for path, paper in ((study or {}).get("paper_setup") or {}).items():
    here = list(dict.fromkeys(_value(flatten(run.config)[path]) for run in runs.values()))
    if here != [paper]:
      rows.append((field_name(path), _listed(here), paper))
  return rows


def scale(runs: Mapping[str, Run], claim: Mapping[str, Any]) -> str:
  """Says at what scale a claim's verdict holds, beside what its paper reports."""
  return (f"{described(runs)} The verdict is on this scale's own rule, whose margins were set for "
          f"it. The paper reports: {sentence(str(claim['paper']))}")


def small(runs: Mapping[str, Run]) -> str:
  """Says how far one experiment of this size reaches."""
  runs = {name: run for name, run in runs.items() if not run.is_loaded}
  if not runs:
    return ""
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
