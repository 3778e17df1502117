"""`python -m charrnn`, and what the command `charrnn` runs."""

import sys
from typing import NoReturn

from charrnn.interrupt import quit_on_signals


def main() -> NoReturn:
    """The command line. A scheduler may send a training away again before what it needs is imported."""
    if sys.argv[1:2] == ["train"]:
        quit_on_signals()
    from charrnn.cli import main as run

    run()


if __name__ == "__main__":
    main()
