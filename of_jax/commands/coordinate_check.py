"""Sizes of activations and matrices against the width, with a scaling rule and without.

  python -m experiments.coordinate_check --out=runs/coordinate_check

A few steps on one fixed batch of random tokens at each width. Under a rule that transfers, what is
plotted is flat: the RMS of the stream and of the logits, and the top singular value of the hidden
matrices' change, which acts on vectors whose entries have one size (Yang et al. 2022, 2203.03466,
App. D.1). Without one they grow with the width. For mup_decay the top singular value itself, in
the steady state, is the paper's diagnostic (Fan et al. 2025, 2510.15262): give it more steps.

Heads have 32 neurons at every width, the base width is the smallest. A config field given with
--config.PATH=VALUE holds for all. The defaults are aimed at ten minutes on two CPU cores.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from of_jax import config as config_lib
from of_jax.commands import cli
from of_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from of_jax.errors import UserError
from of_jax.storage.run_directory import whole

_SCALINGS = flags.DEFINE_list("scalings", ["none", "mup", "mup_decay"], "rules to compare")
_WIDTHS = flags.DEFINE_list("widths", ["64", "128", "256", "512", "1024"],
                            "model widths, multiples of 32; the first is the base")
_STEPS = flags.DEFINE_integer("steps", 8, "steps at each width", lower_bound=1)
flags.DEFINE_string("out", None, "folder to leave coordinate_check.json and .png in")

HEAD_DIM = 32
QUANTITIES = {"stream_rms": "RMS of what the unembedding reads",
              "logits_rms": "RMS of the logits",
              "top_singular_value": "top singular value of hidden matrices",
              "top_singular_value_of_change": "and of their change since init"}


def configs() -> list[tuple[str, int, Config]]:
  """Lists (scaling rule, width, resolved config) of every rule at every width.

  Raises:
    UserError: a width that is no multiple of a head's, or an override of what a flag decides.
  """
  cli.refuse_overrides({"model.width": "--widths", "optim.scaling": "--scalings",
                        "train.steps": "--steps", "optim.base_width": "--widths",
                        "model.heads": "--widths"})
  try:
    widths = [int(text) for text in _WIDTHS.value]
  except ValueError:
    raise UserError(f"--widths={','.join(_WIDTHS.value)}: not a list of whole numbers") from None
  for width in widths:
    if width < 1 or width % HEAD_DIM:
      raise UserError(f"--widths={width}: not a multiple of {HEAD_DIM}, the neurons of a head")
  base = Config(
      # At the base width a matrix keeps the size of what it reads; the stream's RMS starts at 1.
      model=ModelConfig(depth=2, norm="rms", init_std=widths[0] ** -0.5,
                        embedding_scale=widths[0] ** 0.5, position_init_std=0.0),
      optim=OptimConfig(learning_rate=3e-3, schedule="constant", warmup_steps=0, clip_norm=None),
      train=TrainConfig(steps=_STEPS.value, batch_size=4, sequence_length=32),
      data=DataConfig(corpus="tokens:none", vocab_size=256), mesh=MeshConfig(data=1))
  result = []
  for scaling in _SCALINGS.value:
    rule = [] if scaling == "none" else [("optim.base_width", str(widths[0]))]
    for width in widths:
      overrides = [("model.width", str(width)), ("model.heads", str(width // HEAD_DIM)),
                   *cli.overrides(), ("optim.scaling", scaling), *rule]
      result.append((scaling, width, config_lib.apply_overrides(base, overrides)))
  return result


def check(config: Config) -> dict[str, Any]:
  """Trains one config on one random batch.

  Returns:
    The loss (nats a token) and `stream_rms` of every step, and the other QUANTITIES after the first
    and the last step.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from of_jax.models.functional import named_leaves
  from of_jax.optim.matrices import views
  from of_jax.train.sharding import make_mesh, place_batch
  from of_jax.train.trainer import make_trainer
  mesh = make_mesh(config)
  shape = (config.train.batch_size, config.train.sequence_length)
  tokens = np.random.default_rng(0).integers(
      0, config.data.vocab_size, (shape[0], shape[1] + 1)).astype(np.int32)
  batch = place_batch(mesh, {"inputs": tokens[:, :-1], "targets": tokens[:, 1:],
                             "weights": np.ones(shape, np.float32)})
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    network = trainer.network
    state = trainer.init(jax.random.key(config.train.seed))
    # The step consumes its state, so what the change is taken against is copied first.
    first = jax.device_get(state["params"])
    seen, roles = named_leaves(views(network.axes, network.shapes)), named_leaves(network.roles)
    hidden = [name for name, role in roles.items() if role == "hidden" and seen[name].is_matrix]

    def top(params: Any) -> float:
      leaves = named_leaves(params)
      return max(float(np.linalg.norm(matrix, 2)) for name in hidden
                 for matrix in np.asarray(seen[name].split(leaves[name])))

    logits = jax.jit(lambda params, inputs: jnp.sqrt(jnp.mean(jnp.square(
        network.apply(params, inputs)[0]))))
    found: dict[str, Any] = {"loss": [], **{name: [] for name in QUANTITIES}}
    for step in range(1, config.train.steps + 1):
      state, metrics = trainer.step_measured(state, batch, jax.random.key(1))
      found["loss"].append(float(metrics["loss"]))
      # Telemetry looks at the weights before the step, the singular values at those after it.
      found["stream_rms"].append(float(metrics["telemetry"]["final"]["rms"][0]))
      if step in (1, config.train.steps):
        params = jax.device_get(state["params"])
        change = jax.tree.map(np.subtract, params, first)
        found["logits_rms"].append(float(logits(state["params"], batch["inputs"])))
        found["top_singular_value"].append(top(params))
        found["top_singular_value_of_change"].append(top(change))
  return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
  """Draws a panel a quantity, a line a rule, against the width."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import NullLocator
  figure = Figure(figsize=(12, 3.2), layout="constrained")
  for axes, (name, title) in zip(figure.subplots(1, len(QUANTITIES)), QUANTITIES.items()):
    for scaling in dict.fromkeys(row["scaling"] for row in rows):
      line = [row for row in rows if row["scaling"] == scaling]
      axes.plot([row["width"] for row in line], [row[name][-1] for row in line], "o-",
                label=scaling)
    axes.set(xscale="log", yscale="log", xlabel="width", title=title)
    axes.set_xticks([row["width"] for row in rows], [str(row["width"]) for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.title.set_fontsize(9)
  axes.legend()
  with whole(path) as place:
    figure.savefig(place, dpi=160)


def main() -> None:
  out = cli.output_folder("out")
  if out is None:
    raise UserError("--out is missing, as in --out=runs/coordinate_check")
  planned = configs()
  from rich.console import Console
  from rich.table import Table
  rows = []
  for scaling, width, config in planned:
    rows.append({"scaling": scaling, "width": width, **check(config)})
    print(f"{scaling} at width {width}: loss {rows[-1]['loss'][-1]:.3f}", flush=True)
  table = Table("rule", "width", "loss", *QUANTITIES)
  for row in rows:
    table.add_row(row["scaling"], str(row["width"]), f"{row['loss'][-1]:.3f}",
                  *(f"{row[name][-1]:.4g}" for name in QUANTITIES))
  Console(width=None if sys.stdout.isatty() else 140).print(table)
  from of_jax.storage import run_directory
  from of_jax.train.environment import machine
  out.mkdir(parents=True, exist_ok=True)
  run_directory.write_json(out / "coordinate_check.json", {
      "machine": machine(), "steps": _STEPS.value, "rows": rows})
  plot(rows, out / "coordinate_check.png")
  print(out / "coordinate_check.png")


if __name__ == "__main__":
  cli.run(main)
