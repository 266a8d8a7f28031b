"""Extraneous delegation: a role names targets that nobody delegated to it."""

from repository import Story

story = Story()
story.delegate("targets", "team/a", ["a/*"])
story.delegate("targets", "last", ["*/*"])
story.add("a/model.json", b"made by a", role="team/a")
story.add("c/model.json", b"by whoever is last", role="last")
# Team a names what is not its own.
story.add("b/model.json", b"not a's to say", role="team/a")
story.add("a/deep/model.json", b"a star crosses no slash", role="team/a")
# ...and delegates what it does not have.
story.delegate("team/a", "friend", ["a/*", "b/*", "d/*"])
story.add("d/model.json", b"not the friend's to say", role="friend")
story.add("a/friend.json", b"the friend's, through a", role="friend")
story.publish_all()
expected = {
    "a/model.json": "verified",
    "a/friend.json": "verified",
    "c/model.json": "verified",
    "b/model.json": "unknown",
    "a/deep/model.json": "unknown",
    "d/model.json": "unknown",
    "nothing": "unknown",
}
story.step(targets=expected, versions={"team/a": 1, "last": 1, "friend": 1})

# The first in order wins, and a terminating one ends the search.
story.add("a/model.json", b"the last one's own idea", role="last")
story.publish_all()
story.step(targets={"a/model.json": "verified"})
story.delegate("targets", "closed", ["c/*"], terminating=True)
roles = story.roles["targets"].delegations.roles
story.roles["targets"].delegations.roles = {
    name: roles[name] for name in ("closed", "team/a", "last")
}
story.publish_all()
story.step(targets={"c/model.json": "unknown", "a/model.json": "verified"})

# A cycle of delegations ends.
story.delegate("friend", "team/a", ["*/*", "a/*"])
story.publish_all()
story.step(targets={"a/model.json": "verified", "a/absent.json": "unknown"})

# A delegated role that the snapshot does not list is not looked for elsewhere.
story.delegate("targets", "unlisted", ["e/*"])
story.publish("targets", "snapshot", "timestamp")
story.step(names={"e/model.json": "NotInSnapshot"})

# A role that was listed must stay so.
del story.snapshot.meta["friend.json"]
story.publish("snapshot", "timestamp")
story.step(refused="Removed")
story.write()
