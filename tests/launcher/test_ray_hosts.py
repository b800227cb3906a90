"""`blsp shard` over two real hosts: the set is that of one host, whatever happens to the other; what listens."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.blsp.tiny import clip
from tests.launcher import page
from tests.testbed.hosts import CHECKOUT, SEARCHED, Bed, Host, ctrl_c

pytestmark = pytest.mark.slow
CLIPS, PER_SHARD = 40, 5


@pytest.fixture(scope="module")
def folder(two_hosts: Bed, llm_folder: Path) -> Iterator[Path]:
    """A recipe, and the set that one host has made of it, in `alone`."""
    folder = two_hosts.folder / "sharding"
    folder.mkdir()
    random = np.random.default_rng(3)
    lines = []
    for i in range(CLIPS):
        soundfile.write(folder / f"{i:02d}.wav", clip(int(random.uniform(4800, 16000)), i), 16000)
        lines.append(json.dumps({"audio": f"{i:02d}.wav", "text": f"Sentence {i}"}))
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    recipe = {
        "kind": "shard", "manifests": [str(folder / "manifest.jsonl")], "out": str(folder / "set"),
        "writer": {"llm": str(llm_folder), "prompt": "continue", "max_new_tokens": 4, "batch_size": 5},
        "clips_per_shard": PER_SHARD,
    }  # fmt: skip
    (folder / "shard_stage1.yaml").write_text(json.dumps(recipe))
    (folder / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    for words in (["manifest", "jsonl", "corpus.jsonl", "manifest.jsonl"], ["shard", "shard_stage1.yaml", "out=alone"]):
        subprocess.run([sys.executable, "-m", "launcher", *words], cwd=folder, check=True)
    yield folder
    shutil.rmtree(folder)


def start(bed: Bed, folder: Path, out: str, hostfile: str = "hostfile", **environment: str) -> subprocess.Popen[str]:
    """`blsp shard` typed on `login`, which is no host of the job."""
    arguments = ["-m", "launcher", "shard", "shard_stage1.yaml", f"out={out}", "--hostfile", hostfile]
    env = {"PATH": SEARCHED, "PYTHONPATH": str(CHECKOUT), **environment}
    return bed.login.start([sys.executable, *arguments], cwd=folder, env=env,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def tars(folder: Path) -> list[bytes]:
    """What was written, in order."""
    assert (folder / "dataset.json").exists()
    return [path.read_bytes() for path in sorted(folder.rglob("*.tar"))]


STRANGER = """
import os, sys
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("let in")
"""


def knock(bed: Bed) -> str:
    """What somebody on the first host with another token is told, as soon as there is a head to be asked."""
    until_s = time.monotonic() + 60
    while not (heads := [line for line in bed.nodes[0].processes().values() if "gcs_server" in line]):
        assert time.monotonic() < until_s
        time.sleep(0.05)
    (port,) = re.findall(r"--gcs_server_port=(\d+)", heads[0])
    # Ray goes on asking for a minute or so after it was refused.
    ask = ["timeout", "-s", "KILL", "30", sys.executable, "-c", STRANGER, f"{bed.nodes[0].address}:{port}"]
    asked = bed.nodes[0].run(ask)
    assert asked.returncode != 0 and "let in" not in asked.stdout
    return asked.stderr


def listening(host: Host) -> set[str]:
    """The addresses, without ports, on which a host's processes listen for TCP."""
    said = host.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout
    found = set()
    for line in said.splitlines():
        if words := re.match(r"\s*\d+: ([0-9A-F]+):([0-9A-F]{4}) \S+ 0A ", line):
            packed = bytes.fromhex(words[1])
            packed = b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4))
            address = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
            if int(words[2], 16) != 22:
                found.add(address.removeprefix("::ffff:"))
    return found


def test_two_hosts_write_the_set_of_one_and_only_ray_listens(bed: Bed, folder: Path) -> None:
    over_hosts, _ = page.typed("Shards on many machines")
    typed = ["bash", "-c", f". {sys.prefix}/bin/activate\n{over_hosts}"]
    job = bed.login.start(typed, cwd=folder, env={"PYTHONPATH": str(CHECKOUT)},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    heard: dict[str, set[str]] = {host.name: set() for host in bed.hosts}
    used = {host.name: 0 for host in bed.nodes}
    with ThreadPoolExecutor() as aside:  # a stranger keeps Ray busy for half a minute
        told = aside.submit(knock, bed)
        while job.poll() is None:
            for host in bed.hosts:
                heard[host.name] |= listening(host)
            for host in bed.nodes:
                lines = host.processes().values()
                used[host.name] |= any("_CpuActor" in line for line in lines)
                assert not [line for line in lines if re.search(r"\b[0-9a-f]{64}\b", line)], "a token is to be seen"
            time.sleep(0.3)
    assert job.stdout is not None
    said = job.stdout.read()
    assert job.returncode == 0, said
    assert tars(folder / "set") == tars(folder / "alone")
    assert used == {"node1": 1, "node2": 1}, "one host did nothing"
    assert "InvalidAuthToken" in told.result()
    assert heard["login"] == set()
    # Some of Ray's servers take no interface (docs/cluster.md says so); all of them ask for the token.
    assert heard["node1"] <= {"::", "127.0.0.1", bed.nodes[0].address}
    assert heard["node2"] <= {"::", "127.0.0.1", bed.nodes[1].address}
    assert bed.nodes[0].processes() == bed.nodes[1].processes() == {}


def test_a_host_that_dies_in_the_middle_is_done_without(bed: Bed, folder: Path) -> None:
    job = start(bed, folder, "lost")
    commits = folder / "lost" / "commits"
    until_s = time.monotonic() + 120
    while not commits.exists() or not list(commits.iterdir()):
        assert job.poll() is None and time.monotonic() < until_s
        time.sleep(0.02)
    bed.nodes[1].power_off()
    assert job.stdout is not None
    said = job.stdout.read()
    assert job.wait(120) == 0, said
    assert tars(folder / "lost") == tars(folder / "alone")
    assert "host node2 is lost" in said and "going on with 1 of 2 hosts" in said


def test_a_mistyped_host_is_an_error_with_its_line(bed: Bed, folder: Path) -> None:
    (folder / "mistyped").write_text("node1 slots=1\n# the second\nnod2 slots=1\n")
    job = start(bed, folder, "mistaken", hostfile="mistyped")
    assert job.stdout is not None
    said = job.stdout.read()
    assert job.wait(60) == 1, said
    assert "blsp: mistyped:3: host nod2 cannot be reached (ssh ended with exit code 255; does `ssh" in said
    assert not (folder / "mistaken").exists()
    assert bed.nodes[0].processes() == {}


def test_a_job_that_is_stopped_takes_ray_down_and_leaves_nothing(bed: Bed, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # a short path, which Ray's folders lie in
        job = start(bed, folder, "stopped", TMPDIR=temporary)
        commits = folder / "stopped" / "commits"
        until_s = time.monotonic() + 120
        while not commits.exists() or not list(commits.iterdir()):
            assert job.poll() is None and time.monotonic() < until_s
            time.sleep(0.02)
        assert len(list(Path(temporary).glob("ray-*/s/session_latest"))) == 2
        ctrl_c(job, signal.SIGTERM)
        assert job.stdout is not None
        said = job.stdout.read()
        assert job.wait(60) == 75, said
        assert re.search(r"blsp: stopped; .* shards in .* are finished and kept, the same command goes on", said)
        assert "checkpoint" not in said
        assert list(Path(temporary).glob("ray-*")) == []
