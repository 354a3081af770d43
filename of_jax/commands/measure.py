"""Measures a checkpoint again: the stream in a few metrics, or with --level=full every metric of
activations and attention; on any data, also metrics added after training.

  python -m experiments.measure --run=runs/first --step=0,16,150 --out=runs/first_measured
  python -m experiments.measure --model=PATH --text=FILE --out=runs/other_measured

On one device, whatever mesh trained the run. The data are the run's own evaluation set, or
--tokens, --text or --corpus, which a model from elsewhere needs. --intervene changes neurons on the
way and measures again; --analyse asks for what is more than a number a layer. DIR gets measure.json
and figures.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from of_jax.analysis import interventions, registry
from of_jax.commands import cli, data_flags, flag_checks, weights_flag
from of_jax.config import declared_metrics, resolve, values
from of_jax.config.declare import LARGEST_WHOLE
from of_jax.config.paths import check_file, expanded
from of_jax.config.sites import every_own_site, name_of
from of_jax.data.special_tokens import CHOICES
from of_jax.errors import UserError
from of_jax.storage import remote
from of_jax.storage.run_directory import write_json

_RUN = flags.DEFINE_multi_string("run", [], "run directory; quantise compares several")
_MODEL = flags.DEFINE_string(
    "model", "", "in place of --run, a model that was not trained here: a folder with config.json "
    "and safetensors, or a .gguf file")
_SEQUENCE_LENGTH = flags.DEFINE_integer(
    "sequence_length", None, "with --model: tokens of a window of --text, --corpus or --tokens in "
    "one row; default what it was made for, at most 512", lower_bound=1,
    upper_bound=LARGEST_WHOLE)
_STEP = flags.DEFINE_list("step", [], "steps of checkpoints, or all, and one of quantise; default "
                          "the last")
_TOKENS = flags.DEFINE_string("tokens", "", ".npy file of token ids, [tokens] or [windows, T]")
_TEXT = flags.DEFINE_string("text", "", "UTF-8 file or JSON lines, read with the model's tokenizer")
_TEXT_FIELD = flags.DEFINE_string("text_field", "", "of JSON lines in --text or --corpus, which "
                                  "field is the text; default text, else content")
_CORPUS = flags.DEFINE_string("corpus", "", "corpus as in data.corpus, read with that tokenizer")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "train"],
                           "of the run's own corpus or --corpus: the fixed evaluation set, or the "
                           "first batches of training")
_BATCHES = flags.DEFINE_integer("batches", None, "batches to read; default all of the set",
                                lower_bound=1, upper_bound=LARGEST_WHOLE)
_TRAINING_BATCH = flags.DEFINE_bool(
    "training_batch", False, "read the batch of the training step behind the checkpoint, as that "
    "step did: what metrics.jsonl has at step + 1")
_SITES = flags.DEFINE_list("sites", [], "where to measure, default as --level; what to quantise, "
                           "default those of --preset")
_METRICS = flags.DEFINE_list("metrics", [], "what to measure, by id; default as --level")
_LEVEL = flags.DEFINE_enum(
    "level", None, list(declared_metrics.LEVELS[1:]), "how much to measure: basic, which is quick, "
    "few metrics of the stream entering the blocks and behind the last, or full, all metrics "
    "everywhere; default basic, and full where --sites, --metrics or --user_metrics say what")
_USER_METRICS = flags.DEFINE_list(
    "user_metrics", [], "functions or classes of your own files, as in my_file.py:my_metric")
_RUN_USER_CODE = flags.DEFINE_bool(
    "run_user_code", False, "run Python that the run directory brings: its telemetry.user_metrics, "
    "else left out, and what its config names as FILE.py:NAME, without which there is no model")
_BEGIN_TOKEN = flags.DEFINE_enum(
    "begin_token", "auto", CHOICES, "whether windows begin with the begin token: auto, as the "
    "model's tokenizer begins a text, or as the run did (data.begin_token); windows of --tokens "
    "are then read as they are")
_INTERVENE = flags.DEFINE_multi_string(
    "intervene", [], "KIND:SITE:LAYER:NEURONS[:LIMIT], KIND zero, mean, clip or rotate, LAYER a "
    "number from 0 or all, NEURONS as 5,17 or topN; may be given again, all act at once")
_ANALYSE = flags.DEFINE_list(
    "analyse", [], f"of {', '.join(registry.ANALYSES)}: leaves a file of that name each")
_OUT = flags.DEFINE_string("out", "", "folder to leave results, as measure.json, and figures in")
_LIST_METRICS = flags.DEFINE_bool("list_metrics", False, "print every metric and stop")


def main() -> None:
  """Measures what the command line asks for, and leaves the results."""
  if _LIST_METRICS.value:
    print(declared_metrics.table())
    return
  steps = _check()
  # Here, because they import jax: a mistake on the command line is reported before that.
  from of_jax.analysis import replay
  from of_jax.report import panel_plots
  chosen = [interventions.parse(text) for text in _INTERVENE.value]
  run = "" if _MODEL.value else _RUN.value[0]
  available = [0] if _MODEL.value else replay.checkpoint_steps(run)
  wanted = available if isinstance(steps, str) else steps or available[-1:]
  out = out_folder()

  batches: Any = None
  read: dict[str, Any] = {}
  measurements: list[dict[str, Any]] = []
  for step in wanted:
    model = load(run, step)
    if batches is None:
      batches, read = data_flags.batches_of(model)
    measurements.append(measure_one(model, batches, read, chosen))
    print(_line(measurements[-1]), flush=True)
  analyses = {}
  for name in _ANALYSE.value:
    if registry.ANALYSES[name].reads_data:
      print(f"{name}: on the run's own evaluation tokens", flush=True)
    begun = time.perf_counter()
    analyses[name] = registry.load(name)(remote.reading(run), wanted)
    print(f"{name}: {(time.perf_counter() - begun) / len(wanted):.2f} s a checkpoint", flush=True)
  if out is None:
    return
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / "measure.json",
             measurements[0] if len(measurements) == 1 else {"steps": measurements})
  for name, value in analyses.items():
    write_json(out / f"{name}.json", value)
  panel_plots.save_all(measurements, analyses, out)
  print(out / "measure.json")


def load(run: str, step: int | None) -> Any:
  """Loads the model that --model names, or else a run's checkpoint, by default the last."""
  from of_jax.analysis import imported, replay
  return (imported.load(_MODEL.value, weights=weights_flag.chosen(), log=print) if _MODEL.value
          else replay.restore(run, step, _RUN_USER_CODE.value))


def chosen_level() -> Any:
  """Gives the level that the flags ask for, of what they do not name."""
  named = _SITES.value or _METRICS.value or _USER_METRICS.value
  return _LEVEL.value or ("full" if named else "basic")


def measure_one(model: Any, batches: Any, read: dict[str, Any], chosen: Sequence[Any]
                ) -> dict[str, Any]:
  """Measures what measure.json holds of one model: anything with .config, .params, .step, .path."""
  from of_jax.analysis import evaluation
  rows = model.training_batch(print) if _TRAINING_BATCH.value else batches
  # One of a run's that is given again, perhaps as it is today, takes that one's place.
  given = {text.rpartition(":")[2] for text in _USER_METRICS.value}
  own = [*(text for text in model.config.telemetry.user_metrics
           if text.rpartition(":")[2] not in given), *_USER_METRICS.value]
  watched = _SITES.value, _METRICS.value, own
  level = chosen_level()
  # First, since it finds the neurons that a model does not have.
  changes = [evaluation.fill_top(model, batches, one) for one in chosen]
  references = evaluation.references(model, batches, changes)
  found = {**evaluation.measure(model, rows, *watched, level=level),
           "model": remote.name_of(model.path), "step": model.step, "level": level}
  if chosen:
    after = evaluation.measure(model, rows, *watched, changes, references, level)
    found["after_intervention"] = {
        "interventions": [vars(one) for one in changes], **after,
        "loss_change": after["loss"] - found["loss"]}
  if "begin_token" in read:
    found["begin_token"] = read["begin_token"]
  return {**found, "provenance": provenance(model, read)}


def provenance(model: Any, read: dict[str, Any]) -> dict[str, Any]:
  """Describes where numbers come from: the machine, the data as data_flags does, the model."""
  from of_jax.train.environment import machine
  found = {**machine(), **{name: value for name, value in read.items() if name != "begin_token"},
           "digest": model.digest, "digest_agreed": model.is_verified}
  return {**found, "kind": model.kind, "notes": list(model.notes)} if _MODEL.value else found


def _check_model() -> None:
  """Checks what --model goes with, and that there is a model."""
  if _ANALYSE.value:
    raise UserError(f"--analyse={','.join(_ANALYSE.value)}: is of runs; leave "
                    f"--model={_MODEL.value} as one first, by python -m experiments.load "
                    "--model=PATH --out=DIR, and give --run=DIR")
  for name in ("run", "step", "training_batch", "run_user_code"):
    if flags.FLAGS[name].value:
      raise UserError(f"--{name}: is of runs, and --model={_MODEL.value} is none; leave it out")
  if not data_flags.given():
    raise UserError(f"--model={_MODEL.value}: came without data; give --tokens, --text or --corpus")
  from of_jax.interop import open_source
  open_source(_MODEL.value, weights_flag.chosen())


def check_data() -> None:
  """Checks the flags that say which model is read and on which data.

  Raises:
    UserError: flags that contradict each other, or a file that is not there.
  """
  weights_flag.chosen()
  if _MODEL.value:
    _check_model()
  elif not any(_RUN.value):
    raise UserError("--run is missing, as in --run=runs/first; or give --model=PATH")
  elif _SEQUENCE_LENGTH.value:
    raise UserError(f"--sequence_length={_SEQUENCE_LENGTH.value}: is of --model; a run has its own")
  given = data_flags.given()
  if len(given) > 1:
    raise UserError(f"--{given[1]}: there is --{given[0]} already; give one of them")
  others = [n for n in ("batches", "split", "begin_token") if flags.FLAGS[n].present]
  if _TRAINING_BATCH.value and (given or others):
    raise UserError("--training_batch: reads the run's own batch; leave out --"
                    + (given + others)[0])
  if flags.FLAGS["split"].present and given and given != ["corpus"]:
    raise UserError(f"--split={_SPLIT.value}: --{given[0]} has no splits")
  if _TEXT_FIELD.value and given not in (["text"], ["corpus"]):
    raise UserError(f"--text_field={_TEXT_FIELD.value}: is of --text and --corpus")
  for flag in ("tokens", "text"):
    if value := flags.FLAGS[flag].value:
      check_file(f"--{flag}={value}", expanded(value, f"--{flag}={value}"))


def out_folder() -> Path | None:
  """Finds the folder that --out names, if any.

  Raises:
    UserError: it is a file, or cannot be made.
  """
  return cli.output_folder("out")


def _check() -> str | list[int]:
  """Looks at the command line, and that there is a run or a model; the steps that it names."""
  check_data()
  if len(_RUN.value) > 1:
    raise UserError(f"--run={_RUN.value[1]}: there is {_RUN.value[0]} already; give one of them")
  out_folder()
  changes = [interventions.parse(text) for text in _INTERVENE.value]
  flag_checks.names("sites", [name_of(site) for site in _SITES.value],
                    [*declared_metrics.SITES, *every_own_site()])
  own = flag_checks.own_metrics(_USER_METRICS.value)
  flag_checks.names("analyse", _ANALYSE.value, list(registry.ANALYSES))
  reading = [name for name in _ANALYSE.value if registry.ANALYSES[name].reads_data]
  others = data_flags.given() + ["begin_token"] * (_BEGIN_TOKEN.value != "auto")
  if reading and others:
    raise UserError(f"--analyse={reading[0]}: reads the run's own evaluation tokens, not "
                    f"--{others[0]}; leave one of them out")
  if _MODEL.value:
    flag_checks.metrics(_METRICS.value, own)
    from of_jax.interop import open_source
    theirs = open_source(_MODEL.value, weights_flag.chosen()).config() if changes else None
    for one in changes:
      assert theirs is not None
      interventions.check_config(one, resolve(theirs))
    return []
  # numpy alone: that there is a run, and that its config can be read.
  from of_jax.analysis.runs import own_metrics, read_config
  run = remote.reading(_RUN.value[0])
  config = read_config(run)
  for one in changes:
    interventions.check_config(one, config)
  texts = own_metrics(run, config)
  if texts and not _RUN_USER_CODE.value:
    print(f"{_RUN.value[0]}: left out: {', '.join(text.rpartition(':')[2] for text in texts)}, "
          "which the run directory brings as Python; --run_user_code runs it", flush=True)
    texts = ()
  flag_checks.metrics(_METRICS.value, [*own, *flag_checks.names_of(texts)])
  if _STEP.value == ["all"]:
    return "all"
  if (steps := whole_numbers(_STEP.value)) is None:
    raise UserError(f"--step={','.join(_STEP.value)}: not a list of steps, as in 0,16,150, nor all")
  return steps


def whole_numbers(texts: Sequence[str]) -> list[int] | None:
  """Reads whole numbers from 0; None where one is none."""
  numbers = [number for text in texts if (number := values.whole(text)) is not None]
  return numbers if len(numbers) == len(texts) else None


def _line(found: dict[str, Any]) -> str:
  from of_jax.analysis.runs import SITE

  def kurtosis(measured: dict[str, Any]) -> str:
    values = measured["telemetry"].get(SITE, {}).get("kurtosis")
    return "" if values is None else f"  kurtosis of the stream at most {max(values):.4g}"

  last = f"accuracy {found['accuracy']:.4f}" if "accuracy" in found else (
      f"perplexity {found['perplexity']:.4g}")
  name = found["model"] if _MODEL.value else f"step {found['step']:,}"
  token = found.get("begin_token", {})
  begun = f" behind the begin token {token['id']}" if token.get("added") else ""
  text = (f"{name}: loss {found['loss']:.4f}  {last}  "
          f"{found['num_tokens']:,} tokens{begun}{kurtosis(found)}")
  after = found.get("after_intervention")
  return text if after is None else (
      f"{text}\n  after the intervention: loss {after['loss']:.4f} ({after['loss_change']:+.4f})"
      f"{kurtosis(after)}")


if __name__ == "__main__":
  cli.run(main)
