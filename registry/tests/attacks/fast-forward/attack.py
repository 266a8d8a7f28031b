"""Fast-forward: with stolen online keys, the attacker raises versions so far that the owner's own
would be refused as rollbacks ever after. Rotating the keys must bring the repository back."""

from repository import Story

FAR = 2**53

story = Story()
story.add("app/model.json", b"model")
story.publish_all()
story.step(versions={"timestamp": 1, "snapshot": 1, "targets": 1})

# With the timestamp's and the snapshot's keys.
story.snapshot.version = story.timestamp.version = FAR
story.publish("snapshot", "timestamp")
story.step(versions={"timestamp": FAR + 1, "snapshot": FAR + 1})

# The owner's next version, under the same keys, is refused.
story.snapshot.version = story.timestamp.version = 1
story.publish("snapshot", "timestamp")
story.step(refused="Rollback", versions={"timestamp": FAR + 1})

# Rotation undoes it, and the stolen keys are worth nothing any more.
stolen = {role: story.rotate(role) for role in ("snapshot", "timestamp")}
story.publish("root")
story.publish("snapshot", "timestamp", bump=False)
recovered = {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 1}
story.step(versions=recovered, targets={"app/model.json": "verified"})
honest = dict(story.served)
story.timestamp.version = FAR
story.publish("timestamp", signers=stolen["timestamp"])
story.step(refused="Signatures", versions=recovered)

# The targets' version, raised with the snapshot key: rotating that key alone undoes it.
story.served, story.timestamp.version = honest, 2
story.roles["targets"].version = FAR
story.publish("targets", "snapshot", "timestamp")
story.step(versions={"root": 2, "targets": FAR + 1})
story.roles["targets"].version = 1
story.rotate("snapshot")
story.publish("root", "targets", "snapshot", "timestamp")
story.step(versions={"root": 3, "targets": 2}, targets={"app/model.json": "verified"})

# A version beyond what can be counted is no version.
story.timestamp.version = 2**63
story.publish("timestamp", bump=False)
story.step(refused="Parse", versions={"root": 3})
story.write()
