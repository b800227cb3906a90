"""SLURM: a batch script that a person can read, its submission, and the hosts of the allocation it runs in.

Only what 22.05 and newer releases both know is used. No value can become a command: words of the shell are quoted by
shlex, and those of sbatch's own lines by the rules of its parser, which are others.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.exit_codes import ExitCode

# SLURM looks at the clocks of its jobs twice a minute, and may tell one that much before it was asked to.
EARLY_S = 60
# For so long its controller may be away before we do without its answer.
CONTROLLER_AWAY_S = 300


@dataclass(frozen=True)
class Job:
    """What a batch script is made of. `options` are sbatch's own, by their long names; None for one without a value."""

    name: str
    command: Sequence[str]  # runs on the first host; SIGTERM lets it save and end
    goes_on: Sequence[int]  # its exit codes when it was stopped and the same command goes on
    written_by: str
    work_folder: Path
    log: str  # where both streams go, %j is the number of the job
    warning_s: int  # it is told to stop so long before the walltime
    options: Mapping[str, str | None]
    modules: Sequence[str] = ()
    checkpoints: Path | None = None  # a folder; the last name in it says how far the job is. None: nothing says


_SCRIPT = """\
#!/bin/bash{login}
# Written by: {written_by}
{directives}

# Told to stop (USR1: the walltime comes near, or another job goes first), the command saves and ends.
child='' told=''
stop() {{
  if [ ! "$child" ]; then told=early; return; fi
  trap '' USR1 TERM
  told=yes
  echo "SLURM asks to stop" >&2
  kill -TERM "$child"
}}
trap stop USR1 TERM

{modules}{command} &
child=$!
if [ "$told" = early ]; then stop; fi
wait "$child"; code=$?
if [ "$told" ]; then wait "$child"; code=$?; fi

# SLURM's controller may be away for a moment, as when it is restarted: it is asked again for {patience_s} s.
persistently() {{
  local until=$((SECONDS + {patience_s}))
  until "$@" || ((SECONDS >= until)); do sleep 2; done
}}

# Stopped, not finished: once more, unless somebody has cancelled the job.
if [[ $code =~ ^({goes_on})$ ]]; then
  state=$(persistently squeue -h -o %T -j "$SLURM_JOB_ID")
  if [[ $state =~ ^(RUNNING|SIGNALING)$ ]]; then
{counted}    persistently scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
"""


_COUNTED = """\
    # But not for ever: when 3 restarts in a row have brought no newer checkpoint, another would not.
    echo "newest: $(ls -v {checkpoints} 2> /dev/null | tail -n 1)" >> {tries}
    if tail -n 4 {tries} | uniq -c | grep -q "^ *4 "; then
      echo "3 restarts in a row brought no newer checkpoint; is the walltime too short?" >&2
      exit {given_up}
    fi
"""


def batch_script(job: Job) -> str:
    """The script of a job. Raises ValueError for a value that sbatch cannot be told."""
    options: dict[str, str | None] = {
        "job-name": job.name,
        "chdir": str(job.work_folder),
        "output": job.log,
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR1@{job.warning_s}",
        **job.options,
    }
    lines = [f"#SBATCH --{name}" + ("" if value is None else f"={_quoted(value)}") for name, value in options.items()]
    return _SCRIPT.format(
        login=" -l" if job.modules else "",  # a login shell knows `module`
        written_by=_one_line(job.written_by),
        directives="\n".join(lines),
        modules="".join(f"module load {shlex.quote(_one_line(name))} || exit\n" for name in job.modules),
        command=shlex.join([_one_line(word) for word in job.command]),
        goes_on="|".join(map(str, job.goes_on)),
        patience_s=CONTROLLER_AWAY_S,
        counted="" if job.checkpoints is None else _counted(job.checkpoints),
    )


def _counted(checkpoints: Path) -> str:
    folder = shlex.quote(_one_line(str(checkpoints.parent / "slurm")))
    return _COUNTED.format(
        checkpoints=shlex.quote(_one_line(str(checkpoints))),
        tries=f'{folder}/"$SLURM_JOB_ID".tries',
        given_up=int(ExitCode.GIVEN_UP),
    )


def literal(path: Path) -> str:
    """A path as sbatch's `output` takes it: % begins a pattern there, and a backslash ends all patterns."""
    if "\\" in str(path):
        raise ValueError(f"{str(path)!r}: SLURM takes no backslash in the path of a log; choose another folder")
    return str(path).replace("%", "%%")


def _quoted(value: str) -> str:
    """As sbatch reads a word of an #SBATCH line: a backslash takes the next character as it is, in any quotes."""
    if re.fullmatch(r"[\w./:@%+=,-]+", _one_line(value), re.ASCII):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r}: a batch script takes no line breaks and no control characters; choose another")
    return text


def submit(script: Path) -> int:
    """Hands the script to SLURM and returns the number of the job. Raises ValueError with SLURM's reason when it takes
    no such job, OSError where there is no SLURM."""
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script.resolve())], capture_output=True, text=True)
    except FileNotFoundError:
        raise OSError("there is no `sbatch` on this host; submit from a login node of the cluster") from None
    if done.returncode != 0:
        raise ValueError(f"{script}: SLURM refused it: {_reason(done.stderr)}")
    return job_number(done.stdout)


def job_number(answer: str) -> int:
    """Of sbatch's answer with --parsable: `4711` or `4711;cluster`, perhaps below greetings of the site."""
    numbers = re.findall(r"^([0-9]+)(?:;[^\n]*)?$", answer, re.MULTILINE)
    if not numbers:
        raise OSError(f"sbatch gave no job number but {answer!r}; `squeue --me` shows whether the job is there")
    return int(numbers[-1])


def _reason(said: str) -> str:
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in said.splitlines()]
    return "; ".join(line for line in lines if line) or "it gave no reason"


def allocated_hosts(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The hosts of the job that this process runs in, in SLURM's order. Raises ValueError outside of one."""
    if not (listed := environment.get("SLURM_JOB_NODELIST")):
        raise ValueError("this is no SLURM job; start it with `blsp submit`, or inside of `salloc`")
    done = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"SLURM could not read its own list of hosts {listed!r}: {done.stderr.strip()}")
    return done.stdout.split()


def one_task_has_all(environment: MutableMapping[str, str] = os.environ) -> None:
    """What srun reads of the job's tasks is forgotten: a step of one task would have the share of one, not the host."""
    for name in ("CPUS_PER_TASK", "GPUS_PER_TASK", "NTASKS_PER_NODE", "TRES_PER_TASK"):
        environment.pop(f"SLURM_{name}", None)


def on_host(host: str, container: Path | None = None) -> list[str]:
    """What goes before a command to run it on one host of the allocation, with all that the job has there, beside
    other such commands."""
    # A step is bound to one core unless told otherwise: it has one task, however many processes that starts.
    step = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--overlap", "--cpu-bind=none", "--quiet"]
    return step if container is None else [*step, "apptainer", "exec", "--nv", str(container.absolute())]
