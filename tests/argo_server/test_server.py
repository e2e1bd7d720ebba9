"""The HTTP interface of the stub, asked without any client of ours."""

import json
import ssl
import time
import urllib.error
import urllib.request

import pytest

from tests.argo_server.manifests import script, task, workflow
from tests.argo_server.server import Trouble


class Asker:
    def __init__(self, server):
        self.server = server
        self.context = ssl.create_default_context(cadata=server.cluster.authority)

    def __call__(self, method, path, body=None, token=None, base=None):
        request = urllib.request.Request(
            (base or self.server.url) + path, method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token or self.server.token}"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, context=self.context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def json(self, *arguments, **more):
        status, text = self(*arguments, **more)
        assert status == 200, text
        return json.loads(text)


@pytest.fixture
def ask(serve):
    return Asker(serve(tls=True))


PLACE = "/api/v1/workflows/dpaflow"


def test_from_creation_to_the_archive(ask):
    page = {"name": "page", "path": "/dpaflow/work/p.html", "archive": {"none": {}}}
    source = ("import os; print('one'); print('two'); "
              "open(os.environ['DPAFLOW_WORK'] + '/p.html', 'w').write('<b>')")  # fmt: skip
    mount = {"volumeMounts": [{"name": "w", "mountPath": "/dpaflow/work"}]}
    manifest = workflow(
        [script("a", source, script=mount, outputs={"artifacts": [page]})], [task("a")],
        volumes=[{"name": "w", "emptyDir": {}}], archiveLogs=True,
    )  # fmt: skip
    assert ask.json("POST", f"{PLACE}/lint", {"workflow": manifest}) == manifest
    created = ask.json("POST", PLACE, {"workflow": manifest})
    assert created["metadata"]["uid"]
    assert ask("POST", PLACE, {"workflow": manifest})[0] == 409
    while (found := ask.json("GET", f"{PLACE}/test-001"))["status"]["phase"] in ("", "Running"):
        time.sleep(0.02)
    assert found["status"]["phase"] == "Succeeded"
    (node,) = (n for n in found["status"]["nodes"].values() if n["type"] == "Pod")
    pod = next(iter(ask.server.engine.pods))
    lines = ask("GET", f"{PLACE}/test-001/log?podName={pod}&logOptions.tailLines=1")[1]
    assert json.loads(lines) == {"result": {"content": "two", "podName": pod}}
    files = f"/artifact-files/dpaflow/workflows/test-001/{node['id']}/outputs"
    assert ask("GET", f"{files}/page")[1] == b"<b>"
    assert ask("GET", f"{files}/main-logs")[1] == b"one\ntwo\n"
    assert ask("GET", f"{files}/other")[0] == 500
    query = "listOptions.labelSelector=dpaflow/run%3Dtest&fields=items.metadata.name"
    listed = ask.json("GET", f"{PLACE}?{query}")
    assert listed == {"items": [{"metadata": {"name": "test-001"}}]}
    assert ask.json("GET", f"{PLACE}?listOptions.labelSelector=dpaflow/run%3Dx")["items"] is None
    ask.json("DELETE", f"{PLACE}/test-001")
    assert ask("GET", f"{PLACE}/test-001")[0] == 404
    (item,) = ask.json("GET", "/api/v1/archived-workflows?namePrefix=test")["items"]
    uid = item["metadata"]["uid"]
    kept = ask.json("GET", f"/api/v1/archived-workflows/{uid}")
    assert kept["status"]["nodes"].keys() == found["status"]["nodes"].keys()
    files = files.replace("workflows/test-001", f"archived-workflows/{uid}")
    assert ask("GET", f"{files}/page")[1] == b"<b>"


def test_who_may_do_what(ask):
    status, text = ask("GET", "/api/v1/version", token="stolen")
    assert (status, json.loads(text)["code"]) == (401, 16)
    port = ask.server.cluster.environment["KUBERNETES_SERVICE_PORT"]
    kubernetes = f"https://127.0.0.1:{port}/apis/argoproj.io/v1alpha1/namespaces/dpaflow/workflows"
    manifest = workflow([script("a")], [task("a")])
    token = ask.server.cluster.accounts["dpaflow-advance"]
    assert ask("POST", "", manifest, token=token, base=kubernetes)[0] == 200
    assert ask("POST", "", manifest, token=token, base=kubernetes)[0] == 409
    assert ask("GET", "/test-001", token=token, base=kubernetes)[0] == 200
    assert ask("GET", "/test-002", token=token, base=kubernetes)[0] == 404
    status, text = ask("DELETE", f"{PLACE}/test-001", token=token)
    assert (status, "cannot delete resource" in text.decode()) == (403, True)
    assert ask("GET", "/api/v1/workflow-events/dpaflow")[0] == 501


def test_trouble(ask):
    ask.server.trouble += [Trouble(503, 2, "version"), Trouble(0, 1, "version")]
    assert [ask("GET", "/api/v1/version")[0] for _ in range(2)] == [503, 503]
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        ask("GET", "/api/v1/version")
    assert ask("GET", "/api/v1/version")[0] == 200
