"""The curves of any runs side by side, as a picture: loss, reward, validation, bits per byte, entropy, length, KL, speed.

    python -m tools.plot out/rl out/average                    # → out/curves.png
    python -m tools.plot out/rl_* --out three_seeds.png

A panel a quantity; what none of the runs has is left out. Smoothed, with the raw values behind. A run may still be
going on. Each run draws its own OUT/curves.png at its end.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from cli import UserError, cli, expand
from curves import draw_curves


@dataclass
class Config:
    """Plot: which runs, and where to"""

    runs: Positional[tuple[str, ...]] = ()  # folders of runs: those that hold a metrics.jsonl
    out: str = "out/curves.png"  # the picture; one that is there is replaced


def main(config: Config) -> None:
    if not config.runs:
        raise UserError("name one or more folders of runs, such as out/rl out/average")
    out = Path(config.out)
    if out.suffix != ".png":
        raise UserError(f"--out {out}: a name that ends in .png")
    draw_curves([Path(run) for run in expand("runs", config.runs)], out)
    print(f"wrote {out}")


if __name__ == "__main__":
    cli(main, Config)
