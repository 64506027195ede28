"""What is asked of Kubernetes beside Snakemake's executor: what a node is, which jobs are left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

# A stopped run waits for its answers.
_ANSWER_S = 10.0
# What a case asks for beside cards: the executor's toleration for nodes with cards, and limits
# besides requests, without which no card is given.
ASKED = {"gpu_manufacturer": "nvidia", "scale": 0}


class KubernetesError(RuntimeError):
    """A cluster has not said what is needed of it."""


def node(device: str, folder: Path) -> tuple[str, str, int]:
    """The id of the machine that jobs get, what its device is called, and how many cards it has.

    device: as `machine.choose_device` takes it. folder: where profiles/kubernetes/node.yaml has
    left what a node says of itself. KubernetesError where it has not.
    """
    kept = folder / f"kubernetes-{device}.json"
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        return str(found["id"]), str(found["device"]), int(found["devices"])
    except (OSError, ValueError, KeyError, TypeError):
        raise KubernetesError(
            f"{kept}: does not say what a node is; profiles/kubernetes/node.yaml asks one"
        ) from None


def cancel(namespace: str, run: str) -> int:
    """Delete the jobs of a run and their secret; returns how many jobs there were.

    run: the `run_namespace` of the executor that made them, which is the name of the secret that
    gives them their environment: no label tells the jobs of two runs apart. To be called where the
    executor has told the client which cluster; the client's ApiException without an answer.
    """
    from kubernetes import client

    # Clients of its own: a signal may come while another's holds its locks.
    batch, core = client.BatchV1Api(), client.CoreV1Api()
    listed = batch.list_namespaced_job(
        namespace, label_selector="app=snakemake", _request_timeout=_ANSWER_S
    )
    names = [job.metadata.name for job in listed.items if run in _secrets(job)]
    for name in names:
        _delete(batch.delete_namespaced_job, name, namespace, propagation_policy="Background")
    _delete(core.delete_namespaced_secret, run, namespace)
    return len(names)


def _secrets(job) -> set[str]:
    """The names of the secrets that a job has its environment from."""
    containers = job.spec.template.spec.containers
    sources = [one.value_from for container in containers for one in container.env or []]
    return {one.secret_key_ref.name for one in sources if one and one.secret_key_ref}


def _delete(delete: Callable, name: str, namespace: str, **how) -> None:
    """Delete what may have gone by itself."""
    from kubernetes.client import ApiException

    try:
        delete(name, namespace, _request_timeout=_ANSWER_S, **how)
    except ApiException as error:
        if error.status != 404:
            raise


def read_logs_of_failed(executor) -> None:
    """Have the executor read the log of a pod that failed.

    Version 0.5 asks for the log of the container before it. There is none, as no pod is started
    twice, so Kubernetes answers with an error, and the first failed job would end the run.
    """
    read = executor.kubeapi.read_namespaced_pod_log
    executor.kubeapi.read_namespaced_pod_log = lambda **asked: read(**{**asked, "previous": False})
