"""One on every host: starts the ranks of its host, watches them, and ends them. `python -m cluster.agent`.

The coordinator (`cluster.supervise`) starts it, here or through ssh or srun, and holds both ends of the talk: one JSON
object per line, orders on stdin, reports on stdout. Nothing listens on a port.

    {"do": "port", "address": A or null, "towards": [names and addresses of other hosts]}
                                                 {"is": "port", "address": A, "port": N}: kept from others from now on
    {"do": "start", "argv", "folder", "environment", "first_rank", "ranks", "world", "address", "port"}
    {"do": "signal", "number": N}                to every rank that lives
    {"do": "end"}                                at once, with what the ranks have started
    {"do": "ping", "within_s": S or null}        the next order comes within S seconds, or the coordinator is gone
                                                 {"is": "up", "host", "process", "address"}
                                                 {"is": "alive", "ranks": {rank: last beat and its age_s}}, every second
                                                 {"is": "failure", "rank", ...} of `cluster.heartbeat.tell_failure`
                                                 {"is": "ended", "rank", "code", "beat"}, -9 for SIGKILL

Without a coordinator no rank goes on: at the end of stdin, or when orders stay out, the agent ends its ranks and
itself; one without ranks waits for as long as it takes. When the agent is killed, the kernel ends them. What ranks
print goes to the agent's stderr, or their stdout to the descriptor `--output`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from cluster.exit_codes import ExitCode
from cluster.heartbeat import FD
from cluster.interface import choose_interface, connected_address, meeting_address
from cluster.json_files import parse_object
from cluster.ports import reserve_port

_SIGN_OF_LIFE_S = 1.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Rank:
    """A process of the training, and the pipe of its beats."""

    def __init__(self, number: int, order: dict[str, Any], output: int) -> None:
        self.number = number
        self.beat: dict[str, Any] = {"phase": "starting", "step": 0}
        self.heard_s = time.monotonic()
        self.failure: dict[str, Any] | None = None
        self._unread = b""
        agent = os.getpid()

        def end_with_agent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != agent:
                os._exit(1)

        self.pipe, writer = os.pipe()
        try:
            os.set_blocking(self.pipe, False)
            self.process = subprocess.Popen(
                order["argv"], cwd=order["folder"], env=_environment(number, order, writer),
                stdin=subprocess.DEVNULL, stdout=output, pass_fds=(writer,),
                start_new_session=True, preexec_fn=end_with_agent,
            )  # fmt: skip
        except BaseException:
            os.close(self.pipe)
            raise
        finally:
            os.close(writer)

    def hear(self) -> None:
        """Read what beats there are."""
        with suppress(BlockingIOError):
            while piece := os.read(self.pipe, 1 << 16):
                *lines, self._unread = (self._unread + piece).split(b"\n")
                for line in lines:
                    with suppress(ValueError):  # a rank gives up a long line halfway when nobody has read for a second
                        self._note(parse_object(line))

    def _note(self, message: dict[str, Any]) -> None:
        self.heard_s = time.monotonic()
        if "failure" in message:
            self.failure = message["failure"]
        elif message["beat"]["step"] == self.beat["step"]:
            self.beat = {k: v for k, v in self.beat.items() if k != "micro_batch"} | message["beat"]
        else:
            self.beat = message["beat"]

    @property
    def has_ended(self) -> bool:
        """Its end is not collected by asking, so that its number stays its own."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: int) -> None:
        """The process alone: what it has started is its own business."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """With all that it has started. Before its end is collected no other process can have its number."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def collect(self) -> int:
        """The exit code; negative after a signal."""
        self.kill()
        code = self.process.wait()
        self.hear()
        os.close(self.pipe)
        return code


def _environment(number: int, order: dict[str, Any], writer: int) -> dict[str, str]:
    environment = {**os.environ, **order["environment"]}
    if order["world"] == order["ranks"]:  # they listen to this host alone
        environment = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", **environment}
    else:
        choose_interface(environment, order["address"])
    environment |= {
        "RANK": number, "LOCAL_RANK": number - order["first_rank"], "WORLD_SIZE": order["world"],
        "LOCAL_SIZE": order["ranks"], "LOCAL_WORLD_SIZE": order["ranks"],
        "MASTER_ADDR": order["address"], "MASTER_PORT": order["port"], FD: writer,
    }  # fmt: skip
    return {name: str(value) for name, value in environment.items()}


class Agent:
    """Takes orders until there are none, and reports."""

    def __init__(self, output: int) -> None:
        self._output = output
        self._ranks: dict[int, Rank] = {}
        self._port: socket.socket | None = None
        self._orders, self._reports = b"", b""
        self._until_s = self._within_s = float("inf")
        self._poll = selectors.DefaultSelector()
        self._poll.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        os.set_blocking(sys.stdout.fileno(), False)
        self._woken, self._wakes = socket.socketpair()  # a rank that ends is a signal, and that is what can be read
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        self._poll.register(self._woken, selectors.EVENT_READ, None)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)

    def run(self) -> int:
        """Returns when the coordinator has gone."""
        self._report({"is": "up", "host": socket.gethostname(), "process": os.getpid(), "address": connected_address()})
        try:
            is_told = self._serve()
        finally:
            for rank in self._ranks.values():
                rank.kill()
            for rank in self._ranks.values():
                rank.collect()
        # What we print goes where the ranks print, and when nobody reads that it holds us up.
        if not is_told and select.select([], [sys.stderr], [], 0)[1]:
            print("blsp: the coordinator is silent; the ranks of this host are ended", file=sys.stderr)
        return 0 if is_told else 1

    def _serve(self) -> bool:
        """Whether the coordinator has said that it goes; else it was not heard while there were ranks."""
        next_s = time.monotonic()
        while not self._ranks or time.monotonic() < self._until_s:
            for key, _ in self._poll.select(max(0.0, next_s - time.monotonic())):
                if key.fileobj is self._woken:
                    self._woken.recv(1 << 10)
                elif key.data is not None:
                    self._listen(key.data)
                elif not self._take_orders():
                    return True
            self._collect()  # whatever woke us: the signal may have come before, or be blocked
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + _SIGN_OF_LIFE_S
                self._say_alive()
        return False

    def _take_orders(self) -> bool:
        piece = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self._orders = (self._orders + piece).split(b"\n")
        for line in lines:
            order = json.loads(line)
            getattr(self, f"_do_{order['do']}")(order)
            self._until_s = time.monotonic() + self._within_s
        return piece != b""

    def _do_ping(self, order: dict[str, Any]) -> None:
        self._within_s = float("inf") if order["within_s"] is None else order["within_s"]

    def _do_port(self, order: dict[str, Any]) -> None:
        if self._port is not None:
            self._port.close()
        address = order["address"] or meeting_address(order["towards"])
        self._port = reserve_port(address)
        self._report({"is": "port", "address": address, "port": self._port.getsockname()[1]})

    def _do_start(self, order: dict[str, Any]) -> None:
        for number in range(order["first_rank"], order["first_rank"] + order["ranks"]):
            try:
                rank = Rank(number, order, self._output)
            except OSError as error:
                self._refuse(number, error)
                continue
            self._ranks[number] = rank
            self._poll.register(rank.pipe, selectors.EVENT_READ, rank)

    def _refuse(self, number: int, error: OSError) -> None:
        """The rank could not be started: no such folder or program here, or no room for one more process."""
        what = f"{(error.strerror or str(error)).lower()} on {socket.gethostname()}"
        if error.filename is None:
            code, sentence = ExitCode.REFUSED, f"no process can be started: {what}"
        else:
            code = ExitCode.WRONG_INPUT
            sentence = f"{error.filename}: {what}; every host needs the same files at the same paths"
        told = {"exception": type(error).__name__, "message": str(error), "consequence": False, "code": code}
        beat = {"phase": "starting", "step": 0}
        self._report({"is": "failure", "rank": number, **told, "sentence": sentence, "beat": beat})
        self._report({"is": "ended", "rank": number, "code": code, "beat": beat})

    def _do_signal(self, order: dict[str, Any]) -> None:
        for rank in self._ranks.values():
            rank.signal(order["number"])

    def _do_end(self, order: dict[str, Any]) -> None:
        for rank in self._ranks.values():
            rank.kill()

    def _listen(self, rank: Rank) -> None:
        began = rank.beat["step"] > 0
        self._hear(rank)
        if not began and rank.beat["step"] > 0:
            self._say_alive()  # from now on there is something to save

    def _collect(self) -> None:
        for rank in [rank for rank in self._ranks.values() if rank.has_ended]:
            self._poll.unregister(rank.pipe)
            del self._ranks[rank.number]
            code = rank.collect()
            self._report_failure(rank)
            self._say_alive()  # how far the others are
            self._report({"is": "ended", "rank": rank.number, "code": code, "beat": rank.beat})

    def _hear(self, rank: Rank) -> None:
        rank.hear()
        self._report_failure(rank)

    def _report_failure(self, rank: Rank) -> None:
        if rank.failure is not None:
            self._report({"is": "failure", "rank": rank.number, **rank.failure, "beat": rank.beat})
            rank.failure = None

    def _say_alive(self) -> None:
        for rank in self._ranks.values():
            self._hear(rank)
        now_s = time.monotonic()
        ranks = {r.number: {**r.beat, "age_s": round(now_s - r.heard_s, 3)} for r in self._ranks.values()}
        if self._reports == b"":  # else the coordinator does not read: no more of what is old by then
            self._report({"is": "alive", "ranks": ranks})
        self._report_rest()

    def _report(self, report: dict[str, Any]) -> None:
        self._reports += json.dumps(report).encode() + b"\n"
        self._report_rest()

    def _report_rest(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # stdin says when the coordinator has gone
            while self._reports:
                self._reports = self._reports[os.write(sys.stdout.fileno(), self._reports) :]


def main() -> int:
    """Serves until the coordinator has gone."""
    parser = argparse.ArgumentParser(prog="cluster.agent", description="Starts and watches the ranks of one host.")
    parser.add_argument("--output", type=int, default=2, help="descriptor of the ranks' stdout")
    # What is meant for the ranks comes as an order; whoever signals all processes of a job reaches the ranks as well.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    return Agent(parser.parse_args().output).run()


if __name__ == "__main__":
    sys.exit(main())
