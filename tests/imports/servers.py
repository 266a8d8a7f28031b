"""A model hub and an OCI registry on loopback, for clients of all kinds.

    servers.py FILE.gguf

prints one line of JSON with their addresses and lives until standard input closes. The hub speaks
as much of the Hugging Face API as `huggingface_hub` and fulmar need, the registry as much of the
OCI distribution specification as `skopeo` and fulmar need, uploads too. Files of the hub are sent
on to a third server, as hubs do with their CDN; what it saw of `Authorization` is at /seen.

Behaviours, by path of the CDN or by name of the repository:
    acme/tiny      plain        acme/cut     cuts each answer after 400 kB
    acme/lies      flips a bit  acme/endless sends on without end
    acme/checkpoint has no GGUF file, and what is put at /checkpoint/NAME
"""

import base64
import hashlib
import json
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

MODEL = Path(sys.argv[1]).read_bytes()
SHA256 = hashlib.sha256(MODEL).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
USER, PASSWORD = "pump", "s3cret:with colon"
CUT_AFTER = 400_000
CHECKPOINT = {}  # files of acme/checkpoint, by name: put there with PUT /checkpoint/NAME
EXTRA = {}  # more files of acme/signed, by name: put there with PUT /files/NAME
seen, asked = [], []


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content_Type", "application/json")
        self.send_response(status)
        headers.setdefault("Content_Length", len(body))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def ranged(self, data):
        """The whole, or from an offset on."""
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            return self.answer(200, data, Accept_Ranges="bytes")
        first, last = wanted[6:].split("-")
        start, end = int(first), int(last) + 1 if last else len(data)
        part = data[start:end]
        self.answer(206, part, Content_Range=f"bytes {start}-{start + len(part) - 1}/{len(data)}")


class Cdn(Handler):
    def do_GET(self):
        if self.path == "/seen":
            return self.answer(200, {"authorization": seen, "asked": asked})
        seen.append(self.headers.get("Authorization"))
        asked.append([self.path, self.headers.get("Range")])
        repository, name = unquote(urlsplit(self.path).path)[1:].rsplit("/", 1)
        data = CHECKPOINT[name] if repository == "acme/checkpoint" else EXTRA.get(name, MODEL)
        if repository == "acme/lies":
            data = bytearray(data)
            data[len(data) // 2] ^= 1
            return self.ranged(bytes(data))
        if repository == "acme/endless":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
            try:
                for _ in range(4096):
                    self.wfile.write(chunk)
            except OSError:
                pass
            self.close_connection = True
            return None
        if repository == "acme/cut":
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            rest = data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(rest[:CUT_AFTER])
            self.close_connection = True
            return None
        return self.ranged(data)

    def do_HEAD(self):
        self.answer(200, MODEL)


def is_large(name):
    """Whether a file is in large file storage, where its SHA-256 is known."""
    return name.endswith((".gguf", ".safetensors")) or name == "tokenizer.json"


class Hub(Handler):
    def files(self, repository=""):
        if repository == "acme/checkpoint":
            return CHECKPOINT
        return {"README.md": b"A tiny model.\n", "tiny-Q8_0.gguf": MODEL, **EXTRA}

    def do_PUT(self):
        place = CHECKPOINT if self.path.startswith("/checkpoint/") else EXTRA
        place[unquote(self.path.rsplit("/", 1)[1])] = self.body()
        self.answer(201)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials"}, X_Error_Code="GatedRepo")
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if parts == ["api", "models"]:
            return self.search(parse_qs(urlsplit(self.path).query))
        if parts[:2] == ["api", "models"] and len(parts) >= 6:
            repository, kind, revision = "/".join(parts[2:4]), parts[4], parts[5]
            if revision not in ("main", "v1", COMMIT):
                return self.answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
            return self.info(repository) if kind == "revision" else self.tree(repository)
        if len(parts) >= 5 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), "/".join(parts[4:]))
        return self.answer(404, {"error": path}, X_Error_Code="RepoNotFound")

    def info(self, repository):
        self.answer(200, {
            "_id": "1", "id": repository, "modelId": repository, "sha": COMMIT, "private": True,
            "tags": ["gguf", "license:apache-2.0"], "downloads": 0, "likes": 0,
            "cardData": {"license": "apache-2.0"},
            "siblings": [{"rfilename": name} for name in self.files(repository)],
        })

    def search(self, query):
        """Repositories by a part of their name, with the fields that were asked for."""
        wanted = query.get("search", [""])[0].lower()
        assert query.get("filter", ["gguf"]) == ["gguf"], query
        found = []
        for number, name in enumerate(["tiny", "cut", "lies", "endless"]):
            whole = {
                "siblings": [{"rfilename": path} for path in self.files()], "gated": False,
                "gguf": {"total": 4_739_000, "architecture": "qwen3", "context_length": 1024},
                "tags": ["gguf", "license:apache-2.0"], "likes": 7, "downloads": 1000 - number,
                "private": True, "pipeline_tag": "text-generation",
            }
            fields = query.get("expand", ["tags", "likes", "downloads", "private", "pipeline_tag"])
            entry = {"_id": str(number), "id": f"acme/{name}", "modelId": f"acme/{name}"}
            if wanted in entry["id"]:
                found.append(entry | {field: whole[field] for field in fields})
        self.answer(200, found[: int(query.get("limit", ["1000"])[0])])

    def tree(self, repository):
        entries = []
        for name, data in self.files(repository).items():
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
            if is_large(name):
                oid = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self.answer(200, entries)

    def resolve(self, repository, name):
        data = self.files(repository).get(name)
        if data is None:
            return self.answer(404, {"error": name}, X_Error_Code="EntryNotFound")
        if not is_large(name):
            etag = f'"{git_oid(data)}"'
            return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT)
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self.answer(
            302, Location=f"http://{ADDRESS['cdn']}/{repository}/{name}", X_Repo_Commit=COMMIT,
            X_Linked_Etag=etag, X_Linked_Size=len(data), ETag=etag)


class Registry(Handler):
    """Repositories under `basic/` want Basic credentials, all others a bearer token. Those whose
    names end in `api` know what refers to a manifest."""

    blobs, manifests, uploads, tokens = {}, {}, {}, set()

    def let_in(self):
        shown = self.headers.get("Authorization") or ""
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        path = urlsplit(self.path).path
        if path == "/token":
            if shown != basic:
                self.answer(401, {"errors": [{"code": "DENIED"}]})
            else:
                token = secrets.token_hex(8)
                self.tokens.add(token)
                self.answer(200, {"token": token, "access_token": token, "expires_in": 60})
            return False
        if shown == basic and path.startswith("/v2/basic/"):
            return True
        if shown.startswith("Bearer ") and shown[7:] in self.tokens:
            return True
        challenge = f'Bearer realm="http://{ADDRESS["registry"]}/token",service="tests"'
        parts = path.split("/")
        if len(parts) > 4:
            challenge += f',scope="repository:{"/".join(parts[2:-2])}:pull,push"'
        if path.startswith("/v2/basic/"):
            challenge = 'Basic realm="tests"'
        self.body()
        self.answer(401, {"errors": [{"code": "UNAUTHORIZED"}]}, WWW_Authenticate=challenge)
        return False

    def do_GET(self):
        if not self.let_in():
            return
        path = urlsplit(self.path).path
        if path in ("/v2", "/v2/"):
            return self.answer(200, {})
        repository, kind, reference = path[4:].rsplit("/", 2)
        if kind == "manifests" and (found := self.manifests.get((repository, reference))):
            kind, body = found
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            return self.answer(200, body, Content_Type=kind, Docker_Content_Digest=digest)
        if kind == "blobs" and (body := self.blobs.get(reference)) is not None:
            if self.command == "GET" and repository.endswith("cut") and len(body) > CUT_AFTER:
                # The token runs out just when the connection breaks.
                self.tokens.clear()
                start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.end_headers()
                self.wfile.write(body[start:start + CUT_AFTER])
                self.close_connection = True
                return None
            return self.ranged(body)
        if kind == "referrers" and repository.endswith("api"):
            return self.referrers(repository, reference)
        return self.answer(404, {"errors": [{"code": "NAME_UNKNOWN"}]})

    def referrers(self, repository, subject):
        found = []
        for (place, name), (kind, body) in self.manifests.items():
            manifest = json.loads(body)
            if (place == repository and name.startswith("sha256:")
                    and manifest.get("subject", {}).get("digest") == subject):
                found.append({"mediaType": kind, "digest": name, "size": len(body),
                              "artifactType": manifest.get("artifactType", ""),
                              "annotations": manifest.get("annotations", {})})
        kind = "application/vnd.oci.image.index.v1+json"
        self.answer(200, {"schemaVersion": 2, "mediaType": kind, "manifests": found},
                    Content_Type=kind)

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        if not self.let_in():
            return
        self.body()
        upload = secrets.token_hex(8)
        self.uploads[upload] = b""
        location = urlsplit(self.path).path.rstrip("/") + "/" + upload
        self.answer(202, Location=location, Docker_Upload_UUID=upload, Range="0-0")

    def do_PATCH(self):
        if not self.let_in():
            return
        path = urlsplit(self.path).path
        upload = path.rsplit("/", 1)[1]
        self.uploads[upload] += self.body()
        self.answer(202, Location=path, Range=f"0-{len(self.uploads[upload]) - 1}")

    def do_PUT(self):
        if not self.let_in():
            return
        split = urlsplit(self.path)
        repository, kind, reference = split.path[4:].rsplit("/", 2)
        if kind == "manifests":
            body = self.body()
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            for name in (reference, digest):
                self.manifests[repository, name] = (self.headers["Content-Type"], body)
            return self.answer(201, Docker_Content_Digest=digest, Location=self.path)
        body = self.uploads.pop(reference) + self.body()
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if parse_qs(split.query).get("digest") != [digest]:
            return self.answer(400, {"errors": [{"code": "DIGEST_INVALID"}]})
        self.blobs[digest] = body
        return self.answer(201, Docker_Content_Digest=digest, Location=self.path)


ADDRESS = {}
for label, handler in {"cdn": Cdn, "hub": Hub, "registry": Registry}.items():
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    ADDRESS[label] = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps({**ADDRESS, "sha256": SHA256, "size": len(MODEL), "commit": COMMIT,
                  "token": TOKEN, "user": USER, "password": PASSWORD}), flush=True)
sys.stdin.read()
