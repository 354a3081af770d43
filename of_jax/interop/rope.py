"""Rotary settings and windows of attention, as Hugging Face configs of several ages spell them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from of_jax.interop.settings import Settings

# Fields of the objects that transformers reads for some kinds of stretching and for no other.
_KNOWN = ("factor|original_max_position_embeddings|attention_factor|beta_fast|beta_slow|truncate|"
          "short_factor|long_factor|low_freq_factor|high_freq_factor|mscale|mscale_all_dim|"
          "mrope_section")
_OBJECTS = ("rope_scaling", "rope_parameters")


@dataclasses.dataclass(frozen=True)
class Spelling:
  """How a family spells what its rotary objects may leave out, and what its code does with it.

  Attributes:
    theta, fraction: names of the base and of the share of a head that turns.
    default_fraction: where no place says the share.
    turns_whole_heads: whether transformers' code turns heads whole, whatever the share.
    longest: `max_position_embeddings` where the config does not say.
    original_length: where the config itself does not say for how many tokens the model was made
      at first; None: the object does.
    aliases: other names of kinds of stretching.
  """

  theta: str = "rope_theta"
  fraction: str = "partial_rotary_factor"
  default_fraction: float = 1.0
  turns_whole_heads: bool = True
  longest: int = 2048
  original_length: int | None = None
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Rope:
  """One rotary object of a config, and what stands beside it.

  Attributes:
    part: the object.
    settings: the config.
    pairs: pairs of neurons of a head that turn.
  """

  part: Settings
  settings: Settings
  spelling: Spelling
  pairs: int = 0

  def number(self, name: str, outside: str, default: float) -> float:
    """Reads what may stand in the object or, by another name, beside it; the object's counts."""
    beside = self.settings.get(outside, default)
    if name not in self.part.peek():
      self.settings.require(beside is not None, outside, "must be a number")
      return self.settings.number(outside, default)
    value = self.part.get(name)
    self.part.require(value is not None, name, "must be a number")
    if outside in self.settings.peek() and beside not in (None, value):
      self.settings.note(f"{outside}={beside} is not used: as in transformers, {name}={value} of "
                         f"{self.part.where.rpartition(', ')[2]} counts")
    return self.part.number(name)

  def longest(self) -> int:
    return self.settings.integer("max_position_embeddings", self.spelling.longest)

  def original(self) -> int:
    """Tokens that the model was made for at first: the config's own word goes first."""
    name = "original_max_position_embeddings"
    inside = self.part.integer(name, self.longest())
    return self.settings.integer(name, self.spelling.original_length or inside)

  def factor(self) -> float:
    """By how much the length has grown; where it is null, the ratio of the two."""
    value = self.part.optional_number("factor")
    return self.longest() / self.original() if value is None else value


def rope_fields(settings: Settings, head_dim: int, spelling: Spelling = Spelling()
                ) -> dict[str, Any]:
  """Fields of ModelConfig: `positions` and those that begin with `rope_`.

  Settings stand in the config itself, in `rope_scaling` or in `rope_parameters`. What an object
  says counts before what stands beside it.

  Raises:
    UserError: objects that do not agree, or what cannot be expressed.
  """
  objects = [part for part in map(settings.part, _OBJECTS) if part.peek()]
  for part in objects:
    for key, value in part.peek().items():
      part.require(not isinstance(value, dict) and not key.endswith("_attention"), key,
                   "transformers reads no settings by kind of block in a model of this kind; "
                   "write those of all blocks straight into the object")
  found = [_fields(_Rope(part, settings, spelling), head_dim)
           for part in objects or [Settings({}, settings.where)]]
  settings.require(found[0] == found[-1], _OBJECTS[0], f"is not what {_OBJECTS[1]} says")
  return found[0]


def _fields(rope: _Rope, head_dim: int) -> dict[str, Any]:
  """Fields of ModelConfig from one object."""
  part, spelling = rope.part, rope.spelling
  name = "type" if part.get("rope_type") is None else "rope_type"
  # Older libraries wrote both names, and `finetuned` of how the model was made.
  part.set_aside("type|finetuned")
  kinds = {"default": "default", **{kind: kind for kind in _KINDS}, **spelling.aliases}
  kind = part.choice(name, kinds, "default")
  fraction = _fraction(rope, head_dim, kind)
  rope = dataclasses.replace(rope, pairs=int(head_dim * fraction) // 2)
  theta = rope.number("rope_theta", spelling.theta, 10_000.0)
  fields = {} if kind == "default" else {"rope_scaling": kind, **_KINDS[kind](rope)}
  unread = part.unread()
  part.set_aside(_KNOWN)
  for left in sorted(set(unread) - set(part.unread())):
    rope.settings.note(f"{left} of {part.where.rpartition(', ')[2]} is not used: as in "
                       f"transformers, it does nothing with rope_type={kind}")
  return {**fields, "positions": "rotary", "rope_theta": theta, "rope_fraction": fraction}


def _fraction(rope: _Rope, head_dim: int, kind: str) -> float:
  """Reads the share of a head that turns."""
  spelling = rope.spelling
  share = rope.number("partial_rotary_factor", spelling.fraction, spelling.default_fraction)
  if not spelling.turns_whole_heads or int(head_dim * share) == head_dim:
    return share
  text = f"partial_rotary_factor={share:g}"
  rope.part.require(kind == "default", "rope_type", f"transformers cannot stretch the frequencies "
                    f"of a part of a head ({text}) in a model of this kind")
  rope.settings.note(f"{text} is not used: transformers turns whole heads in a model of this kind "
                     "(vLLM turns a part of them)")
  return 1.0


def _linear(rope: _Rope) -> dict[str, Any]:
  return {"rope_factor": rope.part.number("factor")}


def _dynamic(rope: _Rope) -> dict[str, Any]:
  return {"rope_factor": rope.part.number("factor"), "rope_original_length": rope.longest()}


def _llama3(rope: _Rope) -> dict[str, Any]:
  part = rope.part
  return {"rope_factor": part.number("factor"),
          "rope_low_frequency": part.number("low_freq_factor"),
          "rope_high_frequency": part.number("high_freq_factor"),
          "rope_original_length": rope.original()}


def _yarn(rope: _Rope) -> dict[str, Any]:
  part, factor = rope.part, rope.factor()
  gain, of_query, of_all = (part.optional_number(name) for name in (
      "attention_factor", "mscale", "mscale_all_dim"))

  def magnitude(weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

  if gain is None:
    gain = magnitude(of_query) / magnitude(of_all) if of_query and of_all else magnitude(1)
  # Of 0 transformers takes the default.
  return {"rope_factor": factor, "rope_gain": gain, "rope_original_length": rope.original(),
          "rope_fast_turns": part.optional_number("beta_fast") or 32.0,
          "rope_slow_turns": part.optional_number("beta_slow") or 1.0,
          "rope_whole_pairs": part.flag("truncate", True)}


def _longrope(rope: _Rope) -> dict[str, Any]:
  part, factor, original = rope.part, rope.factor(), rope.original()
  gain = part.optional_number("attention_factor")
  if gain is None:
    gain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))

  def divisors(name: str) -> tuple[float, ...]:
    found = part.get(name)
    part.require(isinstance(found, list) and len(found) == rope.pairs
                 and all(type(number) in (int, float) and 0 < number < 1e30 for number in found),
                 name, f"must be {rope.pairs} numbers above 0")
    return tuple(float(number) for number in found)

  return {"rope_gain": gain, "rope_original_length": original,
          "rope_short_divisors": divisors("short_factor"),
          "rope_long_divisors": divisors("long_factor")}


# Kind of stretching, as transformers calls it and we do -> its fields.
_KINDS: dict[str, Callable[[_Rope], dict[str, Any]]] = {
    "linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope,
    "llama3": _llama3}


def window_fields(settings: Settings, layers: list[str], window: int | None,
                  says_kinds: bool = True, source: tuple[str, str] = ("layer_types", "")
                  ) -> dict[str, Any]:
  """Fields of ModelConfig: `attention_window` and `full_attention_every`.

  Args:
    settings: a config that may say in `layer_types` what each block has.
    layers: what each block has where it does not.
    window: the size that it gives, None for no windows at all.
    says_kinds: whether transformers' code for the family looks at `layer_types`.
    source: the field that `layers` come from, and what it says, for messages.

  Raises:
    UserError: full attention in other blocks than every n-th.
  """
  depth, known = len(layers), {"sliding_attention", "full_attention"}
  settings.require(says_kinds or settings.get("layer_types") in (None, layers), "layer_types",
                   "in transformers all blocks of a model of this kind have the same attention")
  if given := settings.get("layer_types"):
    layers, source = given, ("layer_types", "")
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
  settings.require(layers == pattern, source[0], f"{source[1]}of_jax can give full attention to "
                   "every n-th block alone")
  return {"attention_window": window, "full_attention_every": every}


def windows_above(settings: Settings, depth: int) -> dict[str, Any]:
  """Fields of `window_fields` where windows begin at a block's number, as in Qwen."""
  used = settings.flag("use_sliding_window", False)
  settings.set_aside("sliding_window|max_window_layers")  # Read below, where they act.
  kinds = settings.get("layer_types")
  settings.require(used or not isinstance(kinds, list) or "sliding_attention" not in kinds,
                   "layer_types", "some blocks have sliding_attention, and there are no windows "
                   "with use_sliding_window=false; set it to true, or full_attention for all")
  window = settings.get("sliding_window", 4096) if used else None
  full = depth if window is None else settings.integer("max_window_layers", 28, least=0)
  layers = ["full_attention" if i < full else "sliding_attention" for i in range(depth)]
  return window_fields(settings, layers, window, source=(
      "max_window_layers", f"the first {full} of {depth} blocks have full attention; "))
