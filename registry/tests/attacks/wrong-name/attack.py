"""Wrong name: something authentic is served as something else."""

import json

from repository import Story
from securesystemslib.formats import encode_canonical

story = Story()
story.delegate("targets", "team/a", ["a/*"])
story.delegate("targets", "team/b", ["b/*"])
story.add("a/model.json", b"made by a", role="team/a")
story.add("b/model.json", b"made by b", role="team/b")
story.publish_all()
honest = dict(story.served)
good = {"a/model.json": "verified", "b/model.json": "verified"}
story.step(versions={"targets": 1, "team/a": 1, "team/b": 1}, targets=good)

# Target a's file under b's name.
b = next(path for path in honest if path.startswith("targets/b/"))
a = next(path for path in honest if path.startswith("targets/a/"))
story.served[b] = honest[a]
story.step(targets={"a/model.json": "verified", "b/model.json": "Content"})

# Role a's metadata under b's name: neither its hash nor its signature is b's.
story.served = dict(honest)
story.publish("targets", "snapshot", "timestamp")
story.publish("team/a", "team/b")
story.publish("snapshot", "timestamp")
story.served["metadata/2.team%2Fb.json"] = story.served["metadata/2.team%2Fa.json"]
story.step(targets={"a/model.json": "verified"}, names={"b/model.json": "Content"})
story.snapshot.meta["team/b.json"] = story.snapshot.meta["team/a.json"]
story.publish("snapshot", "timestamp")
story.step(versions={"team/a": 2, "team/b": 1}, names={"b/model.json": "Signatures"})

# A snapshot served as the timestamp, though the timestamp's key signed it.
story.served = dict(honest)
story.timestamp.version = 50
story.publish("timestamp")
envelope = json.loads(story.served["metadata/timestamp.json"])
body = envelope["signed"]
both = story.signers["timestamp"]
story.snapshot.version = 60
meta = story.snapshot.meta
story.snapshot.meta = {"snapshot.json": story.timestamp.snapshot_meta}
story.served["metadata/timestamp.json"] = story.sign("timestamp", story.snapshot, signers=both)
story.step(refused="Parse", versions={"root": 1})
story.snapshot.meta = meta

# Delegated roles cannot take a top-level role's name.
story.served = dict(honest)
story.timestamp.version = 70
story.snapshot.version = 70
data = json.loads(story.sign("targets", story.roles["targets"]))
data["signed"]["version"] = story.roles["targets"].version = 70
data["signed"]["delegations"]["roles"][0]["name"] = "root"
signer = story.signers["targets"][0]
signature = signer.sign(encode_canonical(data["signed"]).encode())
data["signatures"] = [{"keyid": signer.public_key.keyid, "sig": signature.signature}]
raw = json.dumps(data).encode()
story.served["metadata/70.targets.json"] = raw
story.snapshot.meta["targets.json"] = story.meta(70, raw)
story.snapshot.meta["team/b.json"] = story.snapshot.meta["team/a.json"]
story.publish("snapshot", "timestamp")
story.step(refused="Parse", versions={"root": 1})
story.write()
