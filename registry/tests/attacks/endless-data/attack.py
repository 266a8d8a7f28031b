"""Endless data: files that do not end, to fill disks and hold up clients."""

from repository import Story

story = Story()
story.add("app/model.json", b"model")
story.publish_all()
honest = dict(story.served)
nothing = {"root": 1}


def padded(name, length):
    story.served = dict(honest)
    story.served[f"metadata/{name}"] = honest.get(f"metadata/{name}", b"{") + b" " * length


# The first step only hands out the root.
story.served = {"metadata/1.root.json": honest["metadata/1.root.json"]}
story.step(refused="Missing", versions=nothing)

padded("2.root.json", 600_000)
story.step(refused="TooLong", versions=nothing)
padded("timestamp.json", 20_000)
story.step(refused="TooLong", versions=nothing)
# One byte more than the listing role says is too much already.
padded("1.snapshot.json", 1)
story.step(refused="TooLong", versions={"timestamp": 1})
padded("1.targets.json", 1)
story.step(refused="TooLong", versions={"snapshot": 1})

# A target that goes on after its signed length, or stops before it.
story.served = dict(honest)
path = next(path for path in honest if path.startswith("targets/"))
story.served[path] = b"model" + b"!" * 100_000
story.step(versions={"targets": 1}, targets={"app/model.json": "TooLong"})
story.served[path] = b"mode"
story.step(targets={"app/model.json": "Content"})

# Brackets without an end, and a chain of roots without an end.
story.served = dict(honest)
story.served["metadata/timestamp.json"] = b"[" * 16_000
story.step(refused="Parse")
story.served = dict(honest)
for _ in range(300):
    story.publish("root")
story.step(refused="TooManyRoots", versions={"root": 257})
story.step(versions={"root": 301}, targets={"app/model.json": "verified"})
story.write()
