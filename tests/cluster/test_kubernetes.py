"""The workflow as jobs of Kubernetes: what would be sent to a cluster, and what comes of it."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from experiments import grid, rounds
from experiments.cards import STAND_INS
from tests.cluster.kubernetes_api import Cluster, check, check_pod
from tests.pipeline.conftest import ROOT, jobs

PROFILE = ROOT / "profiles/kubernetes"
IMAGE = yaml.safe_load((PROFILE / "profile.yaml").read_text())["container-image"]
CARDS = 2
pytestmark = pytest.mark.pipeline


def manifests():
    paths = (PROFILE / "cluster.yaml", PROFILE / "node.yaml")
    return [one for path in paths for one in yaml.safe_load_all(path.read_text())]


def manifest(kind):
    (found,) = (one for one in manifests() if one["kind"] == kind)
    return found


def of_one_shape(count):
    """The names of so many cases of one card, which share a job."""
    shapes = {}
    for task in grid.tasks("smoke"):
        if not task.case.is_spread:
            shapes.setdefault(rounds.shape_of(task.case), []).append(task.name)
    return next(names for names in shapes.values() if len(names) >= count)[:count]


@pytest.fixture
def cluster(copy, tmp_path):
    """One that jobs can be sent to; `command` sends those of a ring and of four cases."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    image = {"PATH": path, STAND_INS: str(CARDS), "OMP_NUM_THREADS": "1"}
    api = Cluster(manifest("Role")["rules"], image)
    environment = {**copy.environment, **api.environment(tmp_path)}
    (told,) = manifest("Job")["spec"]["template"]["spec"]["containers"][0]["args"]
    subprocess.run(
        ["sh", "-c", told.replace("cuda", "stand-in")],
        env={**environment, STAND_INS: str(CARDS)}, cwd=copy.folder, check=True,
    )  # fmt: skip
    kept = json.loads((copy.folder / ".snakemake/kubernetes-stand-in.json").read_text())
    assert kept["devices"] == CARDS
    where = copy.folder / "results/local" / kept["id"] / "round-1"
    names = [copy.names[0], *of_one_shape(4)]
    options = (
        *("--workflow-profile", "profiles/kubernetes", "--config", "tier=smoke", "device=stand-in"),
        *("--kubernetes-persistent-volumes", f"attention:{copy.folder}", "--latency-wait", "5"),
        *("--seconds-between-status-checks", "1"),
    )
    targets = [str((where / f"{name}.json").relative_to(copy.folder)) for name in names]

    def run(*arguments, **given):
        return subprocess.run(
            copy.command(*arguments), env={**environment, **given}, cwd=copy.folder,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    yield SimpleNamespace(
        api=api, environment=environment, folder=copy.folder, where=where, names=names, run=run,
        options=options, command=(*options, "--", *targets), id=kept["id"],
    )  # fmt: skip
    api.stop()


def test_what_the_profiles_say_are_options_of_snakemake_and_its_executors():
    from snakemake.cli import get_argument_parser

    known = {name for action in get_argument_parser()._actions for name in action.option_strings}
    for path in ROOT.glob("profiles/*/profile.yaml"):
        assert {f"--{key}" for key in yaml.safe_load(path.read_text())} <= known, path


def test_what_the_cluster_needs_once_is_what_the_schema_says():
    kinds = ["PersistentVolumeClaim", "ServiceAccount", "Role", "RoleBinding", "Pod", "Job"]
    assert [one["kind"] for one in manifests()] == kinds
    for one in manifests():
        check(one, f"V1{one['kind']}")
    profile = yaml.safe_load((PROFILE / "profile.yaml").read_text())
    (volume,) = profile["kubernetes-persistent-volumes"]
    for pod in (manifest("Pod")["spec"], manifest("Job")["spec"]["template"]["spec"]):
        check_pod(pod)
        assert pod["volumes"] == [
            {"name": "attention", "persistentVolumeClaim": {"claimName": "attention"}}
        ]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["image"] == IMAGE
            (mount,) = container["volumeMounts"]
            assert f"{mount['name']}:{mount['mountPath']}" == volume
    assert manifest("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    with pytest.raises(AssertionError, match="V1Container has no {'comand'}"):
        check({"name": "a", "comand": []}, "V1Container")
    with pytest.raises(AssertionError, match="`name`, must not be `None`"):
        check({"image": "a"}, "V1Container")


def test_the_image_holds_the_pinned_environment(tmp_path):
    text = (ROOT / "envs/Containerfile").read_text()
    rows = [row.split(" ", 1) for row in text.splitlines() if row and not row.startswith("#")]
    assert {word for word, _ in rows} == {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER"}
    of = {word: [rest for one, rest in rows if one == word] for word, _ in rows}
    (base,) = of["FROM"]
    assert re.fullmatch(
        r"docker\.io/library/python:3\.1[1-3]\.\d+-\w+(@sha256:[0-9a-f]{64})?", base
    )
    place, at = of["WORKDIR"]
    assert at == manifest("Pod")["spec"]["containers"][0]["volumeMounts"][0]["mountPath"]
    assert of["ENV"][0].startswith(f"PATH={place}/.venv/bin:$PATH ")
    # What is copied is there, and is all that is needed to set the environment up.
    for row in of["COPY"]:
        *sources, target = shlex.split(row)
        (tmp_path / target).mkdir(exist_ok=True)
        for source in sources:
            shutil.copy(ROOT / source, tmp_path / target)
    make = re.search(r"make \w+", of["RUN"][0])[0]
    done = subprocess.run(
        [*shlex.split(make), "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    installed = re.findall(r"-r (envs/\w+\.txt)", done.stdout)
    assert installed == [f"envs/{name}.txt" for name in ("run", "torch", "pipeline", "kubernetes")]
    hashed = [row for row in done.stdout.splitlines() if "-r envs/" in row and "torch" not in row]
    assert all("--require-hashes" in row for row in hashed) and len(hashed) == 3
    user = of["USER"][0]
    assert user == manifest("Pod")["spec"]["initContainers"][0]["command"][1] != "0:0"
    assert f"--uid {user.split(':')[0]} " in of["RUN"][1]
    assert f"-t {IMAGE} -f envs/Containerfile ." in text


def test_pins_that_roles_share_are_the_same():
    pins = {}
    for path in ROOT.glob("envs/*.txt"):
        for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(), re.M):
            pins.setdefault(name, set()).add(version)
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}


def test_a_dry_run_plans_what_this_machine_would_do(cluster):
    local = cluster.run("-n", "--config", "tier=smoke", "device=stand-in", **{STAND_INS: "1"})
    told = cluster.run("-n", *cluster.options)
    assert jobs(told) == jobs(local) and jobs(told)["measure"] > 100
    assert cluster.api.seen == {} and cluster.api.secrets == {}
    published = cluster.run("-n", *cluster.options[:2], "--config", "source=published")
    assert "measure" not in jobs(published)


def test_cases_become_pods_with_their_cards_and_a_killed_one_is_sent_again(cluster):
    cluster.api.kills = 1
    done = cluster.run(*cluster.command)
    assert done.returncode == 0, done.stdout + done.stderr + "\n".join(cluster.api.logs.values())
    found = {path.stem: json.loads(path.read_text()) for path in cluster.where.glob("*.json")}
    assert set(found) == set(cluster.names)
    assert {record["status"] for record in found.values()} == {"ok"}
    assert {record["machine"]["id"] for record in found.values()} == {cluster.id}
    # A ring, a pod of four cases, and one of these once more.
    sent = [one["spec"]["template"]["spec"] for one in cluster.api.seen.values()]
    assert len(sent) == 3 and sorted(cluster.api.codes.values()) == [0, 0, 137]
    assert done.stderr.count("Trying to restart") == 1
    assert {pod["restartPolicy"] for pod in sent} == {"Never"}
    cards = []
    for pod in sent:
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        assert {one["name"]: one["mountPath"] for one in container["volumeMounts"]} == {
            "attention": str(cluster.folder), "workdir": "/workdir",
        }  # fmt: skip
        assert {"name": "attention", "persistentVolumeClaim": {"claimName": "attention"}} in (
            pod["volumes"]
        )
        limits = container["resources"]["limits"]
        cards.append(limits.pop("nvidia.com/gpu"))
        assert limits == {"cpu": "4000m", "memory": "16000M", "ephemeral-storage": "20000M"}
        assert [one["key"] for one in pod["tolerations"]] == ["nvidia.com/gpu"]
        assert [one["name"] for one in container["env"]] == ["ATTENTION_MACHINE"]
        assert container["command"] == ["/bin/sh"] and container["args"][0] == "-c"
        told = container["args"][1]
        assert told.startswith(f"{sys.executable} -m snakemake --snakefile ")
        assert f"{cluster.folder}/Snakefile" in told
        assert "pip install" not in told and "--deploy-sources" not in told
    # Either may be the one that was killed.
    assert sorted(cards) in (["1", "1", "2"], ["1", "2", "2"])
    # One after another, though a pod has more cores than a case takes; begun is told to the second.
    times = sorted(
        (datetime.fromisoformat(record["started_at"]).timestamp(), record["wall_s"])
        for name, record in found.items()
        if not name.endswith("_p2")
    )
    assert len(times) == 4
    assert all(a + seconds <= b + 1 for (a, seconds), (b, _) in pairwise(times))
    # Nothing is left, and nothing was refused.
    assert cluster.api.jobs == {} and cluster.api.secrets == {}
    assert cluster.api.refused == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_early_leaves_no_job_to_the_next(cluster, number):
    api = cluster.api
    api.starts = False
    command = [str(Path(sys.executable).with_name("snakemake")), *cluster.command]

    def submitted(count):
        going = subprocess.Popen(
            command, env=cluster.environment, cwd=cluster.folder, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        end = time.monotonic() + 120
        while len(api.seen) < count:
            assert going.poll() is None and time.monotonic() < end, going.communicate()[0]
            time.sleep(0.1)
        return going

    # Another's, which only has the same label.
    other = {"metadata": {"name": "other", "labels": {"app": "snakemake"}}, "spec": {}}
    api.jobs["other"] = other | {"spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}
    first = submitted(2)
    first.send_signal(number)
    told = first.communicate()[0]
    if number == signal.SIGTERM:
        assert "2 jobs on the cluster are cancelled" in told and "stopped by SIGTERM" in told
        assert set(api.jobs) == {"other"} and api.secrets == {}
        return
    assert len(api.jobs) == 3 and len(api.secrets) == 1
    second = submitted(4)
    assert len(api.jobs) == 3 and len(api.secrets) == 1
    second.send_signal(signal.SIGINT)
    told = second.communicate()[0]
    assert told.count("2 jobs on the cluster are cancelled") == 2
    assert set(api.jobs) == {"other"} and api.secrets == {}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("device=cuda", ".snakemake/kubernetes-cuda.json: does not say what a node is; profiles/"),
        ("partition=gpu", "--config partition: expected where a cluster of its kind runs the jobs"),
        ("machine_type=a,b", "--config machine_type=a,b: expected a name"),
        ("device=cuda:1", "--config device=cuda:1: expected cpu, cuda or stand-in"),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(cluster, config, told):
    device = [] if config.startswith("device") else ["device=stand-in"]
    done = cluster.run("-n", *cluster.options[:4], *device, config)
    assert done.returncode == 1 and told in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_type_of_machine_is_asked_for_and_a_cpu_takes_no_card(cluster):
    kept = cluster.folder / ".snakemake"
    shutil.copy(kept / "kubernetes-stand-in.json", kept / "kubernetes-cpu.json")
    cluster.api.starts = False
    command = [one.replace("device=stand-in", "device=cpu") for one in cluster.command]
    command.insert(command.index("device=cpu"), "machine_type=n2-standard-8")
    going = subprocess.Popen(
        [str(Path(sys.executable).with_name("snakemake")), *command],
        env=cluster.environment, cwd=cluster.folder,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while len(cluster.api.seen) < 2:
        assert going.poll() is None, going.communicate()[0]
        time.sleep(0.1)
    going.terminate()
    going.communicate()
    for one in cluster.api.seen.values():
        pod = one["spec"]["template"]["spec"]
        assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "n2-standard-8"}
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "0"
