"""A real SLURM of one node: slurmctld and slurmd from Debian's packages, unpacked into a folder and run from there. Nothing is installed."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libhwloc15", "liblua5.1-0", "libmunge2")
PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sshare")
FOREIGN = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
CONFIGURATION = """
ClusterName=tuneleak
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=600
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=accel Nodes={host} MaxTime=INFINITE State=UP
"""


def why_not():
    """Why no cluster can be started here; an empty string if one can."""
    if os.environ.get("TUNELEAK_TEST_SLURM") != "1":
        return "a real SLURM is started only where TUNELEAK_TEST_SLURM is 1"
    if foreign := [path for path in (os.environ.get("SLURM_CONF"), *FOREIGN) if path and Path(path).exists()]:
        return f"this machine has a SLURM of its own ({foreign[0]}), which stays untouched"
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))) or platform.machine() != "x86_64":
        return "SLURM comes from Debian packages for x86-64, and apt-get is not here"
    return ""


class Node:
    """The running cluster: `.bin` goes first on PATH; `stop()` ends it."""

    def __init__(self, folder):
        self.folder, self.root, self.bin = folder, folder / "root", folder / "bin"
        for name in ("root", "bin", "state", "spool", "packages"):
            (folder / name).mkdir(parents=True)
        self.started = []
        self.environment = {}

    def unpack(self):
        """Fetch and unpack the packages. Returns what went wrong, or an empty string."""
        done = subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=self.folder / "packages", capture_output=True, text=True)
        if done.returncode and os.geteuid() == 0:  # perhaps only the lists are missing
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
            done = subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=self.folder / "packages", capture_output=True, text=True)
        if done.returncode:
            return f"apt-get cannot deliver SLURM: {done.stderr.strip()[-300:]}"
        for package in (self.folder / "packages").glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, self.root], check=True)
        return ""

    def start(self):
        """Write the configuration, start both daemons and wait until the node is idle."""
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        plugins, sbin = libraries / "slurm-wlm", self.root / "usr/sbin"
        host, cpus, memory = socket.gethostname().split(".")[0], os.cpu_count(), int(psutil.virtual_memory().total / 2**20)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        text = CONFIGURATION.format(host=host, user=user, folder=self.folder, plugins=plugins, ports=free_ports(2), cpus=cpus, memory=memory)
        configuration = self.folder / "slurm.conf"
        configuration.write_text(text)
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu Count=1\n")
        own = {"SLURM_CONF": str(configuration), "LD_LIBRARY_PATH": f"{libraries}:{plugins}"}
        for name in PROGRAMS:  # the plugin's job steps drop SLURM_CONF, so every client brings it along
            exports = " ".join(f'{key}="{value}"' for key, value in own.items())
            (self.bin / name).write_text(f'#!/bin/sh\nexport {exports}\nexec "{self.root}/usr/bin/{name}" "$@"\n')
            (self.bin / name).chmod(0o755)
        for command in ([sbin / "slurmctld-wlm", "-D"], [sbin / "slurmd-wlm", "-D", "-d", sbin / "slurmstepd-wlm"]):
            with open(self.folder / f"{command[0].name}.out", "w") as log:
                self.started.append(subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True))
        deadline = time.monotonic() + 60
        while "idle" not in self.call("sinfo", "--noheader", "--format=%t"):
            assert time.monotonic() < deadline and all(process.poll() is None for process in self.started), self.logs()
            time.sleep(0.5)
        self.call("scontrol", "update", f"nodename={host}", "gres=gpu:1")  # 22.05 does not take it from the configuration

    def call(self, program, *arguments):
        return subprocess.run([self.bin / program, *arguments], capture_output=True, text=True, timeout=60).stdout

    def jobs(self):
        """{rule: [(state, time limit, memory, GPUs, partition), one per submission]}, oldest first."""
        found = {}
        for line in self.call("scontrol", "--oneliner", "show", "job").splitlines():
            facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
            rule = facts["Comment"].split("_wildcards")[0].removeprefix("rule_")
            asked = facts["JobState"], facts["TimeLimit"], facts["MinMemoryNode"], facts.get("TresPerJob", ""), facts["Partition"]
            found.setdefault(rule, []).append(asked)
        return found

    def logs(self):
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")]))

    def stop(self):
        if self.started:
            self.call("scancel", f"--user={os.geteuid()}")
        for process in reversed(self.started):
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.send_signal(signal.SIGKILL)
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
