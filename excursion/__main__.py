"""python -m excursion"""

from cli import cli
from excursion.command import main
from excursion.config import Config

if __name__ == "__main__":
    cli(main, Config)
