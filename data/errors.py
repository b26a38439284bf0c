"""What a user sees when their input is wrong: one line, exit code 2, no traceback."""

import sys
from collections.abc import Callable

import tyro


class UserError(Exception):
    """Bad input: a flag, a file, a checkpoint, a data row. The message says what, where and how to fix it."""


def cli(main: Callable, config_class: type, argv: list[str] | None = None):
    """Parse flags into `config_class` (tyro, flags_with_underscores) and run `main(config)`; a UserError exits with 2."""
    description = sys.modules[main.__module__].__doc__
    config = tyro.cli(config_class, args=argv, description=description, use_underscores=True)
    try:
        return main(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
