"""The type of what a rule is given to say that something is wrong."""

from collections.abc import Callable

# (whether it holds, the dotted path of the field at fault, what is wrong) -> None, or UserError.
Check = Callable[[bool, str, str], None]
