"""Mix-and-match: every file is authentic, but they were never one repository at one time."""

from repository import Story
from securesystemslib.signer import CryptoSigner

# Ed25519: ECDSA's signatures vary in length, and here the lengths must not give the mix away.
story = Story(snapshot_signer=CryptoSigner.generate_ed25519())
story.add("a/model.json", b"a, first")
story.add("b/model.json", b"b, first")
story.publish_all()
first = dict(story.served)
story.step(versions={"targets": 1, "snapshot": 1, "timestamp": 1})

story.add("a/model.json", b"a, second")
story.publish_all()
second = dict(story.served)
story.add("b/model.json", b"b, third")
story.publish_all()
third = dict(story.served)

# The newest timestamp over the second snapshot, under the name of the third.
story.served = dict(third)
story.served["metadata/3.snapshot.json"] = second["metadata/2.snapshot.json"]
story.step(refused="Content", versions={"timestamp": 3, "snapshot": 1, "targets": 1})

# The newest snapshot over the second targets.
story.served = dict(third)
story.served["metadata/3.targets.json"] = second["metadata/2.targets.json"]
story.step(refused="Content", versions={"timestamp": 3, "snapshot": 3, "targets": 1})

# The same without lengths and hashes in the listing roles: the versions tell.
story.served = third
for meta in story.snapshot.meta.values():
    meta.length = meta.hashes = None
story.publish("snapshot")
story.timestamp.snapshot_meta.length = story.timestamp.snapshot_meta.hashes = None
story.publish("timestamp")
bare = dict(story.served)
story.served["metadata/4.snapshot.json"] = third["metadata/3.snapshot.json"]
story.step(refused="Version", versions={"timestamp": 4, "snapshot": 3, "targets": 1})
story.served = dict(bare)
story.served["metadata/3.targets.json"] = second["metadata/2.targets.json"]
story.step(refused="Version", versions={"snapshot": 4, "targets": 1})

# A target of another time, under its own name.
story.served = dict(bare)
old = next(data for path, data in first.items() if path.endswith(".model.json") and "/b/" in path)
for path in story.served:
    if "targets/b/" in path:
        story.served[path] = old
story.step(versions={"targets": 3}, targets={"a/model.json": "verified", "b/model.json": "Content"})
story.write()
