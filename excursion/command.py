"""The whole experiment: every recipe from every kept checkpoint, evaluated, compared, drawn.

    python -m excursion --scale micro --tokens 7M            # make excursion: half an hour to an hour on 2 cores
    python -m excursion plan --scale micro                   # the same, as a list of commands (--format make, slurm: docs/launch.md)
    python -m excursion run --plan checkpoints --budget study    # the confirmatory study (docs/PROTOCOL.md): from which
    python -m excursion run --plan sweep --budget study          # checkpoints, at which rates (both on validation
    python -m excursion run --budget study                       # questions), then the grid and order x rate x dose
    python -m excursion run --plan sharpening --budget study
    python -m excursion run --bases a.pt b.pt                # the same from given checkpoints: nothing is pretrained
    python -m excursion run --bases out/pretrain/step_*.pt --recipes base_0shot rl --stage_flags rl "--kl 0.01"    # an ablation
    python -m excursion report --records results/excursion   # tables and figures again, from committed records alone
    python -m excursion compare BASE.json SEED0.json SEED1.json      # the change from one record of eval.py to others

A *cell* is one ordinary command of one stage: it makes one file, and may start when the files that it needs are there.
`run` executes the cells whose file is missing, in the order of the plan, --jobs at a time, and then writes the report.
It may be killed at any moment: the same command goes on. A cell that fails is named and keeps its log; it waits for
--retry.

What lies where:

    OUT/seed1/pretrain/run/                  a stage's own files (checkpoints, metrics); beside it
    OUT/seed1/pretrain/train.log, .json      what it printed; its command, exit code and seconds
    OUT/seed1/4.00M/rl/run/, train.log ...   the same; run/step_0000048.pt: kept at a named step (--points)
    OUT/seed1/4.00M/sft/best.pt              the kept checkpoint that is best on validation (`choose`)
    OUT/seed1/4.00M/rl/eval/                 evaluation records of its checkpoints; eval_t1/: at temperature 1
    OUT/records/seed1-4.00M-rl.json.gz       the record of the end; seed1-4.00M-rl@48.json.gz of a named step, -T1 appended
                                             at temperature 1; beside each .cell.json: recipe, seed, step, curve,
                                             samples, ...
    OUT/report.md, report.html, figures/     made by report.py from OUT/records alone
    OUT/bases.json                           of which weights --bases were
"""

import json
import re
import shlex
import signal
import sys
from pathlib import Path

from cli import UserError
from excursion import known, report
from excursion.choose import choose, sweep_runs, swept, write_checkpoints, write_rates
from excursion.collect import collect
from excursion.compare import print_changes
from excursion.config import Config, resolve
from excursion.given import read_bases, refuse_other_weights
from excursion.plan import make_plan
from excursion.runner import Cell, Runner, needed, read_state, refuse_other


def main(config: Config) -> None:
    """One verb. Exit code 1 if cells are missing in the end."""
    if config.command == "compare":
        return print_changes(config.files)
    if config.files:
        raise UserError(f"{config.files[0]}: {config.command} takes no files; compare does (a plan is named by --plan, and "
                        "--stage_flags takes quotes: rl '--kl 0.01')")  # fmt: skip
    if config.command == "choose":
        choose(Path(config.out))
        return
    config = resolve(config)
    if config.command == "report" and config.records:
        report.write_report(Path(config.records), Path(config.out))
        return
    cells = make_plan(config)
    if config.bases:
        known.refuse_others(cells)
        refuse_other_weights(read_bases(config.bases), Path(config.out), note=config.command != "plan")
    if config.command == "plan":
        return print_plan(config, cells)
    execute = {"sweep": sweep, "checkpoints": checkpoints}.get(config.plan, study)
    if not execute(config, cells):
        sys.exit(1)


def complete(config: Config, cells: list[Cell]) -> bool:
    """Execute what is missing, if the command is `run`. False if some is missing in the end."""
    if config.command == "run":
        return not Runner(cells, config.out, config.jobs, config.threads, config.retry)()
    for cell in cells:  # a report may not call by these flags what was made by others
        refuse_other(cell, read_state(Path(config.out) / f"{cell.name}.json"), Path(config.out))
    return True


def sweep(config: Config, cells: list[Cell]) -> bool:
    """The runs that are not finished, here or in --records; then, of all, OUT/rates.json."""
    runs, done = sweep_runs(cells), swept(config, cells)
    whole = complete(config, needed(cells, [cell for cell in runs if cell.name not in done]))
    done = swept(config, cells)
    print(f"{len(done)} of {len(runs)} runs of the sweep are finished: {Path(config.out) / 'records/sweep.json'}")
    if len(done) == len(runs):
        write_rates(config, done)
    return whole


def checkpoints(config: Config, cells: list[Cell]) -> bool:
    """All cells; then, of all evaluations, OUT/checkpoints.json."""
    whole = complete(config, cells)
    asked = [cell.result.exists() for cell in cells if cell.kind == "eval"]
    print(f"{sum(asked)} of {len(asked)} evaluations of base models are finished")
    if all(asked):
        write_checkpoints(config, cells)
    return whole


def study(config: Config, cells: list[Cell]) -> bool:
    """The cells without a record in --records; then the report of all records, whatever is missing."""
    standing = []
    if config.records:
        asked = len([cell for cell in cells if cell.meta])
        cells, standing = known.left(cells, Path(config.records), lambda some: complete(config, some))
        print(
            f"{len(standing)} of {asked} evaluations have a record in {config.records} by the same commands (--out is part of them)"
        )
    whole = complete(config, cells)
    folder = collect(config, cells)
    known.copy(standing, Path(config.records), folder)
    report.write_report(folder, Path(config.out))
    return whole


# Head of the sbatch script. A job whose needs have failed never starts, and leaves the queue
SUBMIT = """\
set -e
cd {here}
export PATH={bin}:"$PATH"

submit() {{  # NAME NEEDS DONE WORK: submits a cell that is not done; its log is OUT/NAME.log. NEEDS are :NUMBER:NUMBER ...
    job=  # of a cell that is done; else :NUMBER
    if (eval "$3"); then return; fi
    mkdir -p "$(dirname {out}/"$1")"
    job=$(sbatch --parsable --requeue --kill-on-invalid-dep=yes --job-name="$1" --output={log}/"$1".log \\
        --open-mode=append ${{2:+--dependency=afterok$2}} {sbatch} --wrap "$3 || $4")
    job=:${{job%%;*}}  # NUMBER;CLUSTER where there are several
}}
"""


def launched(cell: Cell, config: Config) -> str:
    """The cell's command behind --launch; what is no stage (`choose`) has one process anyway."""
    return f"{'python' if cell.kind == 'choose' else config.launch} {shlex.join(cell.command)}"


def shell(cell: Cell, config: Config) -> tuple[str, str]:
    """The cell as two pieces of shell: is it done, as Runner.done has it? And if it is not: its command, which goes on
    with a run that was killed, and the notes that the runner would leave (read_state)."""
    quoted = {
        "note": f"{config.out}/{cell.name}.json",
        "head": f'{{"command": {json.dumps(cell.command)}, "rc": ',
        "result": str(cell.result),
        "run": str(cell.run or ""),
    }
    set_them = " ".join(f"{name}={shlex.quote(text)}" for name, text in quoted.items() if text)

    def write(rc: str) -> str:
        text = f"""printf '%s{rc}, "seconds": %d}}\\n' "$head" $(($(date +%s) - began))"""
        return f'{text} > "$note.part" && mv "$note.part" "$note"'

    done, work = '[ -e "$result" ] && ', f"export OMP_NUM_THREADS={config.threads}; began=$(date +%s); "
    if not cell.run:  # by another command: its stage refuses to overwrite it
        done += '{ [ ! -e "$note" ] || grep -qsF "${head}0," "$note"; }'
        work += launched(cell, config)
    else:
        done += 'grep -qsF "${head}0," "$note"'
        work += 'resume=; if [ -e "$run/last.pt" ]; then resume=--resume; '
        work += '[ ! -e "$note" ] || grep -qsF "$head" "$note" || { '
        work += 'echo "$note is of another command: pass the same flags, or another --out" >&2; exit 2; }; fi; '
        work += f'mkdir -p "$run"; {write("null")}; {launched(cell, config)} $resume'
    return f"{set_them}; {done}", f"{{ {work} && {write('0')}; }}"


def estimate(config: Config, cells: list[Cell]) -> list[str]:
    """What a plan takes, part by part in the order of work. Of scales that are not for a CPU, the number of cells alone."""
    hours: dict[str, list[float]] = {}
    for cell in cells:
        hours.setdefault(cell.part, []).append(cell.cost / 3600)
    lines = [f"{config.plan}, budget {config.budget}: {len(cells)} commands"]
    if config.scale in ("smoke", "micro", "mini"):
        total = sum(map(sum, hours.values()))
        lines[0] += f", about {total:.1f} core-hours in all (estimated: SECONDS in excursion/cells.py)"
        done = 0.0
        for part, costs in hours.items() if len(hours) > 1 else ():
            done += sum(costs)
            lines.append(f"{part}: {len(costs)} commands, {sum(costs):.1f} core-hours; {done:.1f} up to here")
    return lines


def print_plan(config: Config, cells: list[Cell]) -> None:
    """The commands in order, as a list, as a makefile, or as sbatch commands; first, in comments, what they take."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    if config.format == "slurm":
        print("#!/bin/sh")
    print(*(f"# {line}" for line in estimate(config, cells)), sep="\n")
    maker = {path: i for i, cell in enumerate(cells) for path in cell.results}  # which cell makes a file
    programs = str(Path(sys.executable).parent)  # this interpreter, and its torchrun
    if config.format == "list":
        for cell in cells:
            print(launched(cell, config))
    elif config.format == "make":
        if broken := [text for text in (config.out, config.data, *config.bases) if len(str(text).splitlines()) > 1]:
            raise UserError(f"{broken[0]!r}: a makefile takes no name with a line end")
        # A target is a cell, not its files: its line knows whether it is done, of a run its last evaluation, too
        names = [cell.name for cell in cells]
        print(f"export PATH := {programs.replace('$', '$$')}:$(PATH)")
        print(".PHONY: all", *names)
        print("all:", *names)
        for cell in cells:
            # Of --bases, those that a makefile can name: with one of these signs, the line would mean something else
            needs = (
                cells[maker[p]].name if p in maker else re.sub(r"[ #]", r"\\\g<0>", str(p)).replace("$", "$$")
                for p in cell.needs
                if p in maker or not re.search(r"[=:;|%\\\t\n]", str(p))
            )
            print(f"\n{cell.name}:", *dict.fromkeys(needs))
            print("\t" + " || ".join(shell(cell, config)).replace("$", "$$"))
    else:
        here, out, programs = (shlex.quote(str(p)) for p in (Path.cwd(), config.out, programs))
        log = out.replace("%", "%%")  # sbatch puts the job's number and the like in place of %j
        print(SUBMIT.format(here=here, out=out, log=log, bin=programs, sbatch=config.sbatch))
        for i, cell in enumerate(cells):
            after = "".join(dict.fromkeys(f"$j{maker[path]}" for path in cell.needs if path in maker))
            print(f'submit {shlex.quote(cell.name)} "{after}" {shlex.join(shell(cell, config))}; j{i}=$job')
