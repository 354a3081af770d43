"""Loads a foreign model and prints what was read; with --check, compares it with `transformers`.

  python -m experiments.load --model=FOLDER_OR_FILE.gguf --check

Seconds for a model of a hundred million parameters. --check needs transformers and torch, which
nothing else here does, and a Hugging Face folder.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from of_jax.errors import UserError

_MODEL = flags.DEFINE_string(
    "model", None, "A folder with config.json and safetensors, of Hugging Face or the released OF "
    "code, or a .gguf file.", required=True)
_TENSORS = flags.DEFINE_bool("tensors", False, "Also print a line for every tensor.")
_CHECK = flags.DEFINE_bool(
    "check", False, "Compare the stream before each block, and the logits, with transformers.")
_TOKENS = flags.DEFINE_integer("tokens", 64, "check: length of the two random sequences.")


def main() -> None:
  # Here, because they import jax: a mistake on the command line is reported before that.
  import numpy as np

  from of_jax.interop import load

  path = Path(_MODEL.value).expanduser()
  model = load(path)
  print(model.report)
  if _TENSORS.value:
    print(model.report.table())
  if not _CHECK.value:
    return
  if not path.is_dir() or "simplified_transformers" in model.report.kind:
    raise UserError(f"--check: transformers reads Hugging Face folders; {path} is none")
  from of_jax.interop import check
  length = min(_TOKENS.value, model.config.train.sequence_length)
  if length < 1:
    raise UserError(f"--tokens={_TOKENS.value}: must be at least 1")
  tokens = np.random.default_rng(0).integers(0, model.config.data.vocab_size, (2, length))
  differences = check.compare(check.our_stream(model, tokens), check.their_stream(path, tokens))
  for difference in differences:
    print(f"  {difference.place:28} {difference.largest:9.2e}  relative {difference.relative:9.2e}")
  print(check.verdict(differences))


if __name__ == "__main__":
  cli.run(main)
