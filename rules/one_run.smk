# One run in this folder at a time, stopped by SIGINT, SIGTERM and SIGHUP alike.
import fcntl
import os
import signal

import psutil
from snakemake.persistence import FileBackupMixin
from snakemake.scheduling.job_scheduler import JobScheduler

from experiments.stop import ENDS_WITH, STOPS

# Snakemake's own lock is a file that a killed run leaves behind (the profile turns it off); this
# one the kernel frees, however a run ends.
RUN_LOCK = ".snakemake/run.lock"
# Seconds that jobs have to clean up.
JOBS_END_S = 20
# What ends the jobs that are no processes of this host.
WHEN_STOPPED = []


def lock_run():
    if not workflow.is_main_process:
        return
    # The descriptor stays open for as long as this process lives.
    lock = os.open(RUN_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(lock, 20).decode()
        raise WorkflowError(
            f"another run works in this folder (process {other}): wait until it ends, or end it"
        )
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def stop_run(number, frame=None):
    """End the jobs, then this process: nothing of Snakemake's is waited for."""
    for one in STOPS:
        signal.signal(one, signal.SIG_IGN)
    jobs = set()
    for kill in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        # Listed each time: one may just have started. Of what has lost its parent the last list knows.
        jobs |= {*psutil.Process().children(recursive=True)}
        for job in jobs:
            try:
                kill(job)
            except psutil.NoSuchProcess:
                pass
        jobs = {*psutil.wait_procs(jobs, JOBS_END_S)[1]}
    for call in WHEN_STOPPED:
        try:
            call()
        except Exception as error:  # Whatever it was, this process ends.
            os.write(2, f"\n{error}: jobs on the cluster may go on\n".encode())
    name = signal.Signals(number).name
    text = f"\nstopped by {name}: what is done is kept, and the same command goes on\n"
    try:
        os.write(2, text.encode())
    except OSError:
        # A terminal that was closed.
        pass
    os._exit(128 + number)


def keep_output(self, path):
    """In place of Snakemake's copies: what a job of `update` leaves is as it should be."""
    return Path(path).exists()


# It would put back the record of before a job that failed, over one that another run made.
FileBackupMixin.backup_output = FileBackupMixin.restore_output = keep_output
for number in STOPS:
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, stop_run)
# Of Snakemake 9.27: its handler of SIGTERM takes a lock that its main thread may hold, and then
# waits for good.
JobScheduler.exit_gracefully = staticmethod(stop_run)
if workflow.is_main_process:
    # A case that is being measured ends with this process, even where that is killed.
    os.environ[ENDS_WITH] = str(os.getpid())
