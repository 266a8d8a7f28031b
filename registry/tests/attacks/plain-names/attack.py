"""A repository without consistent snapshots: files are replaced in place, and so are targets."""

from securesystemslib.signer import CryptoSigner

from repository import Story

# Signatures of one length each, so that replaced files have it too.
story = Story(snapshot_signer=CryptoSigner.generate_ed25519(), consistent=False)
story.delegate("targets", "team/a", ["a/*"])
story.add("a/model.json", b"made by a", role="team/a")
story.add("own.json", b"the owner's")
story.publish_all()
verified = {"a/model.json": "verified", "own.json": "verified"}
story.step(targets=verified, versions={"targets": 1, "team/a": 1})
before = dict(story.served)

# In the middle of an update: the new targets lie there, the old snapshot still names the old ones.
story.add("own.json", b"THE OWNER'S")
story.publish_all()
after = dict(story.served)
story.served = {**after, **{n: before[n] for n in ("metadata/snapshot.json", "metadata/timestamp.json")}}
story.step(targets={"a/model.json": "verified", "own.json": "Content"})
# A new timestamp over the old snapshot.
story.served = {**after, "metadata/snapshot.json": before["metadata/snapshot.json"]}
story.step(refused="Content", versions={"snapshot": 1})
# A new snapshot over the old targets, and over those of a team.
story.served = {**after, "metadata/targets.json": before["metadata/targets.json"]}
story.step(refused="Content", versions={"timestamp": 2, "snapshot": 2})
story.served = {**after, "metadata/team%2Fa.json": before["metadata/team%2Fa.json"]}
story.step(targets={"own.json": "verified"}, names={"a/model.json": "Content"})
# The new metadata over the old target.
story.served = {**after, "targets/own.json": before["targets/own.json"]}
story.step(targets={"a/model.json": "verified", "own.json": "Content"})
story.served = after
story.step(targets=verified, versions={"targets": 2, "team/a": 2})
# All of it put back.
story.served = before
story.step(refused="Rollback", versions={"timestamp": 2, "targets": 2})
story.write()
