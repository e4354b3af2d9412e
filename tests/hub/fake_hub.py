"""Two hubs on 127.0.0.1, small and strict: FakeHub speaks the Hugging Face hub's protocol, FakeModelScope speaks ModelScope's."""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "1234567890abcdef1234567890abcdef12345678"
NEWER = "fedcba0987654321fedcba0987654321fedcba09"


class Server:
    """requests: (method, path, headers) of all that came."""

    def __init__(self):
        self.requests = []
        self.closed = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_GET(self):
                if owner.closed:  # on a connection from before
                    self.close_connection = True
                    return
                owner.requests.append((self.command, self.path, dict(self.headers)))
                owner.answer(self, self.path)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.closed = True
        self.http.shutdown()
        self.http.server_close()

    def paths(self, part=""):
        return [path for _, path, _ in self.requests if part in path]

    def send(self, handler, status, body=b"", **headers):
        handler.send_response(status)
        for name, value in {"content_length": len(body), **headers}.items():
            handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    def send_json(self, handler, value, status=200, **headers):
        self.send(handler, status, json.dumps(value).encode(), content_type="application/json", **headers)


class FakeHub(Server):
    """One model repository. files: name -> bytes. storage: a Server that large files are redirected to."""

    def __init__(self, repo_id, files, token=None, storage=None):
        super().__init__()
        self.repo_id, self.files, self.token, self.storage = repo_id, files, token, storage
        self.sha = SHA
        self.status = None  # answer everything with this
        self.cut = {}  # name -> bytes after which the connection breaks, once

    def answer(self, handler, path):
        path = urllib.parse.unquote(urllib.parse.urlsplit(path).path)
        allowed = self.token is None or handler.headers.get("authorization") == f"Bearer {self.token}"
        if self.status or not allowed:
            return self.send_json(handler, {"error": "no"}, self.status or 401)
        api = f"/api/models/{self.repo_id}/"
        if path.startswith(api + "revision/"):
            return self.revision(handler, path.removeprefix(api + "revision/"))
        if path.startswith(api + f"tree/{self.sha}"):
            return self.send_json(handler, [self.entry(name) for name in self.files])
        resolve = f"/{self.repo_id}/resolve/{self.sha}/"
        if path.startswith(resolve) and path.removeprefix(resolve) in self.files:
            return self.file(handler, path.removeprefix(resolve))
        return self.send_json(handler, {"error": "no"}, 404, x_error_code="RepoNotFound")

    def revision(self, handler, revision):
        if revision not in ("main", self.sha):
            return self.send_json(handler, {"error": "no"}, 404, x_error_code="RevisionNotFound")
        siblings = [{"rfilename": name} for name in self.files]
        return self.send_json(handler, {"id": self.repo_id, "sha": self.sha, "siblings": siblings})

    def entry(self, name):
        data = self.files[name]
        entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return entry

    def file(self, handler, name):
        data = self.files[name]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        commit = {"x_repo_commit": self.sha}
        if self.storage is not None and name.endswith(".safetensors"):
            place = f"{self.storage.url}/stored/{name}".replace("127.0.0.1", "localhost")
            linked = {"x_linked_etag": etag, "x_linked_size": len(data), "location": place}
            return self.send(handler, 302, **commit, **linked)
        return self.body(handler, name, data, etag=etag, **commit)

    def body(self, handler, name, data, **headers):
        begin = int((handler.headers.get("range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if begin:
            headers["content_range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        if handler.command == "GET" and name in self.cut:
            handler.send_response(200)
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: self.cut.pop(name)])
            handler.close_connection = True
            return None
        return self.send(handler, 206 if begin else 200, data[begin:], accept_ranges="bytes", **headers)


class Storage(Server):
    """Another host that only holds file bodies."""

    def __init__(self, files):
        super().__init__()
        self.files = files

    def answer(self, handler, path):
        self.send(handler, 200, self.files[path.removeprefix("/stored/")])


class FakeModelScope(Server):
    def __init__(self, repo_id, files):
        super().__init__()
        self.repo_id, self.files = repo_id, files

    def answer(self, handler, path):
        parts = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        model = f"/api/v1/models/{self.repo_id}"
        if parts.path == f"{model}/repo/files":
            files = [
                {"Path": n, "Name": n, "Type": "blob", "Size": len(d), "Sha256": hashlib.sha256(d).hexdigest()}
                for n, d in self.files.items()
            ]
            return self.send_json(handler, {"Code": 200, "Data": {"Files": files}, "Success": True})
        if parts.path == f"{model}/repo" and query.get("FilePath") in self.files:
            return self.send(handler, 200, self.files[query["FilePath"]])
        if parts.path == "/":
            return self.send(handler, 200)
        return self.send_json(handler, {"Code": 404, "Message": "not found", "Success": False}, 404)
