"""A command on another host through ssh, and the environment that goes there with it.

ssh hands the words of a command to the user's shell over there as one line, so they are quoted for it; the environment
never stands on a command line, where everybody on both hosts could read it, but goes through the command's stdin.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

CONNECT_TIMEOUT_S = 10
_ALIVE_INTERVAL_S, _ALIVE_COUNT = 5, 3  # a connection on which nothing comes back for so long is given up

# What stands in ~/.ssh/config counts (user, port, key, jump host), but for what is of a terminal.
_OPTIONS = {
    "BatchMode": "yes",  # a question would be asked in vain
    "ConnectTimeout": CONNECT_TIMEOUT_S,
    "ServerAliveInterval": _ALIVE_INTERVAL_S,
    "ServerAliveCountMax": _ALIVE_COUNT,
    "ClearAllForwardings": "yes",  # somebody's port for TensorBoard is in use the second time
    "ControlPath": "none",  # no connection shared with other sessions, which may end it
    "RemoteCommand": "none",
    "RequestTTY": "no",
}
# What says who is logged in, where and how, and is another on the other host.
_OF_A_SESSION = re.compile(
    r"SSH_.*|XDG_.*|DBUS_.*|DISPLAY|XAUTHORITY|WAYLAND_DISPLAY|TERM|TERMINAL|TERM_.*|COLUMNS|LINES|TMUX.*|STY|WINDOWID"
    r"|HOME|USER|LOGNAME|SHELL|MAIL|HOSTNAME|HOST|PWD|OLDPWD|SHLVL|_|BASH_FUNC_.*"
)


def over_ssh(host: str, command: Sequence[str], folder: Path) -> list[str]:
    """The argument list that runs `command` in `folder` on `host`, whatever characters are in its words.

    The command's exit code is that of ssh, or 255 where ssh itself failed.
    """
    assert not host.startswith("-"), host  # the hostfile's reader has refused it
    options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", *options, "--", host, f"cd {shlex.quote(str(folder))} && exec {shlex.join(command)}"]


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that is as true on another host: all but what is of the login session."""
    return {name: value for name, value in environment.items() if not _OF_A_SESSION.fullmatch(name)}
