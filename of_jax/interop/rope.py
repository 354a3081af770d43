"""Rotary settings and windows of attention, as Hugging Face configs of several ages spell them."""

from typing import Any

from of_jax.interop.settings import Settings


def rope_fields(settings: Settings, theta: str = "rope_theta",
                fraction: tuple[str, float] = ("partial_rotary_factor", 1.0)) -> dict[str, Any]:
  """Fields of ModelConfig: `positions` and those that begin with `rope_`.

  Args:
    settings: a config with the fields themselves, as older ones have them, or with all of them in
      `rope_parameters`.
    theta: the older name of the base.
    fraction: the older name of the share of a head that turns, and its default.

  Raises:
    UserError: frequencies that were stretched in a way that cannot be expressed.
  """
  new = settings.part("rope_parameters")
  old = settings.part("rope_scaling")
  scaling = [fields for part in (new, old) for fields in (_scaling(part),) if fields]
  settings.require(len(scaling) < 2 or scaling[0] == scaling[1], "rope_scaling",
                   "is not what rope_parameters says")
  return {
      **(scaling[0] if scaling else {}),
      "positions": "rotary",
      "rope_theta": new.number("rope_theta", settings.number(theta, 10_000.0)),
      "rope_fraction": new.number("partial_rotary_factor",
                                  settings.number(fraction[0], fraction[1]))}


def _scaling(part: Settings) -> dict[str, Any]:
  """Fields of stretched frequencies from one of the two spellings; {} where none are stretched."""
  name = "type" if part.get("rope_type") is None else "rope_type"
  # Older libraries wrote both names.
  part.set_aside("type")
  kind = part.choice(name, {"default": "none", "linear": "linear", "llama3": "llama3"}, "default")
  if kind == "none":
    return {}
  fields = {"rope_scaling": kind, "rope_factor": part.number("factor")}
  if kind == "llama3":
    fields |= {"rope_low_frequency": part.number("low_freq_factor"),
               "rope_high_frequency": part.number("high_freq_factor"),
               "rope_original_length": part.integer("original_max_position_embeddings")}
  return fields


def window_fields(settings: Settings, layers: list[str], window: int | None) -> dict[str, Any]:
  """Fields of ModelConfig: `attention_window` and `full_attention_every`.

  Args:
    settings: a config that may say in `layer_types` what each block has.
    layers: what each block has where it does not.
    window: the size that it gives, None for no windows at all.

  Raises:
    UserError: full attention in other blocks than every n-th.
  """
  depth, known = len(layers), {"sliding_attention", "full_attention"}
  layers = settings.get("layer_types") or layers
  settings.require(isinstance(layers, list) and len(layers) == depth and set(layers) <= known,
                   "layer_types", f"must be {depth} of {' and '.join(sorted(known))}")
  if "sliding_attention" not in layers:
    return {}
  settings.require(type(window) is int and window >= 1, "sliding_window",
                   "must be a whole number of 1 or more, for some blocks have sliding_attention")
  if "full_attention" not in layers:
    return {"attention_window": window}
  every = layers.index("full_attention") + 1
  pattern = ["full_attention" if (i + 1) % every == 0 else "sliding_attention"
             for i in range(depth)]
  settings.require(layers == pattern, "layer_types", "of_jax can give full attention to every n-th "
                   "block alone")
  return {"attention_window": window, "full_attention_every": every}
