"""Optimisers and rules for widths against the code of their authors."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from of_jax import config as config_lib
from of_jax.config import Config
from of_jax.optim import adamp, build_optimizer, scale_by_muon, sgdp, soap
from tests.fidelity import Comparison
from tests.golden import first_order, mup_adamw
from tests.golden import soap as soap_golden

MAKERS = {"adamw": optax.adamw, "adamp": adamp, "sgdp": sgdp}
AXES = {"embedding": ("vocab", "embed"), "hidden": ("embed", "mlp"), "norm": ("channel",),
        "bias": ("channel",), "unembedding": ("embed", "vocab")}


@functools.cache
def golden(script: Any) -> dict[str, np.ndarray]:
  """The numbers that a script of tests/golden left beside it."""
  with np.load(Path(script.__file__).with_suffix(".npz")) as file:
    return dict(file)


def relative(ours: Any, theirs: np.ndarray) -> float:
  """The norm of the difference over that of theirs."""
  return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def weights_after(optimizer: optax.GradientTransformation, start: dict[str, np.ndarray],
                  gradient: Callable[[str, np.ndarray, int], np.ndarray], steps: int
                  ) -> list[dict[str, np.ndarray]]:
  """The weights after each step, from step 1, of a gradient that is a function of them."""
  params: Any = start
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  found = []
  for step in range(1, steps + 1):
    gradients = {name: gradient(name, np.asarray(w), step) for name, w in params.items()}
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    found.append({name: np.asarray(w) for name, w in params.items()})
  return found


def first_order_error(label: str) -> float:
  """Compares the weights after 1, 10 and 100 steps, leaf by leaf."""
  theirs = golden(first_order)
  optimizer = MAKERS[label.partition("_")[0]](**first_order.SETTINGS[label])
  ours = weights_after(optimizer, first_order.parameters(), first_order.gradient,
                       first_order.STEPS)
  return max(relative(ours[step - 1][name], theirs[f"{label}/{name}/{step}"])
             for step in first_order.KEPT for name in first_order.SHAPES)


def muon_error() -> float:
  """Compares the directions at steps 1, 2 and 10, matrix by matrix."""
  theirs = golden(first_order)
  params = {name: w for name, w in first_order.parameters().items() if w.ndim > 1}
  optimizer = scale_by_muon(first_order.MUON_MOMENTUM)
  state, update, errors = optimizer.init(params), jax.jit(optimizer.update), []
  for step in range(1, 11):
    gradients = {name: first_order.gradient(name, w, step) for name, w in params.items()}
    updates, state = update(gradients, state)
    errors += [relative(updates[name], theirs[f"muon/{name}/{step}/after"])
               for name in params if step in (1, 2, 10)]
  return max(errors)


def soap_error() -> float:
  """Compares square matrices after a hundred calls, in units of their largest entry."""
  theirs, settings = golden(soap_golden), dict(soap_golden.SETTINGS)
  rate, (b1, b2) = settings.pop("lr"), settings.pop("betas")
  optimizer = soap(rate, b1, b2, **{**settings, "max_precond_dim": 10_000})
  ours = weights_after(
      optimizer, {name: soap_golden.start(name) for name in soap_golden.LONG},
      lambda name, w, step: soap_golden.gradient(name, step - 1, w), soap_golden.LONG_STEPS)[-1]
  return max(float(np.abs(w - theirs[f"long/{name}"]).max() / np.abs(theirs[f"long/{name}"]).max())
             for name, w in ours.items())


def mup_optimizer(width: int, scaling: str = "mup") -> optax.GradientTransformation:
  """Builds AdamW with the golden's settings and a rule for widths; every role decays."""
  fields = {**mup_adamw.SETTINGS, "scaling": scaling, "base_width": mup_adamw.BASE_WIDTH,
            "clip_norm": "none", "decay_roles": ",".join(mup_adamw.ROLES)}
  optim = config_lib.apply_overrides(
      Config(), [(f"optim.{name}", str(value)) for name, value in fields.items()]).optim
  shapes = {role: jax.ShapeDtypeStruct(shape, jnp.float32)
            for role, shape in mup_adamw.shapes(width).items()}
  return build_optimizer(optim, lambda step: optim.learning_rate,
                         {role: role for role in mup_adamw.ROLES}, AXES, shapes)


@functools.cache
def _mup_runs(width: int) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
  """Weights after each step, and after one step without a gradient."""
  start = {role: mup_adamw.start(width, role) for role in mup_adamw.ROLES}
  optimizer = mup_optimizer(width)
  steps = weights_after(optimizer, start, lambda role, w, step: mup_adamw.gradient(
      width, role, step), mup_adamw.STEPS)
  (decayed,) = weights_after(optimizer, start, lambda role, w, step: np.zeros_like(w), 1)
  return steps, decayed


def mup_update_error() -> float:
  """Compares how far each step has led from the start, by width and role."""
  theirs, errors = golden(mup_adamw), []
  for width in mup_adamw.WIDTHS:
    for role in mup_adamw.ROLES:
      start = mup_adamw.corner(mup_adamw.start(width, role))
      ours = np.stack([mup_adamw.corner(step[role]) for step in _mup_runs(width)[0]])
      errors.append(relative(ours - start, theirs[f"{width}/{role}"] - start))
  return max(errors)


def mup_decay_error() -> float:
  """Compares the share of a weight that a step's decay takes, by width and role."""
  theirs, errors = golden(mup_adamw), []
  for width in mup_adamw.WIDTHS:
    for role in mup_adamw.ROLES:
      start = mup_adamw.corner(mup_adamw.start(width, role)).astype(np.float64)
      shares = [np.median(1 - mup_adamw.corner(decayed) / start) for decayed in (
          _mup_runs(width)[1][role], theirs[f"{width}/{role}/decayed"])]
      errors.append(abs(shares[0] / shares[1] - 1))
  return max(errors)


_ADAMP = ("clovaai/AdamP (package adamp)", "0.3.0")
_SOURCES = {"adamw": ("PyTorch (torch.optim.AdamW)", "2.13.0"), "adamp": _ADAMP, "sgdp": _ADAMP}
_MUP = ("microsoft/mup (MuAdamW, MuReadout)", "1981497")
_WEIGHTS = "largest relative difference of a weight matrix after 1, 10 and 100 steps"

COMPARISONS = [
    *(Comparison(f"optimiser {label}", *_SOURCES[label.partition("_")[0]], "2026-11-22", _WEIGHTS,
                 functools.partial(first_order_error, label), 1e-5)
      for label in first_order.SETTINGS),
    Comparison("optimiser muon", "KellerJordan/Muon, in float32", "857d1ad", "2026-11-22",
               "largest relative difference of a direction at steps 1, 2 and 10", muon_error, 1e-5),
    Comparison("optimiser soap", "nikhilvyas/SOAP", "a1e5535", "2026-11-22",
               "largest difference of a weight after 100 calls, over the largest weight",
               soap_error, 1e-5),
    Comparison("optim.scaling=mup, steps", *_MUP, "2026-11-27",
               "largest relative difference of the way from the start, over widths, roles and 5 "
               "steps with decay", mup_update_error, 1e-5),
    Comparison("optim.scaling=mup, decay", *_MUP, "2026-11-27",
               "largest relative difference of the share of a weight that a step's decay takes, "
               "over widths and roles", mup_decay_error, 1e-4),
]
