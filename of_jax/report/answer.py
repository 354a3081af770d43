"""The answer of a study to its question. Enters: study.json's object. Leaves: a sentence with the
size of each effect and its interval, and what the figure that decides must show.

Every number is of the record; none is typed in here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# The logarithm of the largest factor that is told.
_MOST = 600.0
_ANSWERS = {"reproduced": "Yes", "not reproduced": "No", "inconclusive": "Undecided"}
_SCALE = {"log ratio": "log", "difference": "linear", "share of seeds": "linear",
          "rank correlation": "linear"}
_AXIS = {"log ratio": "factor", "difference": "difference", "share of seeds": "share of seeds",
         "rank correlation": "rank correlation (-1 to 1)"}


def leading(study: Mapping[str, Any]) -> Mapping[str, Any] | None:
  """Finds the claim that answers the study's question: the one it names, else its first."""
  claims = study.get("claims") or []
  named = [claim for claim in claims if claim["id"] == study.get("answer")]
  found: Mapping[str, Any] | None = (named or list(claims) or [None])[0]
  return found


def answer(study: Mapping[str, Any]) -> tuple[str, str] | None:
  """Gives the verdict of the leading claim and the answer in a sentence; None without a claim."""
  claim = leading(study)
  if claim is None:
    return None
  verdict = str(claim["verdict"])
  told = "; ".join(said(part) for part in parts(claim)) or str(
      claim.get("summary") or claim["statement"])
  return verdict, f"{_ANSWERS.get(verdict, verdict)}, at scale {study['scale']}: {told}."


def said(part: Mapping[str, Any]) -> str:
  """Says what an effect came to, how sure that is and what was asked."""
  low, high = ends(part)
  text = f"{part['name']} is {'a factor of ' if _is_ratio(part) else ''}" + number(part["estimate"],
                                                                                  part)
  share = 100 * (1 - sum(part.get("tails") or (0.05, 0.05)))
  sure = (f"{share:.3g} % interval {number(low, part)} to {number(high, part)}"
          if low is not None and high is not None else "no interval")
  text += f" ({sure} over {_seeds(part)}; asked: above {number(part['margin'], part)})"
  return text


def number(value: float, part: Mapping[str, Any]) -> str:
  """Writes an effect: a logarithm as the factor that it is of."""
  return f"{_plain(value, part):.3g}"


def ends(part: Mapping[str, Any]) -> tuple[float | None, float | None]:
  """Reads an effect's interval, None and None where the seeds tell none."""
  low, high = part.get("interval") or (None, None)
  return low, high


def parts(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """Lists the effects that a claim's rule read and that are numbers."""
  return [part for part in claim.get("evidence", {}).get("parts") or []
          if isinstance(part.get("estimate"), (int, float)) and math.isfinite(part["estimate"])]


def intervals(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Makes the figures that decide a claim, effects of one margin together, for the page to draw.

  Returns:
    Objects with `title`, `x` and `form` of the axis, and `intervals`: the margin, and a row an
    effect; factors are no logarithms there.
  """
  together: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
  for part in parts(claim):
    together.setdefault((part["effect"], part["margin"]), []).append(part)
  return [{"title": f"{_named(found)}: must lie above {number(margin, found[0])}",
           "x": _AXIS.get(effect, effect), "form": _SCALE.get(effect, "linear"),
           "intervals": {"margin": _plain(margin, found[0]), "rows": [_row(p) for p in found]}}
          for (effect, margin), found in together.items()]


def _named(found: Sequence[Mapping[str, Any]]) -> str:
  name = str(found[0]["name"]) if len(found) == 1 else f"{len(found)} effects"
  return name[:1].upper() + name[1:]


def _row(part: Mapping[str, Any]) -> dict[str, Any]:
  low, high = ends(part)
  seeds = [_plain(value, part) for value in part.get("by_seed") or []
           if isinstance(value, (int, float)) and math.isfinite(value)]
  interval = (f" [{number(low, part)}, {number(high, part)}]"
              if low is not None and high is not None else "")
  return {"name": part["name"], "said": f"{number(part['estimate'], part)}{interval}, "
          f"{part['verdict']}", "estimate": _plain(part["estimate"], part),
          "low": None if low is None else _plain(low, part),
          "high": None if high is None else _plain(high, part), "seeds": seeds}


def _plain(value: float, part: Mapping[str, Any]) -> float:
  # An end of an interval of two seeds may be any number.
  ratio = math.exp(min(max(value, -_MOST), _MOST)) if _is_ratio(part) else value
  return float(f"{ratio:.6g}")


def _is_ratio(part: Mapping[str, Any]) -> bool:
  return bool(part["effect"] == "log ratio")


def _seeds(part: Mapping[str, Any]) -> str:
  counts = list(dict.fromkeys(part.get("seeds") or []))
  count = " and ".join(map(str, counts))
  return f"{count} seed{'' if counts == [1] else 's'}" if counts else "the seeds"
