"""The one exception that a user's mistake raises: its message is the whole report."""


class UserError(Exception):
  """A mistake in what the user gave: a flag, a file, a combination of settings.

  The message is one line that says what is wrong, which value it had, and what would be
  right. Binaries print it behind `error: ` and exit with status 1, without a traceback.
  """
