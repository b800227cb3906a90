from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ray_session import _remove_dead_sessions, ray_session


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_there_is_no_dashboard_and_the_token_is_ours_alone() -> None:
    import ray

    assert ray._private.worker.global_worker.node.webui_url == ""
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert Path(ray._private.worker.global_worker.node.get_session_dir_path()).is_relative_to(token.parent)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_nobody_gets_in_with_another_token() -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    assert address.startswith("127.")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = f"from ray._raylet import GcsClient; GcsClient({address!r}).internal_kv_keys(b'', None); print('inside')"
    for token, answer in ((Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text(), "inside\n"), ("0" * 64, "")):
        stranger = {**env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        done = subprocess.run([sys.executable, "-c", code], env=stranger, capture_output=True, text=True, timeout=120)
        assert done.stdout == answer


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_session_inside_a_session_is_the_same_one() -> None:
    import ray

    with ray_session():
        pass
    assert ray.is_initialized()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_running_cluster_is_joined_and_left_running() -> None:
    import ray

    code = (
        "import sys, cluster.ray_session as s\n"
        "with s.ray_session(sys.argv[1]):\n"
        "    import ray; print(int(ray.cluster_resources()['CPU']))\n"
    )
    command = [sys.executable, "-c", code, ray.get_runtime_context().gcs_address]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "4\n"
    assert ray.cluster_resources()["CPU"] == 4


def test_a_token_that_others_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=r"others can read Ray's token.*chmod 600"), ray_session("10.0.0.1:6379"):
        pass


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", r"no Ray cluster at 127\.0\.0\.1:1 \(.*refused"),
        ("auto", "is not HOST:PORT"),
        ("a:b", "HOST:PORT"),
    ],
)
def test_an_address_where_nobody_answers_is_a_sentence_at_once(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=sentence), ray_session(address):
        pass


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_stays(tmp_path: Path) -> None:
    for name in ("ray-dead", "ray-alive", "ray-young"):
        (tmp_path / name / "s").mkdir(parents=True)
        lock = tmp_path / name / "lock"
        lock.touch()
        if name != "ray-young":
            os.utime(lock, (0, 0))
    (tmp_path / "ray-other").mkdir()  # without a lock: not ours
    with (tmp_path / "ray-alive" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _remove_dead_sessions(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ray-alive", "ray-young", "ray-other"}
