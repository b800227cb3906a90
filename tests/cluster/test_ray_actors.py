from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from cluster.ray_actors import number_that_fits


def test_a_cluster_that_has_lost_gpus_goes_on_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert number_that_fits("llm_actors", 16, 8, "GPUs", hosts_may_go=True) == 8
    assert "llm_actors = 16, but the hosts that are there have 8 GPUs" in capsys.readouterr().err
    assert number_that_fits("llm_actors", 16, 16, "GPUs", hosts_may_go=True) == 16
    assert capsys.readouterr().err == ""


def test_more_actors_than_gpus_of_a_cluster_that_stays_are_refused() -> None:
    with pytest.raises(ValueError, match="llm_actors = 16, but Ray sees 8 GPUs; lower llm_actors to 8"):
        number_that_fits("llm_actors", 16, 8, "GPUs", hosts_may_go=False)


# Each host has two cores and an actor on each. First one of them raises; then, of others, those of the second host are
# gone after ten of forty pieces.
CODE = """
import os, secrets, signal, sys, time
import psutil
from cluster.ports import free_port
from cluster.ray_actors import Words, ray_actors
from cluster.ray_node import ray_node
from cluster.ray_session import ray_session, wait_for_nodes

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
host, port = "127.0.0.2", free_port()
address = f"{host}:{port}"

class Slow:
    def double(self, number):
        if number is None:
            raise ValueError("no number")
        time.sleep(0.2)
        return 2 * number

def start(actors):
    number = actors.fitting("actors", 4, actors.num_cpus, "cores")
    return actors.start(Slow, number=number, num_cpus=1), lambda actor, number: actor.double.remote(number)

with ray_node(host, port, is_head=True), ray_node(host, port, is_head=False) as second, ray_session(address):
    wait_for_nodes(2)
    began_s = time.monotonic()
    try:
        with ray_actors(address, Words("piece", "it", "go on"), start) as actors:
            list(actors.work([1, None]))
    except ValueError as error:
        print(f"{error} after {time.monotonic() - began_s:.0f} s")
    done = []
    with ray_actors(address, Words("piece", "it", "go on"), start) as actors:
        for result in actors.work(range(40)):
            done += [] if result is None else [result]
            if len(done) == 10:
                for process in psutil.Process(second.pid).children(recursive=True):
                    process.kill()
    print(done)
"""


@pytest.mark.slow
def test_an_error_ends_the_work_at_once_and_a_lost_host_costs_its_pieces_which_the_others_do() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    raised = re.search(r"^no number after (\d+) s$", done.stdout, re.MULTILINE)
    assert raised is not None and int(raised[1]) < 50, f"an actor's own error is no loss of a host: {done.stdout}"
    assert sorted(ast.literal_eval(done.stdout.splitlines()[-1])) == list(range(0, 80, 2))
    assert "a host of the Ray cluster is lost; going on with the others" in done.stderr
    assert "actors = 4, but the hosts that are there have 2 cores" in done.stderr
