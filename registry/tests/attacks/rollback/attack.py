"""Rollback: the attacker serves metadata that was valid once, and is older than what is trusted."""

from repository import Story

story = Story()
story.add("app/model.json", b"old and vulnerable")
story.publish_all()
old = dict(story.served)

story.add("app/model.json", b"new and sound")
story.publish_all()
new = {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
story.step(versions=new, targets={"app/model.json": "verified"})

# All of yesterday's repository.
story.served = old
story.step(refused="Rollback", versions=new)

# A fresh timestamp over an older snapshot.
story.served = dict(old)
story.snapshot.version = 1
story.publish("snapshot", bump=False)
story.publish("timestamp")
story.step(refused="Rollback", versions=new)

# A fresh snapshot that lists older targets: only the trusted snapshot knows better.
story.roles["targets"].version = 1
del story.roles["targets"].targets["app/model.json"]
story.publish("targets", bump=False)
story.publish("snapshot", "timestamp")
story.step(refused="Rollback", versions={"root": 1, "snapshot": 2, "targets": 2})

# A root is never skipped and never repeated.
story.root.version = 2
story.publish("root")
story.served["metadata/2.root.json"] = story.served.pop("metadata/3.root.json")
story.step(refused="RootVersion", versions={"root": 1})
story.write()
