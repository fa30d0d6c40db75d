"""Programs that the guard's tests start in the place of the runtime: `python runtimes.py NAME FILE`.

Each appends what it has to say to FILE, one line at a time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def say(text: str) -> None:
    descriptor = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def wait_for_ever() -> None:
    while True:
        signal.pause()


def beat(times: int) -> None:
    for _ in range(times):
        os.write(int(os.environ["ORUN_GUARD_FD"]), b".")
        time.sleep(0.01)


def stubborn_tree(children: int, grandchildren: int) -> None:
    """Children and grandchildren, all in sessions of their own, none ending by itself."""
    for _ in range(children):
        if os.fork() == 0:
            os.setsid()
            for _ in range(grandchildren):
                if os.fork() == 0:
                    os.setsid()
                    wait_for_ever()
            wait_for_ever()


def tell() -> None:
    names = ("ORUN_TREE", "ORUN_GUARD_PID", "ORUN_GUARD_FD", "ORUN_RESTARTS")
    say(" ".join(os.environ[name] for name in names))
    say(f"{os.getpid()} {os.getpgid(0)} {os.getppid()}")
    sys.exit(7)


def obedient() -> None:
    """Exits with the number of the signal it gets."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT"):
        signal.signal(getattr(signal, name), lambda number, _: (say(f"got {number}"), sys.exit(number)))
    say(f"ready {os.getpid()}")
    wait_for_ever()


def talker() -> None:
    """Writes to its terminal, from outside of the foreground group."""
    signal.signal(signal.SIGINT, lambda *_: (say("got 2"), os.write(1, b"bye\n"), sys.exit(0)))
    os.write(1, b"hello\n")
    say("ready")
    wait_for_ever()


def plain() -> None:
    """Has no handlers: a signal ends it."""
    say(f"ready {os.getpid()}")
    wait_for_ever()


def crasher() -> None:
    say(os.environ["ORUN_RESTARTS"])
    os.kill(os.getpid(), signal.SIGSEGV)


def beater() -> None:
    """Beats; falls silent in its first life."""
    say(f"ready {os.getpid()} {os.environ['ORUN_RESTARTS']}")
    beat(3)
    if os.environ["ORUN_RESTARTS"] == "0":
        wait_for_ever()
    beat(100)
    sys.exit(3)


def tree() -> None:
    """Like the real one: a subreaper with children that have children, 90 processes in all."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stubborn_tree(9, 9)
    say(f"ready {os.getpid()} {os.environ['ORUN_RESTARTS']}")
    wait_for_ever()


def nested() -> None:
    """Starts a tree of its own under a guard of its own, the program named by ORUN_TEST_GUARD."""
    guard = os.environ["ORUN_TEST_GUARD"]
    if os.fork() == 0:
        os.setsid()
        os.execv(guard, [guard, "--", sys.executable, "-I", sys.argv[0], "tree", sys.argv[2]])
    wait_for_ever()


def leaver() -> None:
    """Exits in order, and leaves everything behind."""
    stubborn_tree(3, 3)
    say("leaving")
    sys.exit(5)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
