"""The jobs to copy: what they say is what schedulers, torchrun and this command line understand, and a pre-empted one is started again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser
from typer.core import TyperGroup

from charrnn.cli import application
from charrnn.config import build_config
from charrnn.exits import Exit

ROOT = Path(__file__).parent.parent
SLURM = ROOT / "scripts/slurm.sbatch"
JOB = ROOT / "scripts/kubernetes-job.yaml"

# Of sbatch(1), Slurm 24.05, those that take a value, and those that take none.
VALUED = (
    "account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container container-id core-spec "
    "cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution error exclude export export-file "
    "extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint input job-name "
    "licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice nodefile nodelist nodes ntasks "
    "ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile "
    "propagate qos reservation signal sockets-per-node switches thread-spec threads-per-core time time-min tmp tres-bind tres-per-task "
    "uid wait-all-nodes wckey wrap"
)
PLAIN = (
    "contiguous exclusive get-user-env hold ignore-pbs kill-on-invalid-dep no-kill no-requeue overcommit oversubscribe parsable "
    "quiet reboot requeue spread-job test-only use-min-nodes verbose wait"
)


def parses(words: list[str]) -> dict[str, Any]:
    """The options of `charrnn COMMAND …`. Raises where one does not exist, or has no such value."""
    group = typer.main.get_command(application())
    assert isinstance(group, TyperGroup)
    return group.commands[words[0]].make_context(words[0], words[1:]).params


def test_the_directives_for_slurm_are_real_and_at_the_top() -> None:
    lines = SLURM.read_text(encoding="utf-8").splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {number: line for number, line in enumerate(lines) if line.startswith("#SBATCH")}
    assert directives and max(directives) < first_command  # sbatch reads no further
    found = {}
    for line in directives.values():
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert match, line
        name, value = match.groups()
        assert name in (VALUED if value else PLAIN).split(), line
        found[name] = value
    assert re.fullmatch(r"(B:|R:)*(USR1|TERM)@\d+", found["signal"]) and "requeue" in found
    assert re.fullmatch(r"(\d+-)?\d+(:\d\d){1,2}", found["time"])


def test_the_script_for_slurm_is_a_script() -> None:
    assert subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True, check=False).stderr == ""
    if checker := shutil.which("shellcheck"):
        assert subprocess.run([checker, str(SLURM)], capture_output=True, text=True, check=False).stdout == ""


def test_torchrun_and_charrnn_know_the_options_of_the_job() -> None:
    text = SLURM.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^srun torchrun (.*)$", text, flags=re.MULTILINE)
    line = re.sub(r"\$\(\(.*?\)\)", "20001", line).replace("${nodes%%$'\\n'*}", "node1").replace("$SLURM_JOB_NUM_NODES", "2")
    parsed = get_args_parser().parse_args(shlex.split(line))
    assert parsed.module and parsed.training_script == "charrnn" and parsed.nnodes == "2"
    handled = parsed.signals_to_handle.split(",")
    assert {"SIGUSR1", "SIGTERM"} <= set(handled) and all(hasattr(signal, name) for name in handled)
    found = parses(parsed.training_script_args)
    assert found["resume"] and not found["overwrite"]
    others = re.findall(r"\$\((charrnn [^|)]*)", text)
    assert others and all(parses(shlex.split(other)[1:]) for other in others)


SRUN = '#!/usr/bin/env bash\nexec "$@"\n'
SCONTROL = '#!/usr/bin/env bash\nif [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> "$SAID"; fi\n'
# As the real one, it answers 1 whatever its process answers.
TORCHRUN = '#!/usr/bin/env bash\nwhile [ "$1" != -m ]; do shift; done\n"$PYTHON" "$@" || exit 1\n'
CHARRNN = '#!/usr/bin/env bash\nexec "$PYTHON" -m charrnn "$@"\n'


@pytest.mark.timeout(600)
def test_a_job_that_is_told_to_go_is_requeued_and_one_that_is_wrong_is_not(tmp_path: Path) -> None:
    for name, script in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": TORCHRUN, "charrnn": CHARRNN}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 50)
    settings: dict[str, Any] = {
        "run": str(tmp_path / "run"),
        "device": "cpu",
        "data": {"path": str(tmp_path / "text.txt"), "cache": str(tmp_path / "cache")},
        "model": {"embedding_size": 4, "hidden_size": 8},
        "train": {"max_steps": 100_000, "batch_size": 2, "tbptt_window": 8, "threads": 1},
    }
    config = tmp_path / "config.yaml"
    config.write_text(build_config(settings, "test").to_yaml())
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"), "PYTHON": sys.executable}
    job: dict[str, Any] = {
        "cwd": ROOT,
        "env": os.environ | slurm | paths,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    heartbeat = tmp_path / "run/heartbeat.json"
    with subprocess.Popen([str(SLURM), str(config)], **job) as process:
        while not heartbeat.exists() and process.poll() is None:
            time.sleep(0.05)
        os.kill(json.loads(heartbeat.read_text())["pid"], signal.SIGUSR1)
        out, err = process.communicate()
    assert process.returncode == 1 and "Terminated and saved at step" in out and err == ""
    assert (tmp_path / "said").read_text() == "requeue 7\n"
    # Now the text is gone, and what was said of the run before is no reason to start it again and again.
    (tmp_path / "text.txt").unlink()
    assert subprocess.run([str(SLURM), str(config)], check=False, **job).returncode == 1
    assert (tmp_path / "said").read_text() == "requeue 7\n"


# The fields of batch/v1 Job that the example uses, and what is below each: a type, fields, or fields in a list.
FIELDS: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "completions": int,
        "backoffLimit": int,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": str,
                    "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
                    "onPodConditions": [{"type": str, "status": str}],
                }
            ]
        },
        "template": {
            "spec": {
                "restartPolicy": str,
                "terminationGracePeriodSeconds": int,
                "containers": [
                    {
                        "name": str,
                        "image": str,
                        "command": [str],
                        "resources": {"limits": {"nvidia.com/gpu": int, "memory": str}},
                        "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
                    }
                ],
                "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}, "configMap": {"name": str}}],
            }
        },
    },
}


def check(found: Any, fields: Any, place: str) -> None:
    if isinstance(fields, dict):
        assert isinstance(found, dict) and found, place
        for name, value in found.items():
            assert name in fields, f"{place}.{name}"
            check(value, fields[name], f"{place}.{name}")
    elif isinstance(fields, list):
        assert isinstance(found, list) and found, place
        for number, value in enumerate(found):
            check(value, fields[0], f"{place}[{number}]")
    else:
        assert type(found) is fields, f"{place}: {found!r}"


def test_the_job_for_kubernetes_is_one_and_knows_the_exit_codes() -> None:
    job = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    check(job, FIELDS, "job")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # or podFailurePolicy is refused
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    program, *arguments = container["command"]
    assert program == "charrnn" and parses(arguments)["resume"]
    actions: dict[int, str] = {}
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("FailJob", "Ignore", "Count", "FailIndex") and len(rule) == 2
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == container["name"] and codes["operator"] == "In"
            actions |= {code: rule["action"] for code in codes["values"]}
    assert actions == {Exit.MISTAKE: "FailJob", Exit.REQUEUE: "Ignore"}


def test_the_readme_tells_the_exit_codes_there_are() -> None:
    told = (ROOT / "README.md").read_text(encoding="utf-8").partition("| exit code |")[2].partition("\n\n")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", told, flags=re.MULTILINE)] == list(Exit)
    from charrnn.exits import TOLD

    assert all(re.search(rf"\b{int(code)} ", TOLD) for code in Exit)


@pytest.mark.parametrize("path", [SLURM, JOB], ids=["slurm", "kubernetes"])
def test_they_say_how_they_are_started(path: Path) -> None:
    assert f"scripts/{path.name}" in path.read_text(encoding="utf-8")
