# The device that cases are measured on: of this machine, or of those that a cluster gives to jobs.
import re

from experiments import machine as machines
from experiments import schedule, slurm
from experiments.cards import DeviceError

# What jobs on a cluster ask for, beside cards and time.
ON_NODES = {}
for key, resource in (("partition", "slurm_partition"), ("gpu_model", "gpu_model")):
    if key in config:
        if not re.fullmatch(r"[\w.-]{1,200}", str(config[key]), re.ASCII):
            raise WorkflowError(f"--config {key}={config[key]}: expected a name")
        ON_NODES[resource] = str(config[key])
MACHINE = config.get("machine")
if MACHINE is not None and not re.fullmatch(r"[a-z0-9-]{1,200}", str(MACHINE)):
    raise WorkflowError(
        f"--config machine={MACHINE}: expected what `python -m experiments machine` says"
    )
DEVICE = config.get("device")
if not isinstance(DEVICE, str | None):
    raise WorkflowError(f"--config device={DEVICE}: expected a name, as cpu or cuda:0")
# Where a cluster's jobs learn which machine their run is for.
MACHINE_OF_RUN = "ATTENTION_MACHINE"
# Whether other hosts run the jobs, and whether this is one of them.
IS_SUBMITTED = workflow.is_main_process and workflow.resource_settings.nodes is not None
IS_JOB = not workflow.is_main_process
IS_CLUSTER = IS_SUBMITTED or IS_JOB
CORES_OF_JOB, MINUTES_TO_START = 4, 2
# The names of cases over ranks that run at once.
SPREAD = r".+_p\d+(_seed\d+)?"


def of_nodes():
    """The id of the machine that jobs are given, what its device is called, and its cards."""
    if IS_JOB:
        return MACHINE or os.environ[MACHINE_OF_RUN], "", 1
    if MACHINE:
        return MACHINE, "", 1
    if not slurm.is_here():
        raise WorkflowError(
            "--config machine=ID: needed where other hosts run the jobs; there "
            "`python -m experiments machine` says it"
        )
    count = slurm.cards_of_a_node(ON_NODES) if DEVICE != "cpu" else 0
    node = slurm.node(DEVICE, ON_NODES, Path(".snakemake"))
    return node["id"], node["device"], count


def cards_of(case):
    """How many cards a case over ranks holds: where there are fewer, its record says so."""
    return schedule.cards_of(case, CARDS) if DEVICE != "cpu" else 0


def cancel_jobs():
    """Cancel the jobs that this folder has on the cluster."""
    if not (IS_SUBMITTED and slurm.is_here()):
        return
    try:
        if count := slurm.cancel_jobs_of(Path.cwd()):
            print(f"{count} jobs on the cluster are cancelled", file=sys.stderr)
    except slurm.SlurmError as error:
        print(f"{error}: its jobs go on", file=sys.stderr)


def minutes_of(task):
    """What a job takes at most to measure a case."""
    return -(-int(task.limits.timeout_s) // 60) + MINUTES_TO_START


try:
    if IS_CLUSTER:
        DEVICE = DEVICE or "cuda"
        if DEVICE not in ("cpu", "cuda", "stand-in"):
            raise DeviceError(f"--config device={DEVICE}: a cluster chooses the card")
        DEVICES = (DEVICE,)
        HERE, DEVICE_NAME, CARDS = of_nodes()
    else:
        DEVICE = machines.choose_device(DEVICE)
        DEVICES = schedule.devices(DEVICE)
        CARDS = len(DEVICES)
        here = machines.describe(DEVICE)
        HERE, DEVICE_NAME = here.id, here.device
except (DeviceError, slurm.SlurmError) as error:
    raise WorkflowError(str(error)) from None
KIND = "cuda" if DEVICE.startswith("cuda") else "cpu"

if not IS_CLUSTER and (of_jobs := {"partition", "gpu_model", "machine"} & set(config)):
    raise WorkflowError(
        f"--config {min(of_jobs)}: expected where a cluster runs the jobs, as with "
        "--workflow-profile profiles/slurm"
    )
if IS_SUBMITTED:
    WHEN_STOPPED.append(cancel_jobs)
    os.environ[MACHINE_OF_RUN] = HERE
    # On a node this process is none.
    os.environ.pop(ENDS_WITH, None)
elif not IS_JOB and DEVICE != "cpu":
    asked = workflow.global_resources.get("gpu").value
    if isinstance(asked, int) and asked > CARDS:
        raise WorkflowError(
            f"--resources gpu: {asked} asked for, {CARDS} to be had here"
        )
    if asked is None:
        workflow.register_resource("gpu", CARDS)
# Of several cards here each case has its own: those are resources of which there is one.
ON_CARDS = {}
if len(DEVICES) > 1:
    for number in range(len(DEVICES)):
        workflow.register_resource(f"card_{number}", 1)
        ON_CARDS[f"card_{number}"] = lambda wildcards, number=number: holds(
            wildcards.round, wildcards.case, number
        )
