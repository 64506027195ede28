"""What stands for a Kubernetes cluster: its API on the loopback, and pods that are processes here.

It knows the calls that jobs need and no others. What it is sent must be what the client's models
of Kubernetes' OpenAPI schema say, letter by letter, and what a server asks of pods besides. What
the role of profiles/kubernetes/cluster.yaml does not allow is refused. A pod has the environment
of its image and its secrets, a home and a working folder of its own, and nothing else of ours; the
volume is what lies here anyway. One pod runs at a time.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>\w+))/v1/namespaces/default/(?P<what>\w+)"
    r"(?:/(?P<name>[\w.-]+))?(?:/(?P<part>\w+))?"
)
_VERBS = {"POST": "create", "DELETE": "delete"}
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")
_SIMPLE = {"str": str, "int": int, "bool": bool, "float": float, "datetime": str, "object": object}


def check(data, kind: str, at: str = "") -> None:
    """AssertionError, which names the place, where JSON is no `kind` of the client's models."""
    if listed := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(data, list), at
        for number, one in enumerate(data):
            check(one, listed[1], f"{at}[{number}]")
    elif mapped := re.fullmatch(r"dict\(str, (.+)\)", kind):
        assert isinstance(data, dict), at
        for key, one in data.items():
            check(one, mapped[1], f"{at}[{key}]")
    elif kind in _SIMPLE:
        assert isinstance(data, _SIMPLE[kind]), f"{at}: {data!r} is no {kind}"
    else:
        model = getattr(client, kind)
        fields = {name: field for field, name in model.attribute_map.items()}
        unknown = set(data) - set(fields)
        assert not unknown, f"{at}: {kind} has no {unknown}"
        for name, one in data.items():
            check(one, model.openapi_types[fields[name]], f"{at}.{name}")
        try:
            # It refuses to be made without what is required, and wrong words.
            model(**{fields[name]: one for name, one in data.items()})
        except ValueError as error:
            raise AssertionError(f"{at}: {error}") from None


def check_pod(pod: dict) -> None:
    """What a server asks of a pod beyond the schema."""
    volumes = [one["name"] for one in pod["volumes"]]
    assert len({*volumes}) == len(volumes)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in volumes)
    for container in pod["containers"]:
        assert {one["name"] for one in container["volumeMounts"]} <= {*volumes}
        asked = container.get("resources", {})
        requests, limits = asked.get("requests", {}), asked.get("limits", {})
        for value in (*requests.values(), *limits.values()):
            assert _QUANTITY.fullmatch(value), value
        # Of what is no processor, memory or disk: whole ones, and limits.
        for name in {name for name in (*requests, *limits) if "/" in name}:
            assert limits[name].isdigit() and requests.get(name, limits[name]) == limits[name]


class Cluster:
    """role: rules of a Role, as JSON. image: the environment that an image gives its pods.

    starts: whether pods are started. kills: how many pods are killed as they start.
    """

    def __init__(self, role: list[dict], image: dict[str, str]):
        self.role, self.image = role, image
        self.starts, self.kills = True, 0
        self.jobs: dict[str, dict] = {}
        self.secrets: dict[str, dict] = {}
        # Of all jobs that ever were: what was sent, and what their pods wrote.
        self.seen: dict[str, dict] = {}
        self.logs: dict[str, str] = {}
        self.codes: dict[str, int] = {}
        # The last words of what was refused.
        self.refused: list[str] = []
        self._processes: dict[str, subprocess.Popen] = {}
        self._node = threading.Lock()
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                sent = json.loads(self.rfile.read(length) or "null")
                try:
                    status, answer = cluster.answer(self.command, self.path, sent)
                except (AssertionError, AttributeError, KeyError) as error:
                    status, answer = 422, {"kind": "Status", "message": repr(error)}
                if status >= 400:
                    cluster.refused.append(f"{status} {self.command} {self.path} {answer}")
                text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self, folder: Path) -> dict[str, str]:
        """What is to be in the environment of who asks this cluster."""
        server = f"http://127.0.0.1:{self._server.server_port}"
        of = {"cluster": "one", "user": "one"}
        config = {
            **{"apiVersion": "v1", "kind": "Config", "current-context": "one"},
            "clusters": [{"name": "one", "cluster": {"server": server}}],
            "users": [{"name": "one", "user": {}}],
            "contexts": [{"name": "one", "context": of}],
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        return {
            "KUBECONFIG": str(folder / "kubeconfig"),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        }

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for name in list(self._processes):
            self._kill(name)

    def answer(self, method: str, path: str, sent) -> tuple[int, dict | str]:
        found = _PATH.fullmatch(urlsplit(path).path)
        assert found, path
        group, what, name, part = found.group("group", "what", "name", "part")
        verb = _VERBS.get(method) or ("get" if name else "list")
        resource = f"{what}/{part}" if part else what
        if not any(
            (group or "") in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            for rule in self.role
        ):
            return 403, {"kind": "Status", "message": f"may not {verb} {resource}"}
        query = {key: values[0] for key, values in parse_qs(urlsplit(path).query).items()}
        return getattr(self, f"_{verb}_{resource.replace('/', '_')}")(name, sent, query)

    def _create_secrets(self, _, sent, query):
        check(sent, "V1Secret")
        assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in sent["data"])
        self.secrets[sent["metadata"]["name"]] = sent["data"]
        return 201, sent

    def _delete_secrets(self, name, sent, query):
        found = self.secrets.pop(name, None)
        return (404 if found is None else 200), {"kind": "Status"}

    def _create_jobs(self, _, sent, query):
        check(sent, "V1Job")
        check_pod(sent["spec"]["template"]["spec"])
        name = sent["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9-]{1,63}", name) and name not in self.jobs
        self.jobs[name] = self.seen[name] = sent
        if self.starts:
            threading.Thread(target=self._run, args=(name,), daemon=True).start()
        return 201, sent

    def _get_jobs_status(self, name, sent, query):
        if name not in self.jobs:
            return 404, {"kind": "Status"}
        code = self.codes.get(name)
        status = {} if code is None else {"failed" if code else "succeeded": 1}
        return 200, {**self.jobs[name], "status": status}

    def _list_jobs(self, _, sent, query):
        key, value = query["labelSelector"].split("=")
        found = [job for job in self.jobs.values() if job["metadata"]["labels"][key] == value]
        return 200, {"items": found}

    def _delete_jobs(self, name, sent, query):
        self._kill(name)
        found = self.jobs.pop(name, None)
        return (404 if found is None else 200), {"kind": "Status"}

    def _list_pods(self, _, sent, query):
        name = query["labelSelector"].removeprefix("job-name=")
        if name not in self._processes and name not in self.codes:
            return 200, {"items": []}
        code = self.codes.get(name)
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        container = {"name": "snakemake", "image": "", "imageID": "", "ready": True}
        container |= {"restartCount": 0, "state": state}
        status = {"containerStatuses": [container]}
        return 200, {"items": [{"metadata": {"name": f"{name}-pod"}, "status": status}]}

    def _delete_pods(self, name, sent, query):
        self._kill(name.removesuffix("-pod"))
        return 200, {}

    def _get_pods_log(self, name, sent, query):
        if query.get("previous", "").lower() == "true":
            told = f'previous terminated container "snakemake" in pod "{name}" not found'
            return 400, {"kind": "Status", "message": told}
        return 200, self.logs[name.removesuffix("-pod")]

    def _kill(self, name: str) -> None:
        with suppress(KeyError, ProcessLookupError):
            os.killpg(self._processes[name].pid, signal.SIGKILL)

    def _run(self, name: str) -> None:
        (container,) = self.jobs[name]["spec"]["template"]["spec"]["containers"]
        sources = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
        given = {
            variable: base64.b64decode(self.secrets[one["name"]][one["key"]]).decode()
            for variable, one in sources.items()
        }
        with self._node, tempfile.TemporaryDirectory() as folder:
            if self.kills:
                self.kills -= 1
                self.logs[name], self.codes[name] = "out of memory\n", 137
                return
            process = self._processes[name] = subprocess.Popen(
                [*container["command"], *container["args"]],
                env={**self.image, **given, "HOME": folder}, cwd=folder, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            self.logs[name] = process.communicate()[0]
            del self._processes[name]
            self.codes[name] = process.returncode
