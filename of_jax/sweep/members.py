"""Members of one program: which runs can be, and what may differ. Imports no jax.

Members share every field but those named here. Numbers that the step reads are an input of the
program; what only the initial state depends on never enters it. All others, as the decay of a
moment, from which Python computes further in float64 while the step is built, are part of the
program.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from of_jax.config import Config, differences, get, replaced
from of_jax.errors import UserError

_STEP = ("optim.learning_rate", "optim.eps", "optim.weight_decay")
# Fixed gains are numbers of the step, trained ones begin there.
_GAINS = ("model.beta_attention", "model.beta_mlp")
_INITIAL = {"train.seed": 0, "train.init_from": "", "model.beta": 1.0, "model.init_std": 1.0,
            "model.position_init_std": 1.0}
_SCALE = "model.mlp_input_scale"


def step_numbers(configs: Iterable[Config]) -> dict[str, list[float]]:
  """Finds the numbers in which the members' steps differ: field -> its value for each member."""
  configs = list(configs)
  paths = (*_STEP, _SCALE, *(() if configs[0].model.beta_trainable else _GAINS))
  found = {path: [get(config, path) for config in configs] for path in paths}
  return {path: values for path, values in found.items() if len(set(values)) > 1}


def shared(config: Config) -> Config:
  """Returns the config with every field in which members may differ at a fixed value.

  The result is equal for runs that can be members of one program, and for these alone.
  """
  values = {**_INITIAL, **dict.fromkeys((*_STEP, *_GAINS, _SCALE), 1.0)}
  # A field without a value is no number of 0: there is no such gain, or the optimiser has no eps.
  return replaced(config, {path: value for path, value in values.items()
                           if get(config, path) is not None})


def initial(config: Config) -> Config:
  """Returns the config with every field that the initial state does not depend on at a fixed value.

  Members for which the result is equal share the program that draws the initial state.
  """
  gains = () if config.model.beta_trainable else ("model.beta", *_GAINS)
  return replaced(config, {"train.seed": 0, "train.init_from": "", **{
      path: 1.0 for path in (*_STEP, *gains, _SCALE) if get(config, path) is not None}})


def alone(config: Config) -> str:
  """Says why a config's run can be no member; "" if it can."""
  if any(getattr(config.mesh, axis) not in (-1, 1) for axis in ("data", "fsdp", "tensor")):
    return "config.mesh asks for several devices; a member has one"
  if config.train.on_divergence == "rollback":
    return "config.train.on_divergence=rollback: one member cannot go back without the others"
  if config.train.wandb_project:
    return "config.train.wandb_project: Weights & Biases takes one run of a process at a time"
  return ""


def groups(configs: Mapping[str, Config], most: int) -> list[list[str]]:
  """Groups runs that can be members of one program, in the order of the groups' first runs.

  A run that can be no member is a group alone.

  Args:
    configs: name -> resolved config.
    most: the most members of a program.
  """
  place = list(configs).index
  found: dict[Any, list[str]] = {}
  for name, config in configs.items():
    found.setdefault(name if alone(config) else shared(config), []).append(name)
  return sorted((names[start:start + most] for names in found.values()
                 for start in range(0, len(names), most)), key=lambda names: place(names[0]))


def check(configs: Mapping[str, Config]) -> None:
  """Checks that these runs can be members of one program.

  Raises:
    UserError: one needs several devices or Weights & Biases, or two differ in a field that all
      members share.
  """
  (first, base), *rest = configs.items()
  for name, config in configs.items():
    if alone(config):
      raise UserError(f"{name}: {alone(config)}")
  for name, config in rest:
    if shared(config) != shared(base):
      fields = ", ".join(differences(shared(base), shared(config)))
      raise UserError(f"{name} and {first} differ in {fields}, which members of one program share")
