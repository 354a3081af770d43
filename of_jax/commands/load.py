"""Loads a foreign model and prints what was read; with --check, compares it with `transformers`.

  python -m experiments.load --model=FOLDER_OR_FILE.gguf --check

Seconds for a model of a hundred million parameters. --out=DIR leaves it as a run leaves its own,
for training to go on with: see experiments/configs/loaded.py. --check needs transformers and
torch, which nothing else here does, and a Hugging Face folder.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from of_jax.commands import cli, weights_flag
from of_jax.config.paths import check_utf8, expanded
from of_jax.data.special_tokens import CHOICES
from of_jax.errors import UserError

if TYPE_CHECKING:
  from of_jax.interop.pretrained import Pretrained

_MODEL = flags.DEFINE_string(
    "model", None, "A folder with config.json and safetensors, of Hugging Face or the released OF "
    "code, or a .gguf file.", required=True)
_TENSORS = flags.DEFINE_bool("tensors", False, "Also print a line for every tensor.")
_CHECK = flags.DEFINE_bool(
    "check", False, "Compare the stream before each block, and the logits, with transformers.")
_BEGIN_TOKEN = flags.DEFINE_enum(
    "begin_token", "auto", CHOICES, "Whether texts begin with the begin token: as the model's "
    "tokenizer does it, yes or no; --check's sequences, and data.begin_token of --out.")
flags.DEFINE_string(
    "out", "", "Write config, parameters and tokenizer here, as a run directory without a run.")
_TOKENS = flags.DEFINE_integer("tokens", 64, "check: length of the two random sequences.",
                                lower_bound=1, upper_bound=1 << 24)


def main() -> None:
  # Here, because they import jax: a mistake on the command line is reported before that.
  out = cli.output_folder("out")
  if out is not None:
    check_utf8(f"--out={out}", out)
    if out.is_dir() and any(out.iterdir()):
      raise UserError(f"--out={out}: exists and is no empty folder; give a new one")
  from of_jax.interop import load

  path = expanded(_MODEL.value)
  try:
    model = load(path, _BEGIN_TOKEN.value, weights=weights_flag.chosen())
  except UserError as error:
    text = str(error)
    raise UserError(f"--{text}" if text.startswith("begin_token=") else text) from None
  print(model.report)
  if _TENSORS.value:
    print(model.report.table())
  if out is not None:
    _save(model, out)
  if _CHECK.value:
    _check(model, path)


def _save(model: "Pretrained", out: Path) -> None:
  """Leaves a run directory whose step 0 is the model."""
  import numpy as np

  from of_jax.config import to_dict
  from of_jax.storage import run_directory
  from of_jax.storage.checkpoint import Checkpoints
  from of_jax.train import environment
  out.mkdir(parents=True, exist_ok=True)
  with Checkpoints(out) as checkpoints:
    checkpoints.save({"params": model.params, "opt_state": {"count": np.zeros((), np.int32)}}, 0)
    checkpoints.wait()
  if model.tokenizer is not None:
    (out / run_directory.TOKENIZER).write_text(model.tokenizer.to_str(), encoding="utf-8")
  run_directory.write_json(out / run_directory.ENVIRONMENT, {
      "loaded_from": {"path": model.report.path, "kind": model.report.kind,
                      "parameters": model.report.parameters}, **environment.machine()})
  # Last, so that what has a config is whole.
  run_directory.write_json(out / run_directory.CONFIG, to_dict(model.config))
  print(f"  written to {out}")


def _check(model: "Pretrained", path: Path) -> None:
  import numpy as np

  if not path.is_dir() or "simplified_transformers" in model.report.kind:
    raise UserError(f"--check: transformers reads Hugging Face folders; {path} is none")
  from of_jax.interop import check, weight_sets
  if weights_flag.chosen() == "sharded" and (path / weight_sets.SINGLE).exists():
    raise UserError(f"--check: transformers reads {weight_sets.SINGLE}; leave --weights out")
  length = min(_TOKENS.value, model.config.train.sequence_length)
  tokens = np.random.default_rng(0).integers(0, model.config.data.vocab_size, (2, length))
  begin = model.config.data.begin_token_id
  if model.config.data.begin_token and begin is not None:
    tokens[:, 0] = begin
  differences = check.compare(check.our_stream(model, tokens), check.their_stream(path, tokens))
  for difference in differences:
    print(f"  {difference.place:28} {difference.largest:9.2e}  relative {difference.relative:9.2e}")
  print(check.verdict(differences))


if __name__ == "__main__":
  cli.run(main)
