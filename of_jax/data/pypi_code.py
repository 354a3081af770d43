"""Documents from 24 pinned pure-Python wheels: a corpus of permissively licensed code.

Enters: pypi_code_requirements.txt, beside this file. Leaves: a `Source` of the wheels' .py files.
Nothing is installed or run: pip downloads, and the files are read out of the archives.
"""

import functools
import hashlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from of_jax.config.paths import expanded
from of_jax.data import cache
from of_jax.data.documents import Document, Source, Split, hold_out
from of_jax.data.folder import file_sha256
from of_jax.errors import UserError

REQUIREMENTS = Path(__file__).with_name("pypi_code_requirements.txt")
_WHERE = "config.data.corpus=pypi_code"
_LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")

Log = Callable[[str], None]


def source(cache_dir: str, log: Log) -> Source:
  """Describes the corpus of the wheels' .py files.

  Its fingerprint is made of the pinned hashes: none is downloaded before the corpus is built.
  """
  pins = _pins(REQUIREMENTS)
  fingerprint = hashlib.sha256(repr(sorted(pins.items())).encode()).hexdigest()
  return Source("pypi_code", fingerprint,
                functools.partial(_split, cache_dir, fingerprint, log))


def _pins(requirements: Path) -> dict[str, str]:
  """Reads package -> its wheel's sha256; packages are spelt as in a wheel's file name."""
  matches = [_LINE.fullmatch(line.strip()) for line in requirements.read_text().splitlines()]
  return {_normal(m["name"]): m["sha256"] for m in matches if m}


def _normal(name: str) -> str:
  return re.sub(r"[-_.]+", "_", name).lower()


def _split(cache_dir: str, fingerprint: str, log: Log, fraction: float) -> Split:
  """Holds out whole packages, for near-duplicates of a package's files are in that package."""
  wheels = _wheels(cache_dir, _pins(REQUIREMENTS), fingerprint, log)
  by_package: dict[str, list[Document]] = {}
  seen: set[bytes] = set()
  for package in sorted(wheels):
    archive = zipfile.ZipFile(wheels[package])
    by_package[package] = []
    for name in sorted(archive.namelist()):
      raw = archive.read(name) if name.endswith(".py") else b""
      digest = hashlib.sha256(raw).digest()
      if raw and digest not in seen and _is_text(raw):
        seen.add(digest)
        by_package[package].append(
            Document(f"{package}/{name}", len(raw), functools.partial(_read, archive, name)))
  held = hold_out({p: sum(d.size for d in documents) for p, documents in by_package.items()},
                  fraction)
  if not held or len(held) == len(by_package):
    raise UserError(f"config.data.validation_fraction={fraction}: too small to hold out one whole "
                    "package of pypi_code; 0.05 does")
  parts = {keep: tuple(d for p in by_package if (p in held) is keep for d in by_package[p])
           for keep in (True, False)}
  return Split(parts[False], parts[True],
               f"by package, in the order of the names' sha256: {', '.join(sorted(held))}")


def _is_text(raw: bytes) -> bool:
  try:
    raw.decode("utf-8")
  except UnicodeDecodeError:
    return False
  return True


def _read(archive: zipfile.ZipFile, name: str) -> str:
  return archive.read(name).decode("utf-8")


def _wheels(cache_dir: str, pins: dict[str, str], fingerprint: str, log: Log) -> dict[str, Path]:
  """Opens the checked wheels by package, downloading them where the cache lacks one."""
  entry = expanded(cache_dir).absolute() / f"wheels-{fingerprint[:16]}"
  with cache.writing(cache_dir), cache.locked(entry, log):
    if entry.exists():
      found = _by_package(entry)
      wrong = _wrong(found, pins)
      if not wrong:
        return found
      log(f"{entry}: the wheel of {wrong} is missing or damaged; downloaded anew")
    log(f"pypi_code: downloading {len(pins)} wheels with pip, 162 MB")
    with cache.replacing(entry) as folder:
      _download(REQUIREMENTS, folder)
      wrong = _wrong(_by_package(folder), pins)
      if wrong:
        raise UserError(f"{_WHERE}: pip left a wheel of {wrong} whose sha256 is not the pinned one")
    return _by_package(entry)


def _by_package(folder: Path) -> dict[str, Path]:
  return {_normal(path.name.split("-")[0]): path for path in sorted(folder.glob("*.whl"))}


def _wrong(wheels: dict[str, Path], pins: dict[str, str]) -> str:
  """Finds the first package without its pinned wheel, or ""."""
  return next((package for package, sha256 in pins.items()
               if package not in wheels or file_sha256(wheels[package]) != sha256), "")


def _download(requirements: Path, folder: Path) -> None:
  download(requirements, folder, _WHERE, "any", "3.14", "py")


def download(requirements: Path, folder: Path, where: str, platform: str, python: str,
             implementation: str) -> None:
  """Downloads the pinned wheels of a platform into `folder`, whatever this machine is.

  Runs pip, so that the user's own pip configuration says where packages come from.

  Args:
    requirements: a requirements file with a version and a hash of each.
    folder: takes the wheels.
    where: begins an error's message: the field that asked for them.
    platform, python, implementation: as pip's flags --platform, --python-version and
      --implementation take them.

  Raises:
    UserError: this Python has no pip, or pip could not download them.
  """
  if importlib.util.find_spec("pip") is None:
    raise UserError(f"{where}: this Python has no pip to download with; "
                    "run python -m ensurepip first")
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
             "--no-deps", "--require-hashes", "--only-binary=:all:", "--platform", platform,
             "--python-version", python, "--implementation", implementation,
             "-d", str(folder), "-r", str(requirements)]
  result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
  if result.returncode:
    said = result.stderr.strip().splitlines()
    errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
    # The last error is the reason of the download's end, and the first of a hash's mismatch.
    mismatch = [line for line in errors if "DO NOT MATCH THE HASHES" in line]
    reason = ("a wheel's sha256 is not the pinned one: "
              + " ".join(line.strip() for line in said if line.strip().startswith(
                  ("Expected", "Got"))) if mismatch else (errors or said or ["no reason"])[-1])
    raise UserError(f"{where}: pip could not download the pinned wheels: {reason[:300]}")
