"""The page report.html. Enters: runs, study.json's object, the static figure. Leaves: one HTML text
that opens as a file: style, data and the plotting library are inside, and nothing is loaded.

The library travels compressed and is unpacked by the browser; until then, and without
JavaScript, the page shows its text, tables and the static figure.
"""

import base64
import functools
import gzip
import html
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import Run, loss_unit
from of_jax.claims import alarms
from of_jax.claims.study_record import flatten, varying
from of_jax.report import ladders, metrics, plots, prose, series, terminal
from of_jax.report.page_data import page_data

_CLASSES = {"reproduced": "yes", "not reproduced": "no", "inconclusive": "open"}


def render(runs: Mapping[str, Run], study: Mapping[str, Any] | None,
           figures: Sequence[str], drawn_ladders: Sequence[ladders.Drawn] = ()) -> str:
  """Writes the page as one HTML text.

  Args:
    runs: at least one.
    study: what study.json holds, its claims judged; None for a folder of runs.
    figures: `<svg>` elements, shown as they are.
    drawn_ladders: the study's forecasts with their figures.
  """
  title = prose.title(runs, study)
  drawn = page_data(runs)
  data = json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c")
  body = [
      f"<h1>{_text(title)}</h1>", _answer(runs, study), _figure(runs, figures),
      ladders.section(drawn_ladders),
      _claims(study), _runs(runs), _asset("figures.html") if _has_curves(runs) else "",
      '<h2 class="js">Inside the runs</h2><div class="js" id="analyses"></div>'
      if drawn["analyses"] else "", _differences(runs),
      _provenance(runs, study)]
  return "\n".join([
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{_text(title)}</title>", f"<style>{_asset('page.css')}</style>",
      "</head>\n<body>\n<main>", *body, "</main>",
      f'<script type="application/json" id="data">{data}</script>',
      f'<script type="text/plain" id="library">{_library()}</script>',
      f"<script>{_asset('page.js')}</script>\n</body>\n</html>\n"])


def _has_curves(runs: Mapping[str, Run]) -> bool:
  return any(run.train.steps.size or run.eval.steps.size for run in runs.values())


def _asset(name: str) -> str:
  return (importlib.resources.files("of_jax.report") / "assets" / name).read_text("utf-8")


@functools.cache
def _library() -> str:
  """plotly.js, compressed, as text."""
  from plotly.offline import get_plotlyjs
  packed = gzip.compress(get_plotlyjs().encode("utf-8"), compresslevel=9, mtime=0)
  return base64.b64encode(packed).decode("ascii")


def _text(value: Any) -> str:
  return html.escape(str(value))


def _lines(text: str) -> str:
  return "<br>".join(map(_text, text.split("\n")))


def _answer(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  lines = [f'<p class="lead">{_text(prose.described(runs))}</p>', '<ul class="answers">']
  for verdict, sentence in prose.found(runs, study):
    lines.append(f"<li>{_chip(verdict)}{_text(sentence)}</li>")
  lines.append("</ul>")
  different = prose.against_paper(runs, study)
  text = prose.small(runs)
  if different:
    parts = [f"{field} {here} (paper: {paper})" for field, here, paper in different]
    text += " Not the paper's setup: " + "; ".join(parts) + "."
  return "\n".join([*lines, f"<p>{_text(text)}</p>"])


def _chip(verdict: str) -> str:
  return f'<span class="chip {_CLASSES.get(verdict, "")}">{_text(verdict)}</span> ' \
      if verdict else ""


def _figure(runs: Mapping[str, Run], figures: Sequence[str]) -> str:
  if all(run.is_loaded for run in runs.values()):
    return ""
  _, condition = plots.headline(runs)
  return (f'<figure class="pair">{"".join(f"<div>{f}</div>" for f in figures)}'
          f"<figcaption>Kurtosis of the residual stream: {_formula('kurtosis')}; tokens t of a "
          "batch, neurons j, width d. It is 1 where all neurons "
          "are alike and reaches the width where one neuron holds everything: outlier features."
          f"{' Shown: ' + _text(condition) + '.' if condition else ''}</figcaption></figure>")


def _formula(metric: str) -> str:
  return metrics.as_html(metrics.formula(metric))


def _claims(study: Mapping[str, Any] | None) -> str:
  if study is None:
    return ""
  reworded = any("rule_at_start" in claim for claim in study["claims"])
  parts = ["<h2>Claims</h2>", '<p class="note">The rules were written to disk before the first '
           f"run{'; one that reads otherwise now shows both' if reworded else ''}.</p>"]
  for claim in study["claims"]:
    rows = [("Found", prose.sentence(str(claim.get("summary", "")))), ("Rule", claim["rule"]),
            ("In the paper", claim["paper"])]
    rows.append(("Left out", prose.left_out(claim)))
    if "rule_at_start" in claim:
      rows.insert(2, ("Rule when the study began", claim["rule_at_start"]))
    evidence = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>"
                       for k, v in prose.evidence_rows(claim["evidence"]))
    parts.append(
        f'<article class="claim"><h3>{_chip(claim["verdict"])}{_text(claim["statement"])}</h3>'
        "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_lines(v)}</dd>" for k, v in rows if v)
        + '</dl><details><summary>Evidence: the numbers that the rule read</summary>'
        f'<div class="scroll"><table class="plain">{evidence}</table></div></details></article>')
  return "\n".join(parts)


def _runs(runs: Mapping[str, Run]) -> str:
  if all(run.is_loaded for run in runs.values()):
    return ""
  rows = []
  images = any(run.reads_images for run in runs.values())
  for item in series.arrange(runs):
    run, where = item.run, item.run.peak_at("kurtosis")
    rows.append([
        _named(item), terminal.show_loss(run.final_loss),
        *([terminal.show_accuracy(run.final_accuracy)] if images else []),
        terminal.show(run.peak("kurtosis")),
        f"{where[0]}, {where[1]:,}" if where else "-", terminal.show(run.peak("mmr")),
        f"{run.seconds:.0f}" if math.isfinite(run.seconds) else "-",
        terminal.status(run) + "".join(
            f'<br><span class="chip no">left ladder {_text(one["ladder"])} at step '
            f'{_text(one["step"])}</span>' for one in alarms.read(run.path)[:1])])
  notes = [f"{run.name}: {note}." for run in runs.values() for note in run.notes]
  return ("<h2>Runs</h2>" + _table(
      ["run", "final loss", *(["accuracy"] if images else []), "peak kurtosis", "at layer, step",
       "peak MMR", "seconds", "status"],
      rows) + f'<p class="note">Final loss: last validation loss, {loss_unit(runs)}. Peaks: '
      "largest over layers and logged steps, in the stream entering each block. MMR: "
      f"{_formula('mmr')}. Seconds: of all steps, compilation included, evaluation left out."
      f"{_text(' ' + ' '.join(notes)) if notes else ''}</p>")


def _differences(runs: Mapping[str, Run]) -> str:
  fields = varying([run.config for run in runs.values()])
  if not fields:
    return ""
  rows = [[_named(item), *(_text(series.shown(flatten(item.run.config)[f])) for f in fields)]
          for item in series.arrange(runs)]
  return ("<h2>What differs between the runs</h2>"
          + _table(["run", *fields], rows)
          + '<p class="note">All other fields are equal; each config.json holds them.</p>')


def _provenance(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  rows: list[tuple[str, Iterable[str]]] = []
  envs = [run.env for run in runs.values()]

  def add(name: str, values: Iterable[Any]) -> None:
    distinct = list(dict.fromkeys(str(v) for v in values if v not in (None, "", {})))
    if distinct:
      rows.append((name, distinct))

  if study is not None:
    add("command of the study", [study.get("command")])
    add("overrides", [f"{k}={v}" for k, v in (study.get("overrides") or {}).items()])
  else:
    add("command", [env.get("command") for env in envs])
  add("commit", [_commit(env.get("git") or {}) for env in envs])
  add("loaded from", [(env.get("loaded_from") or {}).get("path") for env in envs])
  add("corpus", [env.get("corpus") for env in envs])
  add("corpus sha256", [env.get("corpus_sha256") for env in envs])
  add("tokenizer sha256", [env.get("tokenizer_sha256") for env in envs])
  add("devices", [" ".join(str((env.get("devices") or {}).get(k, ""))
                           for k in ("count", "platform", "kind")).strip() for env in envs])
  add("parameters", [_parameters(env) for env in envs])
  versions: dict[str, list[str]] = {}
  for env in envs:
    for package, version in (env.get("versions") or {}).items():
      if version not in versions.setdefault(package, []):
        versions[package].append(version)
  add("versions", [", ".join(f"{p} {' and '.join(map(str, v))}" for p, v in versions.items())])
  cells = "".join(f"<dt>{_text(k)}</dt><dd>{'<br>'.join(map(_text, v))}</dd>" for k, v in rows)
  return f'<h2>Provenance</h2><dl class="facts">{cells}</dl>' if cells else ""


def _commit(git: Mapping[str, Any]) -> str:
  commit = str(git.get("commit") or "")
  return commit + (" with uncommitted changes" if commit and git.get("dirty") else "")


def _parameters(env: Mapping[str, Any]) -> str:
  total, rest = env.get("parameters"), env.get("parameters_without_embeddings")
  if not isinstance(total, int):
    return ""
  return f"{total:,}" + (f", of which {rest:,} outside embeddings"
                         if isinstance(rest, int) else "")


def _named(item: series.Series) -> str:
  return (f'<span class="dot" style="background:{item.colour}"></span>'
          f"{_text(item.run.name)}")


def _breakable(text: str) -> str:
  """A dotted field that may go on in the next line, so that a column is no wider than needed."""
  return _text(text).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Rows are HTML already; the header is not."""
  head = "".join(f"<th>{_breakable(h)}</th>" for h in header)
  body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
  return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
          "</table></div>")
