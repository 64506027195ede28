# The device that cases are measured on: of this machine, or of those that a cluster gives to jobs.
import re

from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from experiments import kubernetes
from experiments import machine as machines
from experiments import schedule, slurm
from experiments.cards import DeviceError
from experiments.nodes.allocation import nodes_of

# What jobs on a cluster ask for, beside cards and time.
ON_NODES = {}
for key, resource, form in (
    ("partition", "slurm_partition", r"[\w.,-]{1,200}"),
    ("gpu_model", "gpu_model", r"[\w.]{1,200}"),
    ("machine_type", "machine_type", r"[\w.-]{1,63}"),
):
    if key in config:
        if not re.fullmatch(form, str(config[key]), re.ASCII):
            raise WorkflowError(f"--config {key}={config[key]}: expected a name")
        ON_NODES[resource] = str(config[key])
DEVICE = config.get("device")
if not isinstance(DEVICE, str | None):
    raise WorkflowError(f"--config device={DEVICE}: expected a name, as cpu or cuda:0")
# Where a cluster's jobs learn which machine their run is for, how many cards a node of it has, and
# how many such nodes there are.
OF_RUN = "ATTENTION_MACHINE"
# Whether other hosts run the jobs, and whether this is one of them.
IS_SUBMITTED = workflow.is_main_process and workflow.resource_settings.nodes is not None
IS_JOB = not workflow.is_main_process
IS_CLUSTER = IS_SUBMITTED or IS_JOB
# The executor is not told here; its profile is known by a resource that it names for that.
IS_KUBERNETES = (
    IS_SUBMITTED and "pod" in workflow.resource_settings.overwrite_resource_scopes
)
# What the profiles call the cases that share a job.
GROUP = "cases"
# The name of the run whose jobs this folder has submitted.
JOBS = Path(f".snakemake/{'kubernetes' if IS_KUBERNETES else 'slurm'}-jobs")
CORES_OF_JOB, MINUTES_TO_START = 4, 2
if IS_KUBERNETES:
    ON_NODES.update(kubernetes.ASKED)
elif IS_CLUSTER:
    # Cards of one job are of one node, but for a ring that needs more.
    ON_NODES["nodes"] = 1
# The names of cases over ranks that run at once.
SPREAD = r".+_p\d+(_seed\d+)?"


def of_nodes():
    """The id of the machine that jobs get, what its device is called, its cards, and how many."""
    if IS_JOB:
        machine, cards, nodes = os.environ[OF_RUN].split()
        return machine, "", int(cards), int(nodes)
    if config.get("source") == "published":
        return "none", "", 1, 1
    if IS_KUBERNETES:
        return *kubernetes.node(DEVICE, Path(".snakemake")), 1
    if not slurm.is_here():
        raise slurm.SlurmError(
            "no sbatch here: executors for other hosts are SLURM's, with profiles/slurm, and "
            "Kubernetes', with profiles/kubernetes"
        )
    found = slurm.cards_of_nodes(ON_NODES) if DEVICE != "cpu" else (1, 1)
    node = slurm.node(DEVICE, ON_NODES, CORES_OF_JOB, Path(".snakemake"))
    return node["id"], node["device"], *found


def cards_for(case):
    """How many cards there are for a case: of a node, and of several where ranks need those."""
    return CARDS * nodes_for(case)


def cards_of(case):
    """How many cards a case over ranks holds: where there are fewer, its record says so."""
    return schedule.cards_of(case, cards_for(case)) if DEVICE != "cpu" else 0


def nodes_for(case):
    """Over how many nodes its ranks are spread."""
    return nodes_of(case, CARDS, NODES)


def gres_of(case):
    """The cards that a case over several nodes asks for on each, as SLURM has it."""
    parts = ["gpu", ON_NODES.get("gpu_model"), f"{case.world_size // nodes_for(case)}"]
    return ":".join(filter(None, parts))


def cores_of(case):
    """The cores of a job on each node: beside cards each rank has one."""
    if not IS_CLUSTER:
        return max(1, workflow.cores // len(DEVICES))
    ranks = cards_of(case) // nodes_for(case) if KIND == "cuda" else 1
    return max(CORES_OF_JOB, ranks)


def cancel_jobs():
    """Cancel the jobs that the last run in this folder has on the cluster."""
    if IS_SUBMITTED and JOBS.exists():
        name = JOBS.read_text(encoding="utf-8").strip()
        if IS_KUBERNETES:
            count = kubernetes.cancel(workflow.scheduler._executor.namespace, name)
        else:
            count = slurm.cancel(name)
        if count:
            print(f"{count} jobs on the cluster are cancelled", file=sys.stderr)


def note_jobs():
    """Cancel what a run that was killed has left, which would be measured twice; note our own."""
    if IS_SUBMITTED:
        cancel_jobs()
        executor = workflow.scheduler._executor
        name = executor.run_namespace if IS_KUBERNETES else executor.run_uuid
        JOBS.write_text(name, encoding="utf-8")
        WHEN_STOPPED.append(cancel_jobs)
        if IS_KUBERNETES:
            kubernetes.read_logs_of_failed(executor)


def minutes_of(task):
    """What a job takes at most to measure a case."""
    return -(-int(task.limits.timeout_s) // 60) + MINUTES_TO_START


try:
    if IS_CLUSTER:
        DEVICE = DEVICE or "cuda"
        if DEVICE not in ("cpu", "cuda", "stand-in"):
            raise DeviceError(
                f"--config device={DEVICE}: expected cpu, cuda or stand-in: a cluster chooses the card"
            )
        DEVICES = (DEVICE,)
        HERE, DEVICE_NAME, CARDS, NODES = of_nodes()
    else:
        DEVICE = machines.choose_device(DEVICE)
        DEVICES = schedule.devices(DEVICE)
        CARDS, NODES = len(DEVICES), 1
        here = machines.describe(DEVICE)
        HERE, DEVICE_NAME = here.id, here.device
except (DeviceError, slurm.SlurmError, kubernetes.KubernetesError) as error:
    raise WorkflowError(str(error)) from None
KIND = "cuda" if DEVICE.startswith("cuda") else "cpu"

NOT_HERE = {"partition", "gpu_model", "machine_type"} & set(config)
if IS_CLUSTER:
    NOT_HERE &= {"partition", "gpu_model"} if IS_KUBERNETES else {"machine_type"}
if not IS_JOB and NOT_HERE:
    raise WorkflowError(
        f"--config {min(NOT_HERE)}: expected where a cluster of its kind runs the jobs: "
        "partition and gpu_model with --workflow-profile profiles/slurm, machine_type with "
        "profiles/kubernetes"
    )
if IS_SUBMITTED:
    os.environ[OF_RUN] = f"{HERE} {CARDS} {NODES}"
    # On a node this process is none.
    os.environ.pop(ENDS_WITH, None)
if IS_KUBERNETES:
    # A pod inherits nothing.
    workflow.register_envvars(OF_RUN)
    # The executor implies that no folder is shared; ours lies on a volume that all pods mount.
    plugin = ExecutorPluginRegistry().get_plugin("kubernetes")
    plugin.common_settings.implies_no_shared_fs = False
elif IS_JOB:
    # Without SLURM's steps, it is this that keeps the cases of a job from running at once.
    workflow.register_resource("in_turn", 1)
elif not IS_CLUSTER and DEVICE != "cpu":
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
