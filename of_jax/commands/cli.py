"""Command lines of all binaries: absl flags, `--config.a.b=value` overrides, one-line errors.

A binary defines its flags with absl and ends with `cli.run(main)`. Nothing here imports jax, so
that a mistake on the command line is reported at once.
"""

import dataclasses
import inspect
import io
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from absl import flags

import of_jax
from of_jax import config as config_lib
from of_jax import signals, user_code
from of_jax.commands import accelerators
from of_jax.commands.help_text import CONFIG_FLAGS, CONFIGS, HELP, help_text, presets
from of_jax.config import own_code, paths
from of_jax.errors import THEIRS, Preempted, UserError, one_line, reason_of, unforeseen

# XLA on CPU calls OpenBLAS's decompositions from threads of its own. Theirs on top wait for each
# other by spinning: ten times the processor time where cores are shared. Read when jax is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_PREFIX = "config."
_LARGEST_FLAG_FILE = 1_000_000
_overrides: list[tuple[str, str]] = []


def run(main: Callable[[], None]) -> None:
  """Parses the command line and calls `main`; exits 1 with one line on a user's mistake, and where
  a file cannot be written or read.

  Other statuses: 75 if the run was told to stop and saved, 130 if it was interrupted.
  """
  _hold_standard_streams()
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # Names of files need not be what the terminal can show.
      stream.reconfigure(errors="backslashreplace")
  with signals.watched():
    try:
      _run(main)
    finally:
      _let_go_of_output()


def _run(main: Callable[[], None]) -> None:
  module = sys.modules["__main__"]
  accelerators.keep_libtpu_silent()
  try:
    if {*HELP} & {*sys.argv[1:]}:
      print(help_text(module, full="--helpfull" in sys.argv), flush=True)
      return
    if "--version" in sys.argv[1:]:
      print(f"of_jax {of_jax.__version__}", flush=True)
      return
    rest = _take_overrides(sys.argv)
    if _asks_for_presets(rest):
      print(presets(), flush=True)
      return
    _check_flag_files(rest)
    try:
      unparsed = flags.FLAGS(rest)[1:]
    except (flags.Error, ValueError) as error:  # absl has the second for --noflag=value.
      raise UserError(_of_a_config(rest) or " ".join(str(error).split())) from None
    if unparsed:
      raise UserError(f"{unparsed[0]}: not a flag; flags begin with --, see --help")
    _check_empty_flags()
    main()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except Preempted as stopped:
    print(f"{stopped}; the same command resumes", file=sys.stderr)
    sys.exit(stopped.status)
  except BrokenPipeError:
    pass  # What reads our output has had enough, as `head` has.
  except OSError as error:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    print(f"error: {one_line(where + reason_of(error))}", file=sys.stderr)
    sys.exit(1)
  except MemoryError:
    print("error: there is too little memory for it on this machine", file=sys.stderr)
    sys.exit(1)
  except THEIRS as error:
    if isinstance(error, SystemExit) and not user_code.fault(error):
      raise
    line = user_code.fault(error) or _of_the_environment(error) or (
        f"the device has too little memory for it: {reason_of(error)}"
        if "RESOURCE_EXHAUSTED" in str(error) else unforeseen(error))
    print(f"error: {one_line(line)}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("interrupted; the same command resumes", file=sys.stderr)
    sys.exit(130)


def _check_empty_flags() -> None:
  """Refuses flags that were given without a value, as `--workdir=$UNSET` in a script is."""
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    if flag.present and flag.value in ("", []):
      default = ",".join(flag.default or ()) if flag.value == [] else flag.default
      raise UserError(f"--{name}=: needs a value, or leave it out"
                      + (f", for {default}" if default else ""))


def _check_flag_files(arguments: list[str]) -> None:
  """Refuses --flagfile=X where X is no file of a size that is read, as a device without an end."""
  for i, argument in enumerate(arguments):
    name, has_value, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name == "flagfile":
      path = Path(value if has_value else next(iter(arguments[i + 1:]), "")).expanduser()
      if path.exists() and not (path.is_file() and path.stat().st_size <= _LARGEST_FLAG_FILE):
        raise UserError(f"--flagfile={path}: not a text file of at most 1 MB")


def _of_the_environment(error: BaseException) -> str:
  """Says which variables of the environment JAX does not start with; "" for any other error."""
  names = [name for name in sorted(os.environ) if name.startswith(("JAX_", "XLA_"))]
  of_start = ("jax/_src/xla_bridge.py", "jax/_src/config.py")
  if not names or not any(frame.f_code.co_filename.endswith(of_start)
                          for frame, _ in traceback.walk_tb(error.__traceback__)):
    return ""
  return (f"JAX does not start: {reason_of(error)}; of the environment it reads "
          + ", ".join(f"{name}={os.environ[name]}" for name in names))


def _hold_standard_streams() -> None:
  """Opens what the process was started without, as by `>&-`: a file that a run writes would else
  get the number of standard output or error, and what libraries print."""
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # Gets the lowest number that is free.
  sys.stdin = sys.stdin or open(os.devnull)
  sys.stdout = sys.stdout or open(os.devnull, "w")
  sys.stderr = sys.stderr or open(os.devnull, "w")


def _let_go_of_output() -> None:
  """Drops what can no longer be written, as to a pipe that nobody reads or on a full disk: Python
  would fail at it at its end."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except ValueError:
      pass  # It is closed.


def overrides() -> list[tuple[str, str]]:
  """Lists the (dotted path, text) pairs of the command line's `--config.path=text`, in order."""
  return list(_overrides)


def output_folder(flag: str) -> Path | None:
  """Finds the folder that a flag names, if it is given.

  Raises:
    UserError: it is something else, or cannot be made or written.
  """
  value = flags.FLAGS[flag].value
  if not value:
    return None
  where = f"--{flag}={value}"
  return paths.check_output_folder(where, paths.expanded(value, where))


def output_file(flag: str) -> Path | None:
  """Finds the file that a flag names, if it is given. Raises UserError where it cannot be made."""
  value = flags.FLAGS[flag].value
  if not value:
    return None
  where = f"--{flag}={value}"
  return paths.check_output_file(where, paths.expanded(value, where))


def refuse_overrides(taken: Mapping[str, str]) -> None:
  """Refuses a `--config.PATH` of what a flag of the binary decides.

  Args:
    taken: PATH -> the flag that decides it.

  Raises:
    UserError: the command line has such a field.
  """
  for path, text in _overrides:
    if path in taken:
      raise UserError(f"--config.{path}={text}: {taken[path]} decides it here")


def load_config(spec: str, extra: Iterable[tuple[str, str]] = (), typed: bool = True
                ) -> config_lib.Config:
  """Loads the config of `PATH` or `PATH:ARGUMENT`, sets fields and resolves it.

  The fields of `extra` are set first, then those of the command line, unless `typed` is false.
  The file defines `get_config()` or `get_config(argument)`, returning an of_jax Config.

  Raises:
    UserError: no such file, no such function, an argument it does not know, a bad override.
  """
  path, _, argument = spec.partition(":")
  file = paths.expanded(path, f"--config={spec}")
  if not file.is_file() and path in _names_of_package(file):
    file = CONFIGS / f"{file.stem}.py"
  if not file.is_file():
    raise UserError(f"--config={spec}: no such file as {path}")
  try:
    get_config = runpy.run_path(str(file)).get("get_config")
  except UserError:
    raise
  except THEIRS as error:  # The file is the user's: whatever it raises is their mistake.
    raise _fault(spec, path, error) from error
  if not callable(get_config):
    raise UserError(f"--config={spec}: {path} defines no function get_config")
  takes_argument = bool(inspect.signature(get_config).parameters)
  if argument and not takes_argument:
    raise UserError(f"--config={spec}: {path} takes no argument, leave out :{argument}")
  if takes_argument and not argument:
    raise UserError(f"--config={spec}: needs an argument, as in {path}:NAME")
  try:
    config = get_config(argument) if argument else get_config()
  except UserError:
    raise
  except THEIRS as error:
    raise _fault(spec, path, error) from error
  if not isinstance(config, config_lib.Config):
    raise UserError(f"--config={spec}: get_config gives {type(config).__name__}, not a Config of "
                    "of_jax.config")
  for section in dataclasses.fields(config):
    value = getattr(config, section.name)
    if not isinstance(value, type(section.default)):
      raise UserError(f"--config={spec}: get_config gives a Config whose {section.name} is "
                      f"{type(value).__name__}, not {type(section.default).__name__}")
  config = config_lib.apply_overrides(config, [*extra, *(overrides() if typed else ())])
  own_code.trust(config)
  for path, text in overrides():
    if own_code.takes(path) and own_code.is_own(path, text):
      user_code.trust(text, copies=True)
  return config


def _names_of_package(file: Path) -> set[str]:
  """Lists what a config file of the package may be called: as it lies in a clone, or by its name.
  """
  if not (CONFIGS / f"{file.stem}.py").is_file() or file.stem.startswith("_"):
    return set()
  in_clone = f"experiments/configs/{file.stem}.py"
  return {file.stem, f"{file.stem}.py", in_clone, str(CONFIGS.parents[2] / in_clone)}


def _fault(spec: str, path: str, error: BaseException) -> UserError:
  """The line about a config file that fails: where in it, and what would be right."""
  where = f"--config={spec}: {path}"
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if Path(frame.filename).name == Path(path).name]
  line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
  where += f", line {line}" if line else ""
  if isinstance(error, dataclasses.FrozenInstanceError):
    return UserError(f"{where}: {error}, for a config does not change; make another, as in "
                     "dataclasses.replace(config, model=dataclasses.replace(config.model, "
                     "width=256))")
  text = reason_of(error)
  if isinstance(error, TypeError) and (found := re.search(
      r"(\w+)Config\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)):
    # dataclasses.replace names the section by its class.
    section, name = found[1].lower(), found[2]
    return UserError(f"{where}: {section}.{name}: no such field"
                     + config_lib.nearest_field(f"{section}.{name}"))
  return UserError(f"{where}: fails with {reason_of(error)}")


def _take_overrides(argv: list[str]) -> list[str]:
  """Moves every `--config.path=text` out of `argv`, for absl knows only declared flags."""
  _overrides.clear()
  rest: list[str] = []
  arguments = iter(argv)
  for argument in arguments:
    name, has_value, text = argument.lstrip("-").partition("=")
    if not (argument.startswith("-") and name.startswith(_PREFIX)):
      rest.append(argument)
      continue
    if not _takes_config():
      raise UserError(f"{argument}: this binary takes no config")
    if not has_value:
      text = next(arguments, "--")
      if text.startswith("--"):
        raise UserError(f"{argument}: needs a value, as in {argument}=VALUE")
    _overrides.append((name.removeprefix(_PREFIX), text))
  return rest


def _takes_config() -> bool:
  return any(name in flags.FLAGS for name in CONFIG_FLAGS)


def _asks_for_presets(arguments: list[str]) -> bool:
  """Says whether --config stands there without a value."""
  if "config" not in flags.FLAGS:
    return False
  followers = zip(arguments, [*arguments[1:], "--"])
  return any(argument in ("--config=", "-config=") or (
      argument in ("--config", "-config") and follower.startswith("--"))
      for argument, follower in followers)


def _of_a_config(arguments: Iterable[str]) -> str:
  """Says which field of a config was meant by a flag that there is none of, or nothing."""
  for argument in arguments:
    name = argument.lstrip("-").partition("=")[0]
    if argument.startswith("-") and name in config_lib.fields() and _takes_config():
      return f"{argument}: no such flag; did you mean --{_PREFIX}{argument.lstrip('-')}?"
  return ""
