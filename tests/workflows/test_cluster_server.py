"""Context and client of an Argo server: settings, and everything that goes wrong on the way."""

import gzip
import io
import json
import logging
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dpa_core.errors import ConfigError
from tests.argo_server.fixtures import certificate, serve  # noqa: F401
from tests.argo_server.server import Trouble
from workflows.backends.argo import transport
from workflows.backends.argo.client import ArgoClient
from workflows.backends.argo.cluster_run import ClusterRun
from workflows.backends.argo.context import Context, load_context
from workflows.backends.argo.download import _folder, download
from workflows.backends.argo.states import Attempts
from workflows.backends.argo.transport import ServerError

SECRET = "eyJhbGciOi.planted-token.Zm9v"


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class TestContext:
    def test_file_then_environment(self, tmp_path):
        path = tmp_path / "context.yaml"
        path.write_text("server: https://a.example.org/base/\nnamespace: al\ntoken_file: token\n")
        (tmp_path / "token").write_text(f"Bearer {SECRET}\n")
        found = load_context(path, {})
        assert (found.server, found.namespace) == ("https://a.example.org/base", "al")
        assert found.bearer() == SECRET
        assert found.dashboard("w") == "https://a.example.org/base/workflows/al/w"
        environment = {"DPAFLOW_CONTEXT": str(path), "ARGO_SERVER": "other:2746",
                       "ARGO_NAMESPACE": "ns", "ARGO_TOKEN": "t2",
                       "ARGO_INSECURE_SKIP_VERIFY": "true"}  # fmt: skip
        found = load_context(None, environment)
        assert (found.server, found.namespace, found.verify) == ("https://other:2746", "ns", False)
        assert found.bearer() == "t2"
        assert (
            load_context(None, {"ARGO_SERVER": "h:1", "ARGO_SECURE": "false"}).server
            == "http://h:1"
        )
        assert load_context(None, {}).server == "https://localhost:2746"
        with pytest.raises(ConfigError, match="no such file"):
            load_context(tmp_path / "missing", {})

    def test_secrets_stay_secret(self, tmp_path):
        found = load_context(None, {"ARGO_TOKEN": SECRET})
        for text in (repr(found), str(found), found.model_dump_json(), str(found.model_dump())):
            assert SECRET not in text
        path = tmp_path / "context.yaml"
        for bad in (
            f"token: {SECRET}",
            f"server: https://me:{SECRET}@host",
            f"ui: http://a:{SECRET}@h",
        ):
            path.write_text(bad)
            with pytest.raises(ConfigError) as error:
                load_context(path, {})
            assert SECRET not in str(error.value)
        with pytest.raises(ConfigError) as error:
            load_context(None, {"ARGO_TOKEN": f"{SECRET} and more"}).bearer()
        assert SECRET not in str(error.value)

    def test_a_token_that_cannot_be_read(self, tmp_path):
        with pytest.raises(ConfigError, match="ARGO_TOKEN"):
            Context(token_file=tmp_path / "none").bearer()


def client_of(server, **settings):
    return ArgoClient(Context(server=server, token=SECRET, **settings))


class TestTrouble:
    """One clear message for each, with what to do, and never the token."""

    @pytest.fixture
    def said(self, caplog):
        caplog.set_level(logging.DEBUG)

        def said(server, status=None, **settings):
            with pytest.raises(ServerError) as error:
                client_of(server, **settings).summaries()
            assert SECRET not in str(error.value) + caplog.text
            assert status is None or error.value.status == status
            return str(error.value)

        return said

    def test_nobody_listens(self, said):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert "kubectl -n argo port-forward" in said(f"http://127.0.0.1:{port}", 0)

    def test_certificates(self, said, serve, certificate, caplog):  # noqa: F811
        server = serve(tls=True)
        assert "certificate is not trusted" in said(server.url)
        plain = server.url.replace("https", "http")
        assert "https" in said(plain)
        server.cluster.accounts["user"] = SECRET
        assert client_of(server.url, ca_file=certificate).summaries() == []
        caplog.clear()
        client = client_of(server.url, verify=False)
        assert client.summaries() == client.summaries() == []
        assert caplog.text.count("is not checked") == 1
        assert "no such file" in said(server.url, ca_file=certificate.with_name("none"))
        empty = certificate.with_name("empty")
        empty.touch()
        assert f"ca_file {empty} holds no certificate" in said(server.url, ca_file=empty)
        assert "does not speak https" in said(serve().url.replace("http", "https"))

    def test_token_and_rights(self, said, serve):  # noqa: F811
        server = serve()
        assert "the token is not accepted (that of ARGO_TOKEN; expired?)" in said(server.url, 401)
        server.cluster.accounts["user"] = SECRET
        server.trouble.append(Trouble(403))
        assert "may not do this in namespace dpaflow" in said(server.url, 403)

    def test_transient_trouble_is_not_seen(self, serve):  # noqa: F811
        server = serve()
        server.cluster.accounts["user"] = SECRET
        for status in (500, 503, 0):
            server.trouble.append(Trouble(status, times=2))
            assert client_of(server.url).summaries() == []
        server.trouble.append(Trouble(503, times=9))
        with pytest.raises(ServerError, match="503"):
            client_of(server.url).summaries()


@pytest.fixture
def canned():
    """Serve one answer to everything; returns (url, answer: status, headers, body; requests)."""
    answer = {"status": 200, "headers": {}, "body": b"{}"}
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(answer["status"])
            for name, value in answer["headers"].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer["body"])

        do_PUT = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answer, seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (200, {"Content-Type": "text/html"}, b"<html>log in</html>", "login page of a proxy"),
        (200, {"Content-Type": "application/json"}, b"<html>", "not as an Argo server does"),
        (200, {"Content-Type": "application/json"}, b"[1]", "not as an Argo server does"),
        (302, {"Location": "https://sso.org/?secret=1"}, b"", "https://sso.org/: that"),
        (404, {}, b'{"code":5,"message":"namespaces \\"dpaflow\\" not found"}', "create namespace"),
        (400, {}, b"Client sent an HTTP request to an HTTPS server.", "wants https"),
        (418, {}, b'{"code":2,"message":"teapot"}', "answers 418: teapot"),
    ],
)  # fmt: skip
def test_strange_answers(canned, status, headers, body, told):
    url, answer, seen = canned
    answer |= {"status": status, "headers": headers, "body": body}
    with pytest.raises(ServerError) as error:
        client_of(url).summaries()
    assert told in str(error.value)
    assert "secret" not in str(error.value)
    assert len(seen) == 1  # trying again would not help


def test_old_versions_are_refused(canned):
    url, answer, _ = canned
    answer["body"] = b'{"version": "v3.2.11"}'
    with pytest.raises(ServerError, match=r"v3\.2\.11; dpaflow needs v3\.5"):
        client_of(url).require_version()
    answer["body"] = b'{"version": "v4.1.2"}'
    assert client_of(url).require_version() == "v4.1.2"


def manifest(number=1, value="x"):
    name = f"al-{number:03d}"
    labels = {"dpaflow/run": "al", "dpaflow/sequence": str(number)}
    return {
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
        "metadata": {"name": name, "labels": labels},
        "spec": {"entrypoint": "p", "arguments": {"parameters": [{"name": "v", "value": value}]},
                 "templates": [{"name": "p", "dag": {"tasks": [{"name": "t", "template": "t"}]}},
                               {"name": "t", "script": {"image": "i:1", "command": ["python"],
                                "source": "import sys; sys.exit(1)"}}]},
    }  # fmt: skip


def test_a_workflow_is_never_created_twice(serve):  # noqa: F811
    server = serve()
    client = ArgoClient(Context(server=server.url, token=server.token))
    server.trouble.append(Trouble(0, match="POST", late=True))  # done, but the answer is lost
    assert client.create(manifest())["metadata"]["name"] == "al-001"
    with pytest.raises(ServerError, match="exists already"):
        client.create(manifest(value="another"))


def test_listing_in_order_and_from_the_archive(serve, monkeypatch):  # noqa: F811
    server = serve()
    client = ArgoClient(Context(server=server.url, token=server.token))
    for number in (10, 2, 1):
        client.create(manifest(number))
    assert [w["metadata"]["name"] for w in client.list("al")] == ["al-001", "al-002", "al-010"]
    assert client.list("other") == []
    assert client.user_info()["subject"].endswith(":user")
    server.engine.workflows["al-001"].join()
    gone = client.get("al-001")
    server.engine.archive[gone["metadata"]["uid"]] = gone
    server.engine.workflows.pop("al-001")
    assert client.get("al-001")["metadata"]["uid"] == gone["metadata"]["uid"]
    with pytest.raises(ServerError) as error:
        client.get("al-077")
    assert error.value.status == 404


class FakeClient:
    """Gives one artifact."""

    def __init__(self, content):
        self.content = content

    def artifact(self, workflow, node, artifact, target):
        self.asked = node, artifact
        target.write_bytes(self.content)
        return target

    def pod_log(self, name, pod, tail):
        return ""  # the pod is gone


def packed(**files):
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return memory.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        packed(**{"folder/../../evil": "x"}),
        packed(**{"folder/number": "1" * 10000})[:-60],
        b"500 Internal Server Error",
        gzip.compress(json.dumps({}).encode()),
    ],
    # gzip writes the time of day: as a name it would differ from worker to worker
    ids=["escapes", "truncated", "error page", "no archive"],
)
def test_a_folder_appears_whole_or_not_at_all(content, tmp_path):
    run = ClusterRun(FakeClient(content), "al")
    step = Attempts({"id": "x", "displayName": "a"}, [], {})
    target = tmp_path / "inner" / "a"
    with pytest.raises(ServerError, match="damaged or"):
        _folder(run, step, target)
    assert list(tmp_path.rglob("*")) == [tmp_path / "inner"]
    run.client.content = packed(**{"folder/number": "7"})
    assert (_folder(run, step, target) / "number").read_text() == "7"


def test_models_of_a_loop_and_of_a_finetuning(tmp_path, monkeypatch):
    from workflows.backends.argo.download import final_trainings
    from workflows.graph import Node

    nodes = [Node("pretrain-a", "train", {}), Node("ft-x", "train", {}, {"m": "pretrain-a:model"}),
             Node("test", "test", {}, {"m": "ft-x:model"})]  # fmt: skip
    assert final_trainings(nodes) == ["ft-x"]
    loop = [*nodes, Node("iter-000000-train-m0", "train", {}), Node("final-train-m0", "train", {})]
    assert final_trainings(loop) == ["final-train-m0"]
    monkeypatch.chdir(tmp_path)
    content = packed(**{"folder/model.safetensors": "weights", "folder/checkpoint.pt": "x"})
    run = ClusterRun(FakeClient(content), "al")
    node = {"id": "x", "displayName": "final-train-m0", "type": "Pod", "phase": "Succeeded"}
    run.workflows = [{"metadata": {"name": "al-001"}, "status": {"nodes": {"x": node}}}]
    monkeypatch.setattr(ClusterRun, "refresh", lambda self: [])
    monkeypatch.setattr(ClusterRun, "plan", property(lambda self: (None, loop, {})))
    (written,) = download(run, "model")
    assert written.read_text() == "weights"
    assert str(written) == "al/m0.safetensors"
    assert [path.name for path in written.parent.iterdir()] == ["m0.safetensors"]


def test_the_log_of_a_pod_that_is_gone_comes_from_the_bucket():
    run = ClusterRun(FakeClient(b"one\n\ntwo \nthree\n"), "al")
    node = {"id": "al-001-7", "displayName": "a", "type": "Pod", "phase": "Failed",
            "outputs": {"artifacts": [{"name": "main-logs"}]}}  # fmt: skip
    run.workflows = [{"metadata": {"name": "al-001"}, "status": {"nodes": {"x": node}}}]
    assert run.tail("a", 2) == ["two", "three"]
    assert run.client.asked == ("al-001-7", "main-logs")
    assert run.tail("b", 2) == []
    node["outputs"] = {}
    assert run.log("a") == ""
