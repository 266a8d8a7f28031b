"""Delegations by the beginnings of the target paths' hashes, and a role that names what hashes otherwise."""

import hashlib

from repository import Story


def prefix(path, length):
    return hashlib.sha256(path.encode()).hexdigest()[:length]


# Four paths, no two of which begin alike in their first two digits.
paths, seen = [], set()
number = 0
while len(paths) < 4:
    path = f"models/{number}/latest.json"
    number += 1
    if prefix(path, 2) not in seen:
        seen.add(prefix(path, 2))
        paths.append(path)
mine, other, foreign, deep = paths

story = Story()
story.delegate("targets", "bin/a", prefixes=[prefix(mine, 2), prefix(deep, 8)])
story.delegate("targets", "bin/b", prefixes=[prefix(other, 64)])
story.add(mine, b"in a's bin", role="bin/a")
story.add(deep, b"by a longer beginning", role="bin/a")
story.add(other, b"by a whole hash", role="bin/b")
# Bin a names what hashes into another bin, and what hashes into none.
story.add(foreign, b"in nobody's bin", role="bin/a")
story.publish_all()
expected = {mine: "verified", deep: "verified", other: "verified", foreign: "unknown"}
story.step(targets=expected, versions={"bin/a": 1, "bin/b": 1})
story.add(other, b"a's idea of b's model", role="bin/a")
del story.roles["bin/b"].targets[other]
story.publish_all()
story.step(targets={**expected, other: "unknown"})

# The empty beginning is that of every hash: whoever comes last catches all, but for what is closed.
story.delegate("targets", "closed", prefixes=[prefix(other, 2)], terminating=True)
story.delegate("targets", "rest", prefixes=[""])
story.add(foreign, b"what is left", role="rest")
story.add(other, b"closed to the rest", role="rest")
story.publish_all()
story.step(targets={mine: "verified", foreign: "verified", other: "unknown"})

# What a bin delegates on is bounded by the bin.
story.delegate("bin/a", "friend", prefixes=[""])
story.add("models/friend/latest.json", b"not a's to give", role="friend")
inside = next(
    path
    for path in (f"friends/{n}/latest.json" for n in range(100_000))
    if prefix(path, 2) == prefix(mine, 2)
)
story.add(inside, b"the friend's, through a", role="friend")
story.publish_all()
outside = "verified" if prefix("models/friend/latest.json", 2) == prefix(mine, 2) else "unknown"
story.step(targets={inside: "verified", "models/friend/latest.json": outside})
story.write()
