"""Freeze: the attacker keeps serving what was the newest once, so that fixes never arrive."""

from repository import Story, day

story = Story()
story.add("app/model.json", b"vulnerable")
story.publish_all()
story.step(at=0, versions={"timestamp": 1}, targets={"app/model.json": "verified"})

# Within its time that cannot be told from a quiet repository; after it, it can.
story.step(at=9)
story.step(at=10, refused="Expired", versions={"timestamp": 1})
story.step(at=3650, refused="Expired")

# Nothing here carries a signed time, so a clock that was set right again is believed.
story.step(at=0)

# Each role's own end counts, under a fresh timestamp too.
story.timestamp.expires = day(5000)
story.publish("timestamp")
story.step(at=100, refused="Expired", versions={"timestamp": 2, "snapshot": 1})
story.snapshot.expires = day(5000)
story.publish("snapshot", "timestamp")
story.step(at=365, refused="Expired", versions={"timestamp": 3, "snapshot": 2})
story.roles["targets"].expires = day(5000)
story.publish("targets", "snapshot", "timestamp")
story.step(at=999, versions={"timestamp": 4, "snapshot": 3, "targets": 2})
story.step(at=1000, refused="Expired")

# An expired root is no dead end: its successor is taken all the same.
story.root.expires = day(5000)
story.publish("root")
story.step(at=1000, versions={"root": 2})
story.write()
