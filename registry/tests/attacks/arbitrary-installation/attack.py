"""Arbitrary installation: the attacker serves what nobody signed."""

import json

from repository import Story
from securesystemslib.signer import CryptoSigner

story = Story()
story.add("app/model.json", b"model")
story.publish_all()
honest = dict(story.served)
all_one = {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
story.step(versions=all_one, targets={"app/model.json": "verified"})

# Other bytes of the same length.
path = next(path for path in honest if path.startswith("targets/"))
story.served[path] = b"evil!"
story.step(targets={"app/model.json": "Content"})

# Metadata signed by a stranger, for each role in turn, under honest ones where that is needed.
stranger = [CryptoSigner.generate_ed25519()]
story.served = dict(honest)
story.publish("root", signers=stranger)
story.step(refused="Signatures", versions=all_one)
story.root.version = 1

story.served = dict(honest)
story.publish("timestamp", signers=stranger)
story.step(refused="Signatures", versions=all_one)

story.publish("snapshot", signers=stranger)
story.publish("timestamp")
story.step(refused="Signatures", versions={"timestamp": 3, "snapshot": 1, "targets": 1})

story.add("app/evil.json", b"evil")
story.publish("targets", signers=stranger)
story.publish("snapshot", "timestamp")
story.step(refused="Signatures", versions={"timestamp": 4, "snapshot": 3, "targets": 1})

# A signature that was cut off, emptied, or put under another key's id.
for change in ("drop", "empty", "other id", "flipped"):
    story.publish("timestamp")
    envelope = json.loads(story.served["metadata/timestamp.json"])
    (signature,) = envelope["signatures"]
    if change == "drop":
        envelope["signatures"] = []
    elif change == "empty":
        signature["sig"] = ""
    elif change == "other id":
        signature["keyid"] = story.signers["targets"][0].public_key.keyid
    else:
        signature["sig"] = ("0" if signature["sig"][0] != "0" else "1") + signature["sig"][1:]
    story.served["metadata/timestamp.json"] = json.dumps(envelope).encode()
    story.step(refused="Signatures", versions={"targets": 1})

# One changed field below a good signature.
story.publish("timestamp")
envelope = json.loads(story.served["metadata/timestamp.json"])
envelope["signed"]["expires"] = "2099-01-01T00:00:00Z"
story.served["metadata/timestamp.json"] = json.dumps(envelope).encode()
story.step(refused="Signatures", versions={"targets": 1})
story.write()
