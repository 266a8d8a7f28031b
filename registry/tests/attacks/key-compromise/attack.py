"""Key compromise: the attacker holds some keys, but never enough of them."""

import json

from repository import Story
from securesystemslib.signer import CryptoSigner

story = Story()
# Targets need two of three, the root two of two.
story.signers["targets"] = [CryptoSigner.generate_ed25519() for _ in range(3)]
story.root.roles["targets"].keyids = []
for signer in story.signers["targets"]:
    story.root.add_key(signer.public_key, "targets")
story.root.roles["targets"].threshold = 2
story.signers["root"].append(CryptoSigner.generate_ecdsa())
story.root.add_key(story.signers["root"][1].public_key, "root")
story.root.roles["root"].threshold = 2
story.add("app/model.json", b"model")
story.publish_all()
honest = dict(story.served)
story.step(versions={"root": 1, "targets": 1}, targets={"app/model.json": "verified"})

# One of the targets' keys, and both online keys: new versions, but no new targets.
one = story.signers["targets"][:1]
story.add("app/evil.json", b"evil")
story.publish("targets", signers=one)
story.publish("snapshot", "timestamp")
story.step(refused="Signatures", versions={"root": 1, "snapshot": 2, "targets": 1})

# The same signature twice is no second signature.
def signed_twice(data):
    envelope = json.loads(data)
    (signature,) = envelope["signatures"]
    envelope["signatures"] = [signature, dict(signature)]
    return json.dumps(envelope).encode()


story.publish("targets", signers=one)
name = f"metadata/{story.roles['targets'].version}.targets.json"
story.served[name] = signed_twice(story.served[name])
version = story.roles["targets"].version
story.snapshot.meta["targets.json"] = story.meta(version, story.served[name])
story.publish("snapshot", "timestamp")
story.step(refused="Parse", versions={"targets": 1})

# One of the root's keys does not make a root.
story.publish("root", signers=story.signers["root"][:1])
story.step(refused="Signatures", versions={"root": 1})

# Two of the targets' keys are stolen; the owner takes both out. What they sign from then on is
# worth nothing.
stolen = story.signers["targets"][:2]
for signer in stolen:
    story.root.revoke_key(signer.public_key.keyid, "targets")
story.signers["targets"] = story.signers["targets"][2:] + [CryptoSigner.generate_ed25519()]
story.root.add_key(story.signers["targets"][1].public_key, "targets")
story.root.version = 1
story.publish("root")
del story.roles["targets"].targets["app/evil.json"]
story.publish("targets", "snapshot", "timestamp")
story.step(versions={"root": 2}, targets={"app/model.json": "verified", "app/evil.json": "unknown"})
story.add("app/evil.json", b"evil")
story.publish("targets", signers=stolen)
story.publish("snapshot", "timestamp")
story.step(refused="Signatures", versions={"root": 2})
story.write()
