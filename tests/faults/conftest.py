"""Work in a process of its own, which may be killed, starved of disk, or die."""

import multiprocessing
import os
import signal
import traceback
from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    """How a process ended: "done" with a result, "error" with its class and message, "death" by a signal."""

    kind: str
    found: object = None
    message: str = ""


@pytest.fixture(scope="session")
def n_trials() -> int:
    """Random trials of each kind: a few, or those of `make attack` (SIMS_KIT_TRIALS)."""
    return int(os.environ.get("SIMS_KIT_TRIALS", "12"))


@pytest.fixture(scope="session")
def forked():
    """A function that runs another one in a fork, perhaps sending it a signal after some seconds."""

    def run(function, *arguments, send: int | None = None, after: float = 0.0, limit: float = 120.0) -> Outcome:
        answers, answer = multiprocessing.get_context("fork").Pipe(duplex=False)
        child = os.fork()
        if not child:
            try:
                os.setpgid(0, 0)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                answer.send(Outcome("done", function(*arguments)))
            except BaseException as error:
                answer.send(Outcome("error", type(error), f"{error}\n{traceback.format_exc()}"))
            finally:
                os._exit(0)
        answer.close()
        if send is not None and not answers.poll(after):
            os.kill(child, send)
        try:
            outcome = answers.recv() if answers.poll(limit) else Outcome("death", signal.SIGALRM, "too slow")
        except EOFError:
            outcome = None
        if outcome is not None and outcome.kind == "death":
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        return outcome or Outcome("death", signal.Signals(os.WTERMSIG(status)))

    return run
