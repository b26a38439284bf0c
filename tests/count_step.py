"""How much a reader passes through to follow one training step: functions, changes of file, lines.

    python tests/count_step.py rl.py --init out/pretrain/last.pt --steps 3 ...      # any command of a training stage

The third step of a run is traced (sys.setprofile), from where its loop gets the step to where it asks for the next one:
the project's own functions in the order of their first call; a function that stands in another one is part of that. A
change of file is a call that comes first in another file than the one before it.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRACED = 2  # number of the step: the ones before it also fill caches


def count_step(command: list[str]) -> dict:
    """Run `command` in this process; {"functions": [(file, name), ...], "changes", "lines"} of one step."""
    sys.path.insert(0, str(ROOT))
    from cli import cli
    from runtime import Run

    first: dict[tuple[str, str], int] = {}  # (file, name) → its lines

    def profile(frame, event, _):
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or not code.co_filename.startswith(str(ROOT) + "/"):
            return
        file = str(Path(code.co_filename).relative_to(ROOT))
        if not file.startswith((".venv", "tests/")):
            lines = [line for *_, line in code.co_lines() if line]
            first.setdefault((file, code.co_qualname.split(".<locals>")[0]), max(lines) - min(lines) + 1)

    steps = Run.steps

    def traced_steps(run, *args, **kwargs):
        for step in steps(run, *args, **kwargs):
            if step.number == TRACED:
                sys.setprofile(profile)
            yield step
            sys.setprofile(None)

    stage = importlib.import_module(command[0].removesuffix(".py"))
    argv, Run.steps = sys.argv, traced_steps
    try:
        sys.argv = command
        cli(stage.main, stage.Config, getattr(stage, "PRESETS", {}) if command[0] != "pretrain.py" else {})
    finally:
        sys.argv, Run.steps = argv, steps
        sys.setprofile(None)
    files = [file for file, _ in first]
    return {
        "functions": list(first),
        "changes": sum(a != b for a, b in zip(files, files[1:], strict=False)),
        "lines": sum(first.values()),
    }


if __name__ == "__main__":
    counted = count_step(sys.argv[1:])
    for file, name in counted["functions"]:
        print(f"  {file:<24}{name}")
    files = {file for file, _ in counted["functions"]}
    print(f"{len(counted['functions'])} functions, {len(files)} files, {counted['changes']} changes of file, "
          f"{counted['lines']} lines entered")  # fmt: skip
