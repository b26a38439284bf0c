"""What a user sees when their input is wrong: one line, exit code 2, no traceback."""

import sys
from collections.abc import Callable

import tyro
from tqdm import tqdm


class UserError(Exception):
    """Bad input: a flag, a file, a checkpoint, a data row. The message says what, where and how to fix it."""


def cli(main: Callable, config_class: type, presets: dict[str, dict] | None = None):
    """Parse flags into `config_class` (tyro) and run `main(config)`; a UserError or OSError exits with 2.

    `--preset NAME` replaces the defaults by presets[NAME] first, so that flags beside it win.
    """
    description = sys.modules[main.__module__].__doc__
    chosen = next((b for a, b in zip(sys.argv, sys.argv[1:], strict=False) if a == "--preset"), "")
    default = config_class(**presets[chosen], preset=chosen) if chosen in (presets or {}) else None
    config = tyro.cli(config_class, default=default, description=description, use_underscores=True)
    try:
        return main(config)
    except (UserError, OSError) as error:
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()  # so that the error has a line of its own
        print(f"error: {reason(error)}", file=sys.stderr)
        sys.exit(2)


def reason(error: Exception) -> str:
    """One line: of an OSError (a full disk, a folder that may not be written) the file and what the system says."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
