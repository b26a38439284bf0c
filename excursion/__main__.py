"""The command: python -m excursion (plan.py has its flags)."""

from cli import cli
from excursion.plan import Config, main

if __name__ == "__main__":
    cli(main, Config)
