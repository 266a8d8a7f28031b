"""Signs as a publisher would, with the `model-signing` package.

    sign.py DIR FILE [FOLDER]

makes in DIR: FILE signed with a key (key.sig, key.pem) and with a certificate below a root
(chain.sig, root.pem); a bundle over a folder with FILE in it (folder.sig); a key that signed
nothing (other.pem); the key's bundle with one bit of its payload changed (changed.sig); a bundle
as keyless signing makes it (keyless.sig); a bundle over FOLDER (given.sig).
"""

import base64
import datetime
import json
import shutil
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from model_signing import hashing, signing

place, model = Path(sys.argv[1]), Path(sys.argv[2])
PEM = serialization.Encoding.PEM


def secret(name, curve):
    key = ec.generate_private_key(curve)
    (place / f"{name}.secret").write_bytes(key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    (place / f"{name}.pem").write_bytes(key.public_key().public_bytes(
        PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return key


def certificate(name, subject_key, issuer, issuer_key, is_ca):
    now = datetime.datetime.now(datetime.timezone.utc)
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(named).issuer_name(issuer or named)
        .public_key(subject_key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False,
                                     False), critical=True))
    if not is_ca:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


secret("key", ec.SECP256R1())
secret("other", ec.SECP256R1())
signing.Config().use_elliptic_key_signer(private_key=place / "key.secret").sign(
    model, place / "key.sig")

folder = place / "folder"
folder.mkdir()
shutil.copy(model, folder / "tiny-Q8_0.gguf")
(folder / "README.md").write_bytes(b"A tiny model.\n")
signing.Config().use_elliptic_key_signer(private_key=place / "key.secret").sign(
    folder, place / "folder.sig")

for given in sys.argv[3:]:
    signing.Config().use_elliptic_key_signer(private_key=place / "key.secret").sign(
        Path(given), place / "given.sig")

root_key, leaf_key = secret("ca", ec.SECP384R1()), secret("leaf", ec.SECP384R1())
root = certificate("Acme root", root_key, None, root_key, True)
leaf = certificate("Acme models", leaf_key, root.subject, root_key, False)
(place / "root.pem").write_bytes(root.public_bytes(PEM))
(place / "leaf.crt").write_bytes(leaf.public_bytes(PEM))
signing.Config().use_certificate_signer(
    private_key=place / "leaf.secret", signing_certificate=place / "leaf.crt",
    certificate_chain=[place / "root.pem"]).sign(model, place / "chain.sig")

bundle = json.loads((place / "key.sig").read_text())
payload = bytearray(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
payload[len(payload) // 2] ^= 1
bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
(place / "changed.sig").write_text(json.dumps(bundle))
bundle = json.loads((place / "key.sig").read_text())
bundle["verificationMaterial"] = {
    "certificate": {"rawBytes": base64.b64encode(leaf.public_bytes(
        serialization.Encoding.DER)).decode()}, "tlogEntries": []}
(place / "keyless.sig").write_text(json.dumps(bundle))
