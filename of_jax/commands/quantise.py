"""Quantises a model after training: perplexity before and after.

  python -m experiments.quantise --run=runs/first --weight_bits=8 --activation_bits=8 --out=DIR
  python -m experiments.quantise --model=PATH --text=FILE --hadamard --out=DIR

On one device, on the run's own evaluation set, or --tokens, --text or --corpus as `measure` reads
them, which a model from elsewhere needs. Static ranges come from batches of the run's training
data, or of the data given, which a seed draws. With --run given again, runs are compared:
quantise.json then holds a list, {"runs": [...]}, and a figure shows kurtosis against what
quantisation costs. --preset=bondarenko is exactly what papers after Bondarenko et al. 2023 report;
the default, of_jax, quantises less. docs/quantisation.md says what is quantised and how.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from of_jax.commands import cli, data_flags, measure, weights_flag
from of_jax.config import resolve
from of_jax.config.declare import LARGEST_WHOLE
from of_jax.errors import UserError
from of_jax.quantise import scheme as schemes
from of_jax.storage import remote
from of_jax.storage.run_directory import whole, write_json

_DEFAULT = schemes.Scheme()
_PRESET = flags.DEFINE_string(
    "preset", _DEFAULT.preset, "which numbers are rounded, to which grids: of_jax, what linear "
    "maps read, their kernels and the stream, by the unquantised model's ranges; or bondarenko, "
    "exactly Bondarenko et al.'s code under fp32_head, which He et al. and the study int8 use: "
    "tables, gains and the final norm's output too, ranges found while all else is quantised")
_WEIGHT_BITS = flags.DEFINE_integer("weight_bits", _DEFAULT.weight_bits, "4, 6, 8 or 16")
_ACTIVATION_BITS = flags.DEFINE_integer("activation_bits", _DEFAULT.activation_bits, "likewise")
_WEIGHT_GRANULARITY = flags.DEFINE_string(
    "weight_granularity", _DEFAULT.weight_granularity, "what shares a range: "
    + ", ".join(schemes.GRANULARITIES["weight"]))
_ACTIVATION_GRANULARITY = flags.DEFINE_string(
    "activation_granularity", _DEFAULT.activation_granularity, "likewise: "
    + ", ".join(schemes.GRANULARITIES["activation"]) + "; a token's is found as it passes")
_WEIGHT_RANGE = flags.DEFINE_string(
    "weight_range", _DEFAULT.weight_range, ", ".join(schemes.RANGES["weight"]))
_ACTIVATION_RANGE = flags.DEFINE_string(
    "activation_range", "", ", ".join(schemes.RANGES["activation"])
    + f"; default {_DEFAULT.activation_range}, for tokens min_max")
_GROUP_SIZE = flags.DEFINE_integer("group_size", _DEFAULT.group_size, "inputs that share a range, "
                                   "with --weight_granularity=group")
_EXCLUDE = flags.DEFINE_list("exclude", [], "sites to leave as they are, or names of several: "
                             + ", ".join(schemes.GROUPS))
_INTEGER = flags.DEFINE_bool("integer", False, "multiply int8 by int8 into int32, in place of "
                             "rounded numbers in float")
_HADAMARD = flags.DEFINE_bool("hadamard", False, "first rotate the residual stream by a Hadamard "
                              "matrix folded into the weights: the model stays the same function")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "each draws the batches of calibration")
_ADVICE = flags.DEFINE_bool(
    "advice", True, "where quantisation costs more than a hundredth of a nat, also measure which "
    "site costs most, on the first batch, and what finer ranges or a rotation would give")
_BY_SITE = flags.DEFINE_bool("by_site", False, "also quantise all sites but one, and one alone")

# What measure.py declares: what this binary reads too, and what it has no use for.
for _name in ("run", "model", "step", "tokens", "text", "text_field", "corpus", "sequence_length",
              "begin_token", "split", "batches", "sites", "out", "weights", "run_user_code"):
  flags.declare_key_flag(_name)
_OF_MEASURE = ("metrics", "user_metrics", "level", "intervene", "analyse", "training_batch",
               "list_metrics")


def main() -> None:
  scheme, seeds = _scheme(), _seeds()
  _check(scheme)
  # Here, because it imports jax: a mistake on the command line is reported before that.
  from of_jax.analysis import quantisation, quantisation_advice, quantisation_words

  steps, out = flags.FLAGS.step, measure.out_folder()
  results: list[dict[str, Any]] = []
  for run in flags.FLAGS.run or [""]:
    model = measure.load(run, int(steps[0]) if steps else None)
    batches, read = data_flags.batches_of(model)
    count = quantisation.CALIBRATION_BATCHES * len(seeds)
    calibration = (batches if data_flags.given()
                   else data_flags.batches_of(model, "train", count)[0])
    found = quantisation.quantise(model, batches, calibration, scheme, seeds, _BY_SITE.value,
                                  _say)
    results.append({**found, "model": remote.name_of(model.path),
                    "step": model.step if run else None,
                    "calibrated_on": _calibrated_on(scheme), "begin_token": read["begin_token"],
                    "provenance": measure.provenance(model, read)})
    print(_line(results[-1]), flush=True)
    advice = (quantisation_advice.advise(model, batches, calibration, scheme, found, seeds[0], _say)
              if _ADVICE.value and quantisation_words.is_notable(found) else None)
    results[-1]["advice"] = advice
    print(quantisation_words.sentence(found, advice), flush=True)
  if out is None:
    return
  out.mkdir(parents=True, exist_ok=True)
  if len(results) > 1:
    _figure(results, out / "quantise.png")
  write_json(out / "quantise.json", results[0] if len(results) == 1 else {"runs": results})
  print(out / "quantise.json")


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _scheme() -> schemes.Scheme:
  """Returns the quantisation scheme that the flags ask for.

  Raises:
    UserError: one that cannot be carried out.
  """
  preset = schemes.preset_scheme(_PRESET.value)
  chosen = (schemes.expand(flags.FLAGS.sites, "--sites", preset.preset) if flags.FLAGS.sites
            else preset.sites)
  left_out = schemes.expand(_EXCLUDE.value, "--exclude", preset.preset)
  by_token = _ACTIVATION_GRANULARITY.value == "token"
  scheme = schemes.Scheme(
      _WEIGHT_BITS.value, _ACTIVATION_BITS.value, _WEIGHT_GRANULARITY.value,
      _ACTIVATION_GRANULARITY.value, _WEIGHT_RANGE.value,
      _ACTIVATION_RANGE.value or ("min_max" if by_token else _DEFAULT.activation_range),
      _GROUP_SIZE.value, "integer" if _INTEGER.value else "simulated",
      tuple(site for site in chosen if site not in left_out), _HADAMARD.value, preset.preset)
  schemes.check(scheme)
  return scheme


def _seeds() -> list[int]:
  seeds = measure.whole_numbers(_SEEDS.value)
  if not seeds or max(seeds) > LARGEST_WHOLE:
    raise UserError(f"--seeds={','.join(_SEEDS.value)}: not a list of whole numbers from 0, as in "
                    "0,1,2")
  return seeds


def _check(scheme: schemes.Scheme) -> None:
  """Checks the rest of the command line, and that the scheme is for these models."""
  for name in _OF_MEASURE:
    if flags.FLAGS[name].present:
      raise UserError(f"--{name}: is a flag of measure; leave it out")
  measure.check_data()
  steps = flags.FLAGS.step
  if len(steps) > 1 or measure.whole_numbers(steps) is None:
    raise UserError(f"--step={','.join(steps)}: not one step, as in 150")
  measure.out_folder()
  from of_jax.analysis.runs import read_config
  from of_jax.interop import open_source
  configs = [resolve(read_config(remote.reading(run))) for run in flags.FLAGS.run]
  if flags.FLAGS.model:
    configs.append(open_source(flags.FLAGS.model, weights_flag.chosen()).config())
  for config in configs:
    schemes.check_model(scheme, config)


def _calibrated_on(scheme: schemes.Scheme) -> str | None:
  if not scheme.is_static:
    return None
  return "evaluation data" if data_flags.given() else "training data"


def _line(found: dict[str, Any]) -> str:
  after = found["perplexity_quantised"]
  step = "" if found["step"] is None else f" step {found['step']:,}"
  spread = "" if after["std"] is None else (
      f" +- {after['std']:.4f} over {len(after['seeds'])} seeds")
  text = (f"{found['model']}{step}: perplexity {found['perplexity']:.4f}, "
          f"{found['label']}: {after['mean']:.4f}{spread}  kurtosis of the stream "
          f"{found['kurtosis']:.4g}, mean over layers")
  if "kurtosis_rotated" in found:
    text += f", rotated {found['kurtosis_rotated']:.4g}"
  for site, values in found["by_site"].items():
    text += f"\n  {site:14} all but it {values['all_but']:.4f}  it alone {values['only']:.4f}"
  return text


def _figure(results: list[dict[str, Any]], path: Path) -> None:
  import matplotlib
  matplotlib.use("Agg")
  import matplotlib.pyplot as plt
  import matplotlib.ticker
  figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
  for one in results:
    axes.errorbar(one["kurtosis"], one["increase"]["mean"], one["increase"]["std"], fmt="o",
                  label=Path(one["model"]).name)
  axes.axhline(0, color="gray", linewidth=0.5)
  axes.set_title(f"{results[0]['label']}, increase of the loss", fontsize="medium", wrap=True)
  axes.set_xscale("log")
  for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
    axis(matplotlib.ticker.FormatStrFormatter("%.4g"))
  axes.set_xlabel("kurtosis of the stream, mean over layers")
  axes.set_ylabel("nats a token")
  axes.legend(fontsize="small")
  with whole(path) as place:
    figure.savefig(place, dpi=150)
  plt.close(figure)


if __name__ == "__main__":
  cli.run(main)
