"""Several machines, as process groups or network namespaces on this one: torchrun, Detectron2's launcher, SLURM's
script and submitit."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from training import CONFIG, options, write_data

from soma_det.engine import distributed

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--nnodes", "2"]
TOOL = str(ROOT / "tools" / "train_net.py")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, Detectron2's launcher is for GPUs")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def start(tmp_path):
    """start(command, name) starts a machine's launcher; all that are left are ended after the test."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = []

    def start(command, name="machine", **options):
        with open(tmp_path / f"{name}.log", "w") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, **options))
        return started[-1]

    yield start
    for machine in started:
        for process in [machine, *workers(machine)] if machine.poll() is None else []:
            process.kill()


def workers(machine):
    """The processes that a launcher has started."""
    return psutil.Process(machine.pid).children(recursive=True)


def port():
    """A free one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def words(data, output, *flags, **changes):
    return ["--config-file", CONFIG, *flags, *map(str, options(data, output, **changes))]


def two_nodes(start, *command, **popen):
    """The same command by torchrun as on two machines."""
    where = ["--master-addr", "127.0.0.1", "--master-port", port()]
    return [start([*TORCHRUN, "--node-rank", str(i), *where, *command], f"node{i}", **popen) for i in range(2)]


def train_without_end(start, data, output):
    """Two machines that train and have written two checkpoints."""
    changes = dict(SOLVER__MAX_ITER=10_000, SOLVER__CHECKPOINT_PERIOD=2, DATASETS__TEST=[], DATASETS__SOURCE_TEST="")
    machines = two_nodes(start, TOOL, *words(data, output, **changes))
    wait_for("model_0000003.pth", output)
    return machines


def end_of(machines, seconds, tmp_path):
    """The exit statuses; raises if one has not ended in time."""
    deadline = time.monotonic() + seconds
    try:
        return [machine.wait(max(0, deadline - time.monotonic())) for machine in machines]
    except subprocess.TimeoutExpired:
        pytest.fail("".join(log.read_text()[-3000:] for log in tmp_path.glob("*.log")))


def wait_for(pattern, folder, seconds=200):
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, "".join(log.read_text()[-3000:] for log in folder.parent.glob("*.log"))
        time.sleep(0.2)


@pytest.mark.parametrize("missing", [None, "RANK", "LOCAL_WORLD_SIZE"])
def test_a_launcher_is_known_by_the_variables_that_it_sets(monkeypatch, missing):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False) if name == missing else monkeypatch.setenv(name, "1")
    assert distributed.started_by_launcher() == (missing is None)


@pytest.mark.slow
def test_two_machines_train_by_torchrun_stop_on_sigusr1_and_go_on(data, tmp_path, start):
    output = tmp_path / "output"
    machines = train_without_end(start, data, output)
    for worker in [worker for machine in machines for worker in workers(machine)]:
        worker.send_signal(signal.SIGUSR1)
    assert all(end_of(machines, 60, tmp_path))
    last = (output / "last_checkpoint").read_text()
    iteration = int(re.fullmatch(r"model_(\d+)\.pth", last)[1])
    assert f"Interrupted after {iteration + 1} iterations" in (output / "log.txt").read_text()
    more = dict(SOLVER__MAX_ITER=iteration + 4, SOLVER__CHECKPOINT_PERIOD=2)
    assert end_of(two_nodes(start, TOOL, *words(data, output, "--resume", **more)), 200, tmp_path) == [0, 0]
    log = (output / "log.txt").read_text()
    assert "World size: 2" in log and f"Starting training from iteration {iteration + 1}" in log
    assert (output / "results.json").exists()


@pytest.mark.slow
def test_a_process_that_dies_ends_those_of_the_other_machine_within_a_minute(data, tmp_path, start):
    output = tmp_path / "output"
    machines = train_without_end(start, data, output)
    left = workers(machines[0])
    workers(machines[1])[0].kill()
    assert all(end_of(machines, 60, tmp_path))
    assert not any(process.is_running() for process in left)


@pytest.mark.slow
def test_a_launcher_that_may_restart_ends_with_the_bits_of_a_run_whose_process_did_not_die(data, tmp_path, start):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    changes = dict(SOLVER__MAX_ITER=40, SOLVER__STEPS=[30], SOLVER__CHECKPOINT_PERIOD=2)
    outputs = tmp_path / "whole", tmp_path / "restarted"
    whole = start([*command, TOOL, *words(data, outputs[0], **changes)], "whole")
    assert end_of([whole], 300, tmp_path) == [0]
    machine = start([*command, "--max-restarts", "1", TOOL, *words(data, outputs[1], "--resume", **changes)])
    wait_for("model_0000003.pth", outputs[1])
    next(worker for worker in workers(machine) if TOOL in worker.cmdline()).kill()
    assert end_of([machine], 300, tmp_path) == [0]
    first, second = (torch.load(output / "model_final.pth", weights_only=True)["model"] for output in outputs)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    log = (outputs[1] / "log.txt").read_text()
    assert "Loading scheduler from state_dict" in log and "World size: 2" in log


@pytest.mark.slow
def test_processes_share_an_evaluation_and_get_the_scores_of_one_also_with_fewer_images_than_processes(
    data, tmp_path, start
):
    changes = dict(SOLVER__MAX_ITER=2, SOLVER__STEPS=[1])
    assert end_of([start([sys.executable, TOOL, *words(data, tmp_path / "run", **changes)])], 200, tmp_path) == [0]
    results = []
    for processes in (1, 2, 4):  # each split has 3 images
        output = tmp_path / f"of_{processes}"
        flags = words(data, output, "--eval-only", MODEL__WEIGHTS=tmp_path / "run" / "model_final.pth")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        assert end_of([start([*command, TOOL, *flags])], 300, tmp_path) == [0]
        results.append(json.loads((output / "results.json").read_text())["results"])
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
@no_gpu
def test_two_machines_train_by_detectron2s_launcher(data, tmp_path, start):
    address = ["--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{port()}"]
    command = [sys.executable, TOOL, *words(data, tmp_path / "output", SOLVER__MAX_ITER=2, SOLVER__STEPS=[1])]
    command[4:4] = address
    machines = [start([*command[:4], "--machine-rank", str(i), *command[4:]], f"node{i}") for i in range(2)]
    assert end_of(machines, 200, tmp_path) == [0, 0]
    assert "World size: 2" in (tmp_path / "output" / "log.txt").read_text()


ADDRESSES = ("10.0.0.1", "10.0.0.2")  # inside the namespaces alone


def inside(holder):
    """The beginning of a command that runs in the namespaces of a process."""
    return ["nsenter", f"--target={holder.pid}", "--user", "--net", "--preserve-credentials"]


@pytest.fixture
def networks():
    """Processes that hold two network namespaces, with no way to each other but a cable between their eth0."""
    holders = []
    try:
        if not shutil.which("ip"):
            pytest.skip("needs iproute2")
        for beginning in (["unshare", "--map-root-user", "--net"], ["unshare", "--net"]):
            command = [*(inside(holders[0]) if holders else []), *beginning, "sh", "-c", "echo ready; exec sleep 600"]
            holders.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
            if holders[-1].stdout.readline() != b"ready\n":
                pytest.skip("needs permission to make network namespaces")
        cable = f"link add eth0 type veth peer name eth0 netns {holders[1].pid}"
        subprocess.run([*inside(holders[0]), "ip", *cable.split()], check=True)
        for holder, address in zip(holders, ADDRESSES):
            for change in ("link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up"):
                subprocess.run([*inside(holder), "ip", *change.split()], check=True)
        yield holders
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def received(holder):
    """Bytes that came over the cable."""
    lines = Path(f"/proc/{holder.pid}/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("eth0:"))


@pytest.mark.slow
def test_two_machines_with_networks_of_their_own_train_over_the_cable_between_them(data, tmp_path, start, networks):
    output = tmp_path / "output"
    where = ["env", "GLOO_SOCKET_IFNAME=eth0", *TORCHRUN, "--master-addr", ADDRESSES[0], "--master-port", "29500"]
    training = [TOOL, *words(data, output, SOLVER__MAX_ITER=4, SOLVER__STEPS=[3])]
    machines = [
        start([*inside(holder), *where, "--node-rank", str(i), *training], f"node{i}")
        for i, holder in enumerate(networks)
    ]
    assert end_of(machines, 300, tmp_path) == [0, 0]
    assert "World size: 2" in (output / "log.txt").read_text() and (output / "results.json").exists()
    assert min(map(received, networks)) > 4 * 2**17  # four iterations with 162 kB of gradients each


STAND_INS = {  # of SLURM's commands and torchrun, which writes down what happens to it
    "srun": 'exec "$@"',
    "scancel": '[ "$*" = "--signal=USR1 7" ] && kill -USR1 $(cat started)',
    "scontrol": 'if [ "$1" = show ]; then printf "node0\\nnode1\\n"; else echo "$*" >> queued; fi',
    "torchrun": f"""exec {sys.executable} -c '
import os, signal, sys, time
assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
signal.signal(signal.SIGUSR1, lambda *_: (open("saved", "w").close(), sys.exit(1)))
open("words", "w").write(" ".join(sys.argv))
open("new", "w").write(str(os.getpid()))
os.rename("new", "started")
time.sleep(0 if os.path.exists("fail") else 60); sys.exit(3)' "$@" """,
}


@pytest.fixture
def batch(tmp_path, start):
    """SLURM's script of the guide, running beside stand-ins for SLURM."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(re.search(r"```bash\n(.*?)```", GUIDE, re.S)[1])
    slurm = ["SLURM_JOB_ID=7", "SLURM_NNODES=2", "SLURM_NODEID=1", "SLURM_JOB_NODELIST=node[0-1]"]
    return lambda: start(["env", f"PATH={folder}:{os.environ['PATH']}", *slurm, "bash", "job.sh"], cwd=tmp_path)


def test_slurms_script_lets_training_save_and_queues_the_job_again(batch, tmp_path):
    job = batch()
    wait_for("started", tmp_path, 30)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0 and (tmp_path / "saved").exists()
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
    given = (tmp_path / "words").read_text()
    assert "--nnodes 2 --node-rank 1" in given and "--master-addr node0" in given and "--resume" in given


def test_slurms_script_does_not_queue_a_job_that_failed(batch, tmp_path):
    (tmp_path / "fail").touch()
    assert batch().wait(30) == 3
    assert not (tmp_path / "queued").exists()


@pytest.mark.slow
def test_submitits_launcher_trains_in_two_processes(data, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = {"__name__": "__main__"}
    exec(re.search(r"```python\n(.*?)```", GUIDE, re.S)[1], launcher)
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    output = tmp_path / "output"
    job = launcher["submit"](executor, *words(data, output, "--resume", SOLVER__MAX_ITER=2, SOLVER__STEPS=[1]))
    assert len(job.results()) == 2, job.stderr()
    assert "World size: 2" in (output / "log.txt").read_text() and (output / "results.json").exists()
