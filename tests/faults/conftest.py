"""Work in a process of its own, which may be killed, starved of disk, or die."""

import multiprocessing
import os
import signal
import traceback
from collections import Counter
from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    """How a process ended: "done" with a result, "error" with its class and message, "death" by a signal."""

    kind: str
    found: object = None
    message: str = ""


COUNTS = Counter()


def pytest_terminal_summary(terminalreporter) -> None:
    """Print how often what came out."""
    for (test, kind), number in sorted(COUNTS.items()):
        terminalreporter.write_line(f"{test}: {kind} {number:,}")


@pytest.fixture(scope="session")
def counts():
    """A function that counts an outcome of the test that runs."""

    def count(kind: str) -> None:
        COUNTS[os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split("[")[0].split(" ")[0], kind] += 1

    return count


@pytest.fixture(scope="session")
def n_trials() -> int:
    """Random trials of each kind: a few, or those of `make attack` (SIMS_KIT_TRIALS)."""
    return int(os.environ.get("SIMS_KIT_TRIALS", "12"))


@pytest.fixture(scope="session")
def forked(counts):
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
            counts(f"{send.name} sent")
        try:
            outcome = answers.recv() if answers.poll(limit) else Outcome("death", signal.SIGALRM, "too slow")
        except EOFError:
            outcome = None
        if outcome is not None and outcome.kind == "death":
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        outcome = outcome or Outcome("death", signal.Signals(os.WTERMSIG(status)))
        name = getattr(outcome.found, "__name__", None) or getattr(outcome.found, "name", "")  # of an error, a signal
        counts("done" if outcome.kind == "done" else name)
        return outcome

    return run
