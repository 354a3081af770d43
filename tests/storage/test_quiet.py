"""Orbax is kept quiet in threads, in what is collected and in its logs, and nothing else is."""

import subprocess
import sys

import pytest

# Raises in a thread, while something is collected, and through sys.excepthook as C++ does.
SCRIPT = """
import sys, threading
from absl import logging
from of_jax.storage.quiet import quiet_orbax

code = '''
def fail():
  raise OSError(24, "Too many open files")

async def task():
  raise OSError(24, "Too many open files")

def log():
  logging.warning("a warning")
'''
names = {"logging": logging}
exec(compile(code, FILE, "exec"), names)

def call():
  try:
    names["fail"]()
  except OSError as error:
    sys.excepthook(type(error), error, error.__traceback__)

quiet_orbax()
WHAT
"""
WHAT = {
    "thread": "t = threading.Thread(target=names['fail']); t.start(); t.join()",
    "collected": "class Held:\n  def __del__(self):\n    names['fail']()\nHeld()",
    "call": "t = threading.Thread(target=call); t.start(); t.join()",
    "log": "names['log']()",
    "task": "import asyncio, gc\n"
            "async def wait():\n  task = asyncio.ensure_future(names['task']())\n"
            "  await asyncio.sleep(0)\nasyncio.run(wait()); gc.collect()",
    "closed": "class Held:\n  def __del__(self):\n    raise RuntimeError('Event loop is closed')\n"
              "Held()"}


@pytest.mark.parametrize("what", WHAT)
def test_of_orbax_nothing_is_said_and_of_others_all(what):
  for file, spoken in (("/lib/orbax/checkpoint/x.py", False), ("/lib/mine/x.py", what != "closed")):
    script = SCRIPT.replace("FILE", repr(file)).replace("WHAT", WHAT[what])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert bool(done.stderr.strip()) == spoken, (file, done.stderr)


def test_main_thread_keeps_its_traceback():
  script = SCRIPT.replace("FILE", "'/lib/orbax/x.py'").replace("WHAT", "names['fail']()")
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
  assert "Too many open files" in done.stderr
