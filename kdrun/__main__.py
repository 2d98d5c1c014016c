"""Entry point of `python -m kdrun`: the same command line as the console script, also from a plain checkout."""

from kdrun.cli import console

if __name__ == "__main__":
    console()
