"""Help of the binaries: what each is for, its flags, the fields of configs, and the presets."""

import ast
import sys
from pathlib import Path
from types import ModuleType

from absl import flags

from of_jax import config as config_lib
from of_jax.config import baselines
from of_jax.config import presets as presets_lib

HELP = ("--help", "-h", "--helpfull", "--helpshort", "-help")
# A binary that has one of these takes `--config.PATH=VALUE` too.
CONFIG_FLAGS = ("config", "study", "sizes", "scalings")
CONFIGS = Path(__file__).parent / "configs"


def help_text(module: ModuleType, full: bool) -> str:
  """Writes the help of a binary.

  Args:
    module: the binary.
    full: describe all fields of configs, by section, and not only those that people set most.
  """
  lines = [(module.__doc__ or "").strip(), "", "Flags:"]
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    default = "" if flag.default is None else flag.default
    lines.append(f"  --{flag.name}={default}\n      {flag.help}")
  lines.append("  --version\n      print the version and stop")
  if any(name in flags.FLAGS for name in CONFIG_FLAGS):
    if full:
      lines += ["", "Config fields:", config_lib.field_help()]
    else:
      count = len(config_lib.fields())
      lines += ["", f"Config fields that are set most; --helpfull describes all {count}:",
                config_lib.field_help(config_lib.USUAL)]
  return "\n".join(lines)


def presets() -> str:
  """Lists the config files of this project with what may stand behind their colon."""
  behind = {"ladder": ", ".join(presets_lib.SIZES), "mlp_images": ", ".join(presets_lib.MLP_SCALES),
            "baselines": ", ".join(baselines.NAMES), "loaded": "PATH of a run or a foreign model"}
  lines = ["--config=FILE or FILE:ARGUMENT takes a file that defines get_config, or one of"]
  for file in sorted(CONFIGS.glob("[!_]*.py")):
    text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0]
    name = file.stem + (":ARGUMENT" if file.stem in behind else "")
    lines.append(f"  {name}\n      {text}")
    if file.stem in behind:
      lines.append(f"      ARGUMENT: {behind[file.stem]}")
  return "\n".join([*lines, "A file of your own: docs/training.md. Any field is set as in "
                     "--config.model.width=256."])
