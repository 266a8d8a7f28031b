"""Makes an OCI layout with one model artifact in it.

oci_layout.py DIR FILE.gguf modelpack|modelpack-tar|ollama; with `modelpack-tar`, the weights lie with
another file in one archive, as modctl packs a folder.
"""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

place, model, kind = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), sys.argv[3]
blobs = place / "blobs" / "sha256"
blobs.mkdir(parents=True)


def put(data, media_type, **more):
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}


def packed(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


if kind == "modelpack-tar":
    config = put(b'{"descriptor":{"name":"tiny"},"modelfs":{"type":"layers","diffIds":[]},'
                 b'"config":{"format":"gguf"}}', "application/vnd.cncf.model.config.v1+json")
    files = {"tiny/LICENSE": b"Apache-2.0\n", "tiny/tiny-Q8_0.gguf": model}
    layers = [put(packed(files), "application/vnd.cncf.model.weight.v1.tar",
                  annotations={"org.cncf.model.filepath": "tiny"})]
    more = {"artifactType": "application/vnd.cncf.model.manifest.v1+json"}
elif kind == "modelpack":
    config = put(b'{"descriptor":{"name":"tiny"},"modelfs":{"type":"layers","diffIds":[]},'
                 b'"config":{"format":"gguf"}}', "application/vnd.cncf.model.config.v1+json")
    layers = [put(model, "application/vnd.cncf.model.weight.v1.raw",
                  annotations={"org.cncf.model.filepath": "tiny-Q8_0.gguf"}),
              put(b"Apache-2.0\n", "application/vnd.cncf.model.doc.v1.raw",
                  annotations={"org.cncf.model.filepath": "LICENSE"})]
    more = {"artifactType": "application/vnd.cncf.model.manifest.v1+json"}
else:
    config = put(b'{"model_format":"gguf","rootfs":{"type":"layers","diff_ids":[]}}',
                 "application/vnd.docker.container.image.v1+json")
    layers = [put(model, "application/vnd.ollama.image.model"),
              put(b"Apache-2.0\n", "application/vnd.ollama.image.license")]
    more = {}
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers,
            "annotations": {"org.opencontainers.image.licenses": "Apache-2.0"}, **more}
entry = put(json.dumps(manifest).encode(), manifest["mediaType"],
            annotations={"org.opencontainers.image.ref.name": "v1"})
(place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
(place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
