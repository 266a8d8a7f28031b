"""A TUF repository made with python-tuf, for the attacks in the folders beside this file.

Each `attack.py` builds a repository, serves it in steps, and says what the client must make of each
step. `Story.write()` leaves, in the folder given on the command line: `root.json`, the first trusted
root; one folder per step with `metadata/` and `targets/`; and `steps.json`.

Keys are of all three kinds that clients must know: RSA-PSS for the root, ECDSA P-256 for the
snapshot, Ed25519 for the rest.
"""

import copy
import hashlib
import json
import os
import sys
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

# Every story begins at this time; steps give theirs in days from it.
START = datetime(2030, 1, 1, tzinfo=timezone.utc)


def day(days):
    return START + timedelta(days=days)


class Story:
    """The repository and the steps of one attack."""

    def __init__(self, snapshot_signer=None, consistent=True):
        self.signers = {
            "root": [CryptoSigner.generate_rsa(size=2048)],
            "timestamp": [CryptoSigner.generate_ed25519()],
            "snapshot": [snapshot_signer or CryptoSigner.generate_ecdsa()],
            "targets": [CryptoSigner.generate_ed25519()],
        }
        self.root = Root(expires=day(1000), consistent_snapshot=consistent)
        for role, signers in self.signers.items():
            for signer in signers:
                self.root.add_key(signer.public_key, role)
        self.roles = {"targets": Targets(expires=day(365))}
        self.snapshot = Snapshot(expires=day(100))
        self.timestamp = Timestamp(expires=day(10))
        # Roles published so far: the next version of those counts up.
        self.published = set()
        # What a step serves: path below the step's folder, and bytes.
        self.served = {}
        self.steps = []

    # -- making

    def delegate(self, parent, name, paths=None, terminating=False, prefixes=None):
        """`parent` delegates `paths`, or the paths whose SHA-256 begins with one of `prefixes`, to
        `name`, which gets a key of its own."""
        signer = CryptoSigner.generate_ed25519()
        delegator = self.roles[parent]
        if delegator.delegations is None:
            delegator.delegations = Delegations({}, roles={})
        delegator.delegations.roles[name] = DelegatedRole(
            name, [], 1, terminating, paths, prefixes
        )
        delegator.add_key(signer.public_key, name)
        self.signers.setdefault(name, []).append(signer)
        if name not in self.roles:
            self.roles[name] = Targets(expires=day(365))

    def add(self, path, data, role="targets"):
        """`role` names the target `path` with `data`."""
        target = TargetFile.from_data(path, data, ["sha256", "sha512"])
        self.roles[role].targets[path] = target
        self.serve_target(path, data, target.hashes["sha256"])

    def serve_target(self, path, data, sha256):
        folder, _, base = path.rpartition("/")
        name = f"{sha256}.{base}" if self.root.consistent_snapshot else base
        self.served[os.path.join("targets", folder, name)] = data

    def sign(self, role, body, signers=None):
        """The bytes of a metadata file."""
        metadata = Metadata(copy.deepcopy(body))
        for signer in signers if signers is not None else self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes(JSONSerializer())

    def publish(self, *roles, bump=True, signers=None):
        """New versions of `roles`, in the order given."""
        for role in roles:
            body = getattr(self, role) if role in ("root", "snapshot", "timestamp") else self.roles[role]
            if bump and role in self.published:
                body.version += 1
            self.published.add(role)
            data = self.sign(role, body, signers)
            versioned = role == "root" or (role != "timestamp" and self.root.consistent_snapshot)
            name = f"{body.version}.{quote(role, '')}.json" if versioned else f"{quote(role, '')}.json"
            self.served[f"metadata/{name}"] = data
            if role == "snapshot":
                self.timestamp.snapshot_meta = self.meta(body.version, data)
            elif role not in ("root", "timestamp"):
                self.snapshot.meta[f"{role}.json"] = self.meta(body.version, data)

    def publish_all(self):
        """New versions of everything but the root, and the first root if there is none."""
        if "root" not in self.published:
            self.publish("root")
        delegated = [role for role in self.roles if role != "targets"]
        self.publish(*delegated, "targets", "snapshot", "timestamp")

    @staticmethod
    def meta(version, data):
        return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def rotate(self, role):
        """Another key for a top-level role; the old signers are returned."""
        old = self.signers[role]
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519()]
        self.root.add_key(self.signers[role][0].public_key, role)
        return old

    # -- telling

    def step(self, refused=None, at=0, versions=None, targets=None, names=None):
        """The client refreshes from what is served now, at day `at`.

        refused: the error's name, or None where the refresh must go through.
        versions: what must be trusted after it, by role.
        targets: for target paths, "verified", or what must happen instead: an error's name,
                 or "unknown" where no role may name it.
        names: the error with which the search for a path must end, by path.
        """
        self.steps.append(
            {
                "served": dict(self.served),
                "at": int(day(at).timestamp()),
                "refused": refused,
                "versions": versions or {},
                "targets": targets or {},
                "names": names or {},
            }
        )

    def write(self):
        out = sys.argv[1]
        steps = []
        for number, step in enumerate(self.steps, 1):
            for path, data in step.pop("served").items():
                path = os.path.join(out, str(number), path)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(data)
            steps.append(step)
        first = self.steps and os.path.join(out, "1", "metadata", "1.root.json")
        with open(first, "rb") as source, open(os.path.join(out, "root.json"), "wb") as file:
            file.write(source.read())
        with open(os.path.join(out, "steps.json"), "w") as file:
            json.dump(steps, file, indent=1)
