"""How a process ends: told by signals, with its parent, and in time whatever hangs."""

import ctypes
import signal
import sys
import threading

END_WITHIN_S = 20
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_flag() -> threading.Event:
    """A flag that SIGTERM and SIGINT set from now on."""
    return flag_of(signal.SIGTERM, signal.SIGINT)


def flag_of(*signals: signal.Signals) -> threading.Event:
    """A flag that signals set from now on."""
    flag = threading.Event()

    def leave(*_: object) -> None:
        # On a thread: the signal may come while this one holds the flag's own lock.
        threading.Thread(target=flag.set, daemon=True).start()

    for one in signals:
        signal.signal(one, leave)
    return flag


def told_to_end() -> threading.Event:
    """A flag that SIGTERM and SIGINT set; from then on the role has to hurry."""
    flag = stop_flag()

    def hurry() -> None:
        flag.wait()
        end_soon()

    threading.Thread(target=hurry, name="hurry", daemon=True).start()
    return flag


def end_soon() -> None:
    """Have the kernel end this process if it has not ended by itself in time.

    A store or a lake that hangs must not keep a role whose supervisor is gone; what was
    not written is in the log or the spool. The kernel's alarm also ends an interpreter
    that hangs on its way out.
    """
    signal.alarm(END_WITHIN_S)
