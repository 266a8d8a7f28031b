"""Signs keyless, with a Sigstore of our own (own_sigstore.py), as publishers and as attackers do.

    keyless.py DIR FILE

makes in DIR: trusted roots (*.json), and bundles over FILE (*.sig): those whose names begin with
`good` hold under `root.json`, each of the others has one thing wrong with it. The `sigstore`
package verifies the good ones of the kinds that it knows, before anybody else does.
"""

import base64
import copy
import json
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from model_signing import signing
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier, policy

from own_sigstore import (DAY, DER, ISSUER, MINUTE, NOW, SIGNED, SUBJECT, Chain, Log, b64, der,
                           leaf, p256, sha256, signature, timestamp)

place, model = Path(sys.argv[1]), Path(sys.argv[2])
PAYLOAD_TYPE = "application/vnd.in-toto+json"
V01, V02 = (f"application/vnd.dev.sigstore.bundle+json;version=0.{n}" for n in (1, 2))
V03 = "application/vnd.dev.sigstore.bundle.v0.3+json"

fulcio = Chain("fulcio", True, ExtendedKeyUsageOID.CODE_SIGNING)
stranger = Chain("fulcio", True, ExtendedKeyUsageOID.CODE_SIGNING)
authority = Chain("timestamps", False, ExtendedKeyUsageOID.TIME_STAMPING)
other_authority = Chain("timestamps", False, ExtendedKeyUsageOID.TIME_STAMPING)
ctfe, other_ctfe = Log("https://ctfe.test"), Log("https://ctfe.test")
rekor = Log("https://rekor.test")
key_2 = ed25519.Ed25519PrivateKey.generate()
raw_2 = key_2.public_key().public_bytes(serialization.Encoding.Raw,
                                        serialization.PublicFormat.Raw)
rekor_2 = Log("https://rekor2.test", key_2, sha256(b"rekor2.test\n\x01" + raw_2))


def statement(of):
    """What the `model-signing` package says of a model, whoever signs it."""
    key, out = place / "throwaway.key", place / "throwaway.sig"
    key.write_bytes(p256().private_bytes(serialization.Encoding.PEM,
                                         serialization.PrivateFormat.PKCS8,
                                         serialization.NoEncryption()))
    signing.Config().use_elliptic_key_signer(private_key=key).sign(of, out)
    envelope = json.loads(out.read_text())["dsseEnvelope"]
    out.unlink()
    return base64.b64decode(envelope["payload"])


def encoded(payload):
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def body(kind, version, payload, signed, certificate):
    """What a log is told of an envelope."""
    ders = certificate.public_bytes(DER)
    pem = b64(certificate.public_bytes(serialization.Encoding.PEM))
    raw = {"content": b64(signed), "verifier": {
        "keyDetails": "PKIX_ECDSA_P256_SHA_256", "x509Certificate": {"rawBytes": b64(ders)}}}
    hexed = {"algorithm": "sha256", "value": sha256(payload).hex()}
    spec = {
        "dsse 0.0.1": {"envelopeHash": hexed, "payloadHash": hexed,
                       "signatures": [{"signature": b64(signed), "verifier": pem}]},
        "intoto 0.0.2": {"content": {"hash": hexed, "payloadHash": hexed, "envelope": {
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"publicKey": pem, "sig": b64(b64(signed).encode())}]}}},
        "dsse 0.0.2": {"dsseV002": {
            "payloadHash": {"algorithm": "SHA2_256", "digest": b64(sha256(payload))},
            "signatures": [raw]}},
        "hashedrekord 0.0.2": {"hashedRekordV002": {
            "data": {"algorithm": "SHA2_256", "digest": b64(sha256(encoded(payload)))},
            "signature": raw}},
        "hashedrekord 0.0.1": {},
    }[f"{kind} {version}"]
    return {"apiVersion": version, "kind": kind, "spec": spec}


def bundle(name, media_type=V03, kind="dsse", version="0.0.1", key=None, log=rekor, stamped=None,
           payload=None, logged=None, with_chain=False, log_signer=None, integrated=SIGNED,
           chain_more=(), **certified):
    """Writes NAME.sig. `logged` is what the log entry is made of where that is something else."""
    payload, key = payload or PAYLOAD, key or p256()
    given = {"authority": fulcio, "ct": ctfe, **certified}
    certificate = leaf(key, **given)
    signed = signature(key, encoded(payload))
    second = log is rekor_2
    entry = log.entry(logged or body(kind, version, payload, signed, certificate), kind, version,
                      signer=log_signer, promised=not second, integrated=integrated,
                      origin="rekor2.test" if second else None)
    raw = {"rawBytes": b64(certificate.public_bytes(DER))}
    material = {"tlogEntries": [entry]}
    if media_type == V03 and not with_chain:
        material["certificate"] = raw
    else:
        more = [{"rawBytes": b64(c.public_bytes(DER))} for c in chain_more]
        material["x509CertificateChain"] = {"certificates": [raw, *more]}
    if stamped:
        stamps = [{"signedTimestamp": b64(stamped(signed))}]
        material["timestampVerificationData"] = {"rfc3161Timestamps": stamps}
    value = {"mediaType": media_type, "verificationMaterial": material, "dsseEnvelope": {
        "payload": b64(payload), "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": b64(signed)}]}}
    write(name, value)
    return value


def write(name, value):
    (place / f"{name}.sig").write_text(json.dumps(value))


def changed(name, value, change):
    """The bundle with one thing changed after the fact."""
    value = copy.deepcopy(value)
    change(value, value["verificationMaterial"]["tlogEntries"][0])
    write(name, value)


def root(name, **other):
    value = {
        "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
        "tlogs": [rekor.trusted(), rekor_2.trusted()],
        "certificateAuthorities": [fulcio.trusted("https://fulcio.test")],
        "ctlogs": [ctfe.trusted()],
        "timestampAuthorities": [authority.trusted("https://timestamps.test")], **other}
    (place / f"{name}.json").write_text(json.dumps(value))


(place / "other").write_bytes(b"another model")
PAYLOAD = statement(model)
root("root")
root("old-ca", certificateAuthorities=[fulcio.trusted("https://fulcio.test", end=NOW - DAY)])
root("old-log", tlogs=[rekor.trusted(end=NOW - DAY)])
root("old-ctlog", ctlogs=[ctfe.trusted(end=NOW - DAY)])
root("other-ctlog", ctlogs=[other_ctfe.trusted()])
root("no-timestamps", timestampAuthorities=[])

# What publishers make.
second = {"log": rekor_2, "stamped": lambda signed: timestamp(authority, signed)}
good = bundle("good-dsse")
good_2 = bundle("good-hashedrekord-2", kind="hashedrekord", version="0.0.2", **second)
bundle("good-dsse-2", kind="dsse", version="0.0.2", **second)
bundle("good-intoto", V02, "intoto", "0.0.2")
promised = bundle("good-promised", V01)
del promised["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]
write("good-promised", promised)
bundle("good-p384", key=ec.generate_private_key(ec.SECP384R1()))
bundle("good-ed25519", key=ed25519.Ed25519PrivateKey.generate())
bundle("good-old-issuer", issuer=None)
bundle("good-new-issuer", old_issuer=None)
bundle("good-stamped", stamped=second["stamped"])
bundle("workflow", subject=[x509.UniformResourceIdentifier(
    "https://forge.example/acme/models/.workflows/release.yml@refs/tags/v1")])
bundle("user", subject=[x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7"),
                                       der(0x0C, b"pump!acme.example"))])
verifier = Verifier(trusted_root=TrustedRoot.from_file(str(place / "root.json")))
for name in ("good-dsse", "good-hashedrekord-2", "good-stamped"):
    verifier.verify_dsse(Bundle.from_json((place / f"{name}.sig").read_text()),
                         policy.Identity(identity=SUBJECT, issuer=ISSUER))

# What attackers make.
bundle("other-issuer", issuer="https://evil.example", old_issuer=None)
bundle("two-issuers", old_issuer="https://evil.example")
bundle("two-names", subject=[x509.RFC822Name(SUBJECT), x509.RFC822Name("evil@evil.example")])
bundle("expired", integrated=SIGNED + 20 * MINUTE)
bundle("too-early", integrated=SIGNED - 20 * MINUTE)
bundle("future", integrated=NOW + 2 * DAY, start=NOW + 2 * DAY - MINUTE)
bundle("stranger", authority=stranger)
bundle("no-purpose", code_signing=False)
bundle("not-logged", ct=None)
bundle("other-ct", ct=other_ctfe)
bundle("ct-of-another", promise_key=b"another authority's key")
bundle("log-signed-by-another", log_signer=p256())
bundle("unknown-log", log=Log("https://rekor.test"))
bundle("root-in-bundle", V02, chain_more=[fulcio.root])
bundle("chain-in-3", with_chain=True)
bundle("no-time", kind="hashedrekord", version="0.0.2", log=rekor_2)
bundle("time-of-another", **{**second, "stamped": lambda _: timestamp(authority, b"other")},
       kind="hashedrekord", version="0.0.2")
bundle("time-by-another", **{**second, "stamped": lambda s: timestamp(other_authority, s)},
       kind="hashedrekord", version="0.0.2")
bundle("time-too-late", kind="hashedrekord", version="0.0.2", log=rekor_2,
       stamped=lambda signed: timestamp(authority, signed, SIGNED + 20 * MINUTE))
# Each of two times must fit.
bundle("second-time-too-late",
       stamped=lambda signed: timestamp(authority, signed, SIGNED + 20 * MINUTE))
bundle("kind-of-files", kind="hashedrekord", version="0.0.1")

# Entries of something else, with all their proofs.
elsewhere = bundle("elsewhere", payload=statement(place / "other"))
entry_elsewhere = elsewhere["verificationMaterial"]["tlogEntries"][0]
changed("entry-of-another", good,
        lambda bundle, _: bundle["verificationMaterial"].update(tlogEntries=[entry_elsewhere]))
certificate = x509.load_der_x509_certificate(
    base64.b64decode(good["verificationMaterial"]["certificate"]["rawBytes"]))
signed = base64.b64decode(good["dsseEnvelope"]["signatures"][0]["sig"])


def relogged(name, **other):
    """The good bundle with an entry that differs in one thing, rightly logged."""
    parts = {"payload": PAYLOAD, "signed": signed, "certificate": certificate, **other}
    logged = rekor.entry(body("dsse", "0.0.1", **parts), "dsse", "0.0.1")
    changed(name, good,
            lambda bundle, _: bundle["verificationMaterial"].update(tlogEntries=[logged]))


relogged("entry-of-another-payload", payload=b"{}")
relogged("entry-of-another-signature", signed=b"other")
relogged("entry-of-another-certificate", certificate=fulcio.certificate)

# Changed on the way.
proof = "inclusionProof"
changed("tampered", good, lambda bundle, _: bundle["dsseEnvelope"].update(
    payload=b64(PAYLOAD.replace(b"sha256", b"sha257", 1))))
changed("wrong-proof", good, lambda _, e: e[proof]["hashes"].__setitem__(0, b64(bytes(32))))
changed("short-proof", good, lambda _, e: e[proof]["hashes"].pop())
changed("other-index", good, lambda _, e: e[proof].update(logIndex="1"))
changed("outside-tree", good, lambda _, e: e[proof].update(logIndex="9"))
changed("other-tree", good, lambda _, e: e[proof].update(treeSize="7"))
changed("no-checkpoint", good, lambda _, e: e[proof].pop("checkpoint"))
changed("no-proof", good, lambda _, e: e.pop(proof))
changed("later", good, lambda _, e: e.update(integratedTime=str(int(e["integratedTime"]) + 1)))
# A time that the log has not signed is none.
changed("unsigned-time", good, lambda _, e: e.pop("inclusionPromise"))
changed("other-kind", good, lambda _, e: e["kindVersion"].update(version="0.0.2"))
changed("no-entry", good, lambda bundle, _: bundle["verificationMaterial"].update(tlogEntries=[]))
changed("newer", good, lambda bundle, _: bundle.update(mediaType=V03.replace("0.3", "0.9")))
