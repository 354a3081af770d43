"""The page report.html. Enters: runs, study.json's object, the static figure. Leaves: one HTML text
that opens as a file: style, data and what draws the figures are inside, and nothing is loaded.

Without JavaScript the page shows its text, its tables and the static figure.
"""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import Run
from of_jax.report import (
    answer,
    ladders,
    measured,
    metrics,
    plots,
    prose,
    provenance,
    tables,
    words,
)
from of_jax.report.page_data import page_data
from of_jax.report.tables import text

_CLASSES = {"reproduced": "yes", "not reproduced": "no", "inconclusive": "open"}
_SCRIPTS = ("axes.js", "drawing.js", "figure.js", "tables.js", "page.js")


def render(runs: Mapping[str, Run], study: Mapping[str, Any] | None,
           figures: Sequence[str], drawn_ladders: Sequence[ladders.Drawn] = ()) -> str:
  """Writes the page as one HTML text.

  Args:
    runs: at least one.
    study: what study.json holds, its claims judged; None for a folder of runs.
    figures: `<svg>` elements, shown where there is no JavaScript.
    drawn_ladders: the study's forecasts with their figures.
  """
  data = page_data(runs, study)
  return document(prose.title(runs, study), [
      _answer(runs, study), _words(runs), _deciding(runs, figures), _scale(runs, study),
      _paper(runs, study), claims(study), measured.section(runs),
      ladders.section(drawn_ladders), tables.settings(runs),
      _asset("figures.html") if _has_curves(runs) else "",
      '<h2 class="js">Inside the runs</h2><div class="js" id="analyses"></div>'
      if data["analyses"] else "", tables.differences(runs), provenance.section(runs, study)], data)


def document(title: str, body: Sequence[str], data: Mapping[str, Any]) -> str:
  """Writes a page that stands alone: heading, parts as HTML, and data for the figures."""
  shown = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
  return "\n".join([
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{text(title)}</title>", f"<style>{_asset('page.css')}</style>",
      f"</head>\n<body>\n<main>\n<h1>{text(title)}</h1>", *body, "</main>",
      f'<script type="application/json" id="data">{shown}</script>',
      *(f"<script>{_asset(name)}</script>" for name in _SCRIPTS), "</body>\n</html>\n"])


def _has_curves(runs: Mapping[str, Run]) -> bool:
  return any(run.train.steps.size or run.eval.steps.size for run in runs.values())


def _asset(name: str) -> str:
  return (importlib.resources.files("of_jax.report") / "assets" / name).read_text("utf-8")


def _lines(value: str) -> str:
  return "<br>".join(map(text, value.split("\n")))


def chip(verdict: str) -> str:
  """Writes a verdict as a coloured word; nothing for none."""
  return (f'<span class="chip {_CLASSES.get(verdict, "")}">{text(verdict)}</span> '
          if verdict else "")


def _answer(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  """The answer with its size in a sentence; without a study, what was trained and measured."""
  answered = answer.answer(study) if study is not None else None
  if answered is not None:
    return f'<p class="lead">{chip(answered[0])}{text(answered[1])}</p>'
  found = "".join(f"<li>{text(sentence)}</li>" for sentence in prose.measured(runs))
  return f'<p class="lead">{text(prose.described(runs))}</p><ul class="answers">{found}</ul>'


def _scale(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  """At what scale the answer holds, and what became of the other claims."""
  leading = answer.leading(study) if study is not None else None
  parts = [f"<p>{text(prose.scale(runs, leading))}</p>"] if leading is not None else []
  rest = "".join(
      f'<li>{chip(str(claim["verdict"]))}<a href="#claim-{text(claim["id"])}">'
      f'{text(prose.sentence(str(claim["statement"])))}</a></li>'
      for claim in (study or {}).get("claims", []) if claim is not leading)
  parts += [f'<ul class="answers">{rest}</ul>'] if rest else []
  small = prose.small(runs)
  return "\n".join([*parts, *([f'<p class="note">{text(small)}</p>'] if small else [])])


def _words(runs: Mapping[str, Run]) -> str:
  found = words.terms(runs)
  rows = "".join(f"<dt><dfn>{text(term)}</dfn></dt><dd>{meaning}</dd>" for term, meaning in found)
  return f'<dl class="words">{rows}</dl>' if found else ""


def _deciding(runs: Mapping[str, Run], figures: Sequence[str]) -> str:
  if all(run.is_loaded for run in runs.values()):
    return ""
  _, condition = plots.headline(runs)
  shown = f" Shown: {text(condition)}." if condition else ""
  static = "".join(f"<div>{figure}</div>" for figure in figures)
  return (f'<div id="deciding" class="grid js"></div><noscript><div class="pair">{static}</div>'
          '<p class="note">The figures need JavaScript; the tables do not.</p></noscript>'
          '<p class="note">Kurtosis of the residual stream: '
          f"{metrics.as_html(metrics.formula('kurtosis'))}.{shown}</p>")


def _paper(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  rows = [[text(field), text(here), text(paper)]
          for field, here, paper in prose.against_paper(runs, study)]
  if not rows:
    return ""
  return "<h2>Not the paper's setup</h2>" + tables.table(["field", "here", "paper"], rows, "plain")


def claims(study: Mapping[str, Any] | None) -> str:
  """Writes every claim with its verdict, its figure, its rule and the numbers that the rule read.
  """
  if study is None:
    return ""
  reworded = any("rule_at_start" in claim for claim in study["claims"])
  parts = ["<h2>Claims</h2>", '<p class="note">The rules were written to disk before the first '
           f"run{'; one that reads otherwise now shows both' if reworded else ''}. In a claim's "
           "figure the dot is the effect, the bar its interval and circles its seeds; the claim "
           "holds where all of the bar lies in the green.</p>"]
  for claim in study["claims"]:
    rows = [("Found", prose.sentence(str(claim.get("summary", "")))), ("Rule", claim["rule"]),
            ("In the paper", claim["paper"])]
    rows.append(("Left out", prose.left_out(claim)))
    if "rule_at_start" in claim:
      rows.insert(2, ("Rule when the study began", claim["rule_at_start"]))
    evidence = "".join(f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>'
                       for k, v in prose.evidence_rows(claim["evidence"]))
    key = text(claim["id"])
    parts.append(
        f'<article class="claim" id="claim-{key}"><h3>{chip(claim["verdict"])}'
        f'{text(claim["statement"])}</h3><div class="js" data-claim="{key}"></div>'
        "<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{_lines(v)}</dd>" for k, v in rows if v)
        + '</dl><details><summary>Evidence: the numbers that the rule read</summary>'
        f'<div class="scroll"><table class="plain">{evidence}</table></div></details></article>')
  return "\n".join(parts)
