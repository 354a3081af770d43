"""The wheels corpus, offline: small wheels of our own, found by pip in a local folder."""

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from of_jax.data import corpora, pypi_code
from of_jax.errors import UserError


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
  """Writes NAME-1.0-py3-none-any.whl; returns its pinned requirement line."""
  path = folder / f"{name}-1.0-py3-none-any.whl"
  info = f"{name}-1.0.dist-info"
  with zipfile.ZipFile(path, "w") as archive:
    for file, content in files.items():
      archive.writestr(file, content)
    archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
                                      "Tag: py3-none-any\n")
    archive.writestr(f"{info}/RECORD", "")
  return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def pinned(tmp_path, monkeypatch) -> Path:
  """A requirements file of six wheels in a folder that is all that pip knows."""
  index = tmp_path / "index"
  index.mkdir()
  shared = b"# The same licence text in every package.\n" * 3
  lines = [wheel(index, f"small_{i}", {
      f"small_{i}/code.py": f"def f{i}():\n  return {i}\n".encode() * (20 + i),
      f"small_{i}/licence.py": shared, f"small_{i}/empty.py": b"",
      f"small_{i}/data.json": b"{}", f"small_{i}/latin.py": b"# \xe9\n"}) for i in range(6)]
  requirements = tmp_path / "requirements.txt"
  requirements.write_text("".join(lines))
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(index))
  monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
  monkeypatch.setattr(pypi_code, "REQUIREMENTS", requirements)
  return requirements


def test_whole_packages_are_held_out_and_duplicates_dropped(pinned, make_data, log):
  data = make_data(corpus="pypi_code", validation_fraction=0.4)
  corpus = corpora.prepare(data, log)
  assert "7 documents" in corpus.description  # Six codes, and the licence once.
  split = pypi_code.source(data.cache_dir, log).split(0.4)
  names = [[d.name for d in part] for part in (split.train, split.validation)]
  packages = [{name.split("/")[0] for name in part} for part in names]
  assert packages[0] and packages[1] and not packages[0] & packages[1]
  assert len(packages[0] | packages[1]) == 6
  assert sum(name.endswith("licence.py") for part in names for name in part) == 1
  assert all(package in split.rule for package in packages[1])
  share = sum(d.size for d in split.validation)
  assert 0.2 < share / (share + sum(d.size for d in split.train)) <= 0.4


def test_a_prepared_corpus_opens_without_its_wheels_or_pip(pinned, make_data, log, monkeypatch):
  data = make_data(corpus="pypi_code", validation_fraction=0.4)
  first = corpora.prepare(data, log)
  for folder in Path(data.cache_dir).glob("wheels-*"):
    shutil.rmtree(folder)
  monkeypatch.setattr(pypi_code, "_download", lambda *_: pytest.fail("downloaded again"))
  assert corpora.prepare(data, log).corpus_sha256 == first.corpus_sha256


def test_another_vocabulary_uses_the_wheels_again_unless_damaged(
    pinned, make_data, log, monkeypatch):
  data = make_data(corpus="pypi_code", validation_fraction=0.4)
  corpora.prepare(data, log)
  calls = []
  download = pypi_code._download
  monkeypatch.setattr(pypi_code, "_download", lambda *a: (calls.append(a), download(*a)))
  corpora.prepare(make_data(corpus="pypi_code", validation_fraction=0.4, vocab_size=280), log)
  assert calls == []
  damaged = next(Path(data.cache_dir).glob("wheels-*/small_3*"))
  damaged.write_bytes(damaged.read_bytes()[:-1])
  corpora.prepare(make_data(corpus="pypi_code", validation_fraction=0.4, vocab_size=270), log)
  assert len(calls) == 1 and any("the wheel of small_3 is missing or damaged" in x for x in log)


def _nothing_left(cache_dir: str) -> bool:
  return not [p for p in Path(cache_dir).iterdir() if not p.name.endswith(".lock")]


def test_a_wrong_hash_is_one_line_and_leaves_nothing(pinned, make_data, log):
  text = pinned.read_text()
  pinned.write_text(text.replace(re.findall("sha256:(.{8})", text)[2], "0" * 8))
  data = make_data(corpus="pypi_code")
  with pytest.raises(UserError, match="sha256 is not the pinned one: Expected.*Got") as error:
    corpora.prepare(data, log)
  assert "\n" not in str(error.value) and _nothing_left(data.cache_dir)


def test_our_own_check_of_the_hash_does_not_trust_pip(pinned, make_data, log, monkeypatch):
  def download(_, folder):
    for path in (pinned.parent / "index").iterdir():
      shutil.copy(path, folder)
    (folder / "small_1-1.0-py3-none-any.whl").write_bytes(b"another")
  monkeypatch.setattr(pypi_code, "_download", download)
  data = make_data(corpus="pypi_code")
  with pytest.raises(UserError, match="pip left a wheel of small_1 whose sha256 is not the pinned"):
    corpora.prepare(data, log)
  assert _nothing_left(data.cache_dir)


def test_a_package_that_cannot_be_had_is_one_line(pinned, make_data, log):
  with pinned.open("a") as file:
    file.write(f"absent_package==1.0 --hash=sha256:{'0' * 64}\n")
  with pytest.raises(UserError, match="could not download the pinned wheels: .*absent") as error:
    corpora.prepare(make_data(corpus="pypi_code"), log)
  assert "\n" not in str(error.value)


def test_a_share_too_small_for_a_package_is_one_line(pinned, make_data, log):
  with pytest.raises(UserError, match="validation_fraction=0.01: too small to hold out one whole"):
    corpora.prepare(make_data(corpus="pypi_code", validation_fraction=0.01), log)


def test_the_pinned_requirements_are_24_hashed_wheels():
  pins = pypi_code._pins(Path(pypi_code.__file__).with_name("pypi_code_requirements.txt"))
  assert len(pins) == 24 and len(set(pins.values())) == 24
