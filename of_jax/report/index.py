"""The index of a folder of studies. Enters: study.json's objects by folder. Leaves: one HTML text:
the answers as a table, then for each claim the figure that decides it.
"""

from collections.abc import Mapping
from typing import Any

from of_jax.report import answer, page, prose, tables
from of_jax.report.page_data import of_claims
from of_jax.report.tables import text

Studies = Mapping[str, Mapping[str, Any]]


def render(studies: Studies, pages: Mapping[str, str]) -> str:
  """Writes the index as one HTML text.

  Args:
    studies: at least one, their claims judged, by their folder's name from the index.
    pages: folder -> link to its own page, where it has one.
  """
  verdicts = [str(claim["verdict"]) for study in studies.values() for claim in study["claims"]]
  counts = ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts))
  count = "1 study" if len(studies) == 1 else f"{len(studies)} studies"
  lead = f'<p class="lead">{text(f"{len(verdicts)} claims: {counts}." if verdicts else "")}</p>'
  data = {f"{place} {name}": figures for place, study in enumerate(studies.values())
          for name, figures in of_claims(study).items()}
  parts = [_study(place, folder, study, pages.get(folder, ""))
           for place, (folder, study) in enumerate(studies.items())]
  return page.document(count, [lead, _table(studies, pages), *parts],
                       {"runs": [], "metrics": {}, "analyses": [], "claims": data})


def _table(studies: Studies, pages: Mapping[str, str]) -> str:
  rows = []
  for place, (folder, study) in enumerate(studies.items()):
    verdict, sentence = answer.answer(study) or ("", "It has no claim.")
    rows.append([f'<a href="#study-{place}">{text(_title(study))}</a>',
                 f"{page.chip(verdict)}{text(sentence)}", _link(folder, pages.get(folder, "")),
                 text(study["scale"]), f"{_progress(study)} runs"])
  return tables.table(["question", "answer", "study", "scale", "finished"], rows,
                      "plain sortable cards")


def _study(place: int, folder: str, study: Mapping[str, Any], link: str) -> str:
  parts = [f'<h2 id="study-{place}">{text(_title(study))}</h2>',
           f'<p class="note">{_link(folder, link)}: study {text(study["study"])}, scale '
           f'{text(study["scale"])}, {_progress(study)} runs finished.</p>']
  for claim in study["claims"]:
    key = text(f"{place} {claim['id']}")
    parts.append(
        f'<article class="claim"><h3>{page.chip(str(claim["verdict"]))}'
        f'{text(claim["statement"])}</h3><div class="js" data-claim="{key}"></div>'
        f'<p class="note">{text(prose.sentence(str(claim.get("summary", ""))))}</p></article>')
  return "\n".join(parts)


def _title(study: Mapping[str, Any]) -> str:
  return prose.title({}, study)


def _link(folder: str, link: str) -> str:
  return f'<a href="{text(link)}">{text(folder)}</a>' if link else text(folder)


def _progress(study: Mapping[str, Any]) -> str:
  finished = sum(bool(run.get("finished")) for run in study["runs"])
  return f"{finished} of {len(study['runs'])}"
