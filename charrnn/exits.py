"""What the exit code of a command says, for whatever starts it: a scheduler, a script."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Of every command; the last two are of `charrnn train` and of Ctrl-C."""

    DONE = 0
    FAILED = 1  # the loss ran away, memory is short, or a mistake of ours: another try may help, the same settings may not
    MISTAKE = 2  # the user can mend it, and must: another try will not help
    REQUEUE = 75  # told to go (SIGTERM, SIGUSR1), and saved: the same command with --resume goes on; EX_TEMPFAIL of sysexits.h
    INTERRUPTED = 130  # Ctrl-C, and saved: 128 and the number of SIGINT, as a shell has it


# What `charrnn train --help` ends with.
TOLD = (
    "Exit codes: 0 finished, or finished before; 1 the loss ran away, out of memory, or a bug; 2 a mistake that you can mend; "
    "75 told to go by SIGTERM or SIGUSR1 and saved, to be started again; 130 interrupted by Ctrl-C and saved. "
    "The same command with --resume starts a run, goes on with it, or says that it is finished."
)
