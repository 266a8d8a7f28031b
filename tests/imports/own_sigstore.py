"""A Sigstore of our own: certificate authority (Fulcio), certificate transparency log, Rekor in
its first and its second version, timestamp authority. Imported by keyless.py."""

import base64
import datetime
import hashlib
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
ISSUER = "https://id.example"
SUBJECT = "releases@acme.example"
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
SIGNED = NOW - datetime.timedelta(hours=1)
MINUTE, DAY = datetime.timedelta(minutes=1), datetime.timedelta(days=1)


def b64(data):
    return base64.b64encode(data).decode()


def sha256(data):
    return hashlib.sha256(data).digest()


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def spki(key):
    return key.public_key().public_bytes(DER, SPKI)


def signature(key, message):
    """With the hash that belongs to the curve."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    size = {256: hashes.SHA256, 384: hashes.SHA384}[key.curve.key_size]
    return key.sign(message, ec.ECDSA(size()))


def p256():
    return ec.generate_private_key(ec.SECP256R1())


# --- DER, for what `cryptography` does not write ---

def der(tag, *parts):
    body = b"".join(parts)
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def oid(text):
    first, second, *rest = map(int, text.split("."))
    out = bytes([first * 40 + second])
    for number in rest:
        septets = [number & 0x7F]
        while number := number >> 7:
            septets.append(number & 0x7F | 0x80)
        out += bytes(reversed(septets))
    return der(0x06, out)


def integer(number):
    return der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


# --- Authorities ---

def certificate(name, key, issuer, issuer_key, start, end, ca, usage=None):
    named = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sigstore.test"),
                       x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(named).issuer_name(issuer or named)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(start).not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False),
                       critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(
            issuer_key.public_key()), False))
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=not ca)
    return builder.sign(issuer_key, hashes.SHA384())


class Chain:
    """A root and one certificate below it."""

    def __init__(self, name, ca, usage):
        start, end = NOW - 30 * DAY, NOW + 30 * DAY
        self.root_key, self.key = ec.generate_private_key(ec.SECP384R1()), p256()
        self.root = certificate(f"{name} root", self.root_key, None, self.root_key, start, end,
                                True)
        self.certificate = certificate(name, self.key, self.root.subject, self.root_key, start,
                                       end, ca, usage)

    def trusted(self, uri, start=NOW - 30 * DAY, end=None):
        ders = [c.public_bytes(DER) for c in (self.certificate, self.root)]
        return {"uri": uri, "validFor": period(start, end),
                "subject": {"organization": "sigstore.test", "commonName": uri},
                "certChain": {"certificates": [{"rawBytes": b64(d)} for d in ders]}}


def period(start, end):
    times = {"start": start, "end": end}
    return {k: t.strftime("%Y-%m-%dT%H:%M:%SZ") for k, t in times.items() if t}


class Log:
    """A log's key, and what a trusted root says of it."""

    def __init__(self, url, key=None, id=None):
        self.url, self.key = url, key or p256()
        self.id = id or sha256(spki(self.key))

    def trusted(self, start=NOW - 30 * DAY, end=None):
        kind = ("PKIX_ED25519" if isinstance(self.key, ed25519.Ed25519PrivateKey)
                else "PKIX_ECDSA_P256_SHA_256")
        return {"baseUrl": self.url, "hashAlgorithm": "SHA2_256", "logId": {"keyId": b64(self.id)},
                "publicKey": {"rawBytes": b64(spki(self.key)), "keyDetails": kind,
                              "validFor": period(start, end)}}

    def promise(self, precertificate, issuer_key, extensions=b""):
        """A list of one signed certificate timestamp (RFC 6962, 3.2)."""
        at = int(SIGNED.timestamp() * 1000).to_bytes(8, "big")
        size = len(extensions).to_bytes(2, "big")
        signed = signature(self.key, b"\0\0" + at + b"\0\1" + sha256(issuer_key)
                           + len(precertificate).to_bytes(3, "big") + precertificate + size
                           + extensions)
        promise = (b"\0" + self.id + at + size + extensions + b"\4\3"
                   + len(signed).to_bytes(2, "big") + signed)
        promise = len(promise).to_bytes(2, "big") + promise
        return der(0x04, len(promise).to_bytes(2, "big") + promise)

    def entry(self, body, kind, version, signer=None, promised=True, integrated=SIGNED,
              others=(b"a", b"b", b"c", b"d"), origin=None):
        """The body as the last but one of a few entries, with all that the log says of it."""
        signer = signer or self.key
        body = canonical(body)
        leaves = [*others, body, b"e"]
        index = len(others)
        root, way = merkle([sha256(b"\0" + leaf) for leaf in leaves], index)
        note = f"{origin or self.url[8:] + ' - 42'}\n{len(leaves)}\n{b64(root)}\n"
        signed = b64(self.id[:4] + signature(signer, note.encode()))
        entry = {
            "logIndex": str(1000 + index), "logId": {"keyId": b64(self.id)},
            "kindVersion": {"kind": kind, "version": version},
            "canonicalizedBody": b64(body),
            "inclusionProof": {
                "logIndex": str(index), "treeSize": str(len(leaves)), "rootHash": b64(root),
                "hashes": [b64(h) for h in way],
                "checkpoint": {"envelope": f"{note}\n\u2014 {self.url[8:]} {signed}\n"}},
        }
        if promised:
            time = int(integrated.timestamp())
            said = canonical({"body": b64(body), "integratedTime": time, "logID": self.id.hex(),
                              "logIndex": 1000 + index})
            entry["integratedTime"] = str(time)
            entry["inclusionPromise"] = {"signedEntryTimestamp": b64(signature(signer, said))}
        return entry


def merkle(hashes_, index):
    """The root of a tree (RFC 6962, 2.1), and the way from one leaf to it."""
    if len(hashes_) == 1:
        return hashes_[0], []
    half = 1 << (len(hashes_) - 1).bit_length() - 1
    left, right = hashes_[:half], hashes_[half:]
    inside, outside = (left, right) if index < half else (right, left)
    root, way = merkle(inside, index % half if index < half else index - half)
    other = merkle(outside, 0)[0]
    pair = (root, other) if index < half else (other, root)
    return sha256(b"\1" + b"".join(pair)), way + [other]


def leaf(key, authority, ct, subject=None, issuer=ISSUER, old_issuer=ISSUER, code_signing=True,
         start=SIGNED - MINUTE, promise_key=None):
    """A signer's certificate for ten minutes, with the log's promise in it."""
    names = subject or [x509.RFC822Name(SUBJECT)]
    builder = (
        x509.CertificateBuilder().subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start).not_valid_after(start + 10 * MINUTE)
        .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(
            authority.key.public_key()), False))
    if code_signing:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    said = [("1.3.6.1.4.1.57264.1.1", old_issuer and old_issuer.encode()),
            ("1.3.6.1.4.1.57264.1.8", issuer and der(0x0C, issuer.encode()))]
    for name, value in said:
        if value:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(name), value), critical=False)
    before = builder.sign(authority.key, hashes.SHA256())
    if ct is None:
        return before
    promise = ct.promise(before.tbs_certificate_bytes, promise_key or spki(authority.key))
    name = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
    return builder.add_extension(x509.UnrecognizedExtension(name, promise), critical=False).sign(
        authority.key, hashes.SHA256())


def timestamp(authority, message, at=SIGNED):
    """A TimeStampResp of RFC 3161."""
    digest = der(0x30, oid("2.16.840.1.101.3.4.2.1"))
    info = der(0x30, integer(1), oid("1.3.6.1.4.1.57264.2"),
               der(0x30, digest, der(0x04, sha256(message))), integer(7),
               der(0x18, at.strftime("%Y%m%d%H%M%SZ").encode()))
    signer = authority.certificate
    named = der(0x30, der(0x30, der(0x30, der(0x04, sha256(signer.public_bytes(DER))))))
    attributes = b"".join(sorted(
        der(0x30, oid(f"1.2.840.113549.1.9.{name}"), der(0x31, value)) for name, value in (
            ("3", oid("1.2.840.113549.1.9.16.1.4")), ("4", der(0x04, sha256(info))),
            ("16.2.47", named))))
    signed = signature(authority.key, der(0x31, attributes))
    who = der(0x30, signer.issuer.public_bytes(), integer(signer.serial_number))
    data = der(0x30, integer(3), der(0x31, digest),
               der(0x30, oid("1.2.840.113549.1.9.16.1.4"), der(0xA0, der(0x04, info))),
               der(0x31, der(0x30, integer(1), who, digest, der(0xA0, attributes),
                             der(0x30, oid("1.2.840.10045.4.3.2")), der(0x04, signed))))
    return der(0x30, der(0x30, integer(0)),
               der(0x30, oid("1.2.840.113549.1.7.2"), der(0xA0, data)))
