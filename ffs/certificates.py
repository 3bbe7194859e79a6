"""A small certificate authority in a directory: what `[tls]` of a cluster needs, and no more.

Used by `ffs auth ca`; ffs.tls reads what it writes and says what roles are. DIR/ca.crt is the
authority's certificate, which every process needs, DIR/ca.key its secret, which only issuing does:
keep it off the cluster's machines. Keys are ECDSA P-256 and files are written whole or not at all,
secrets with mode 0600. To issue a name again replaces its files; running processes take them up.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ffs.errors import ConfigError, ExistsError
from ffs.seams import SystemClock
from ffs.tls import ROLE_URI, Role

AUTHORITY: Final = "ca"
"""What the authority's own files are called."""
_DAY_S: Final = 86_400
AUTHORITY_TTL_S: Final = 3_650 * _DAY_S
CERTIFICATE_TTL_S: Final = 365 * _DAY_S
_TTL_S_MAX: Final = 36_500 * _DAY_S
_CLOCK_SLACK: Final = datetime.timedelta(hours=1)
"""Certificates are good since an hour ago: clocks differ."""
_SECRET_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644


class Issued(NamedTuple):
    """The files of a certificate, and when it ends (seconds since the epoch)."""

    cert_file: Path
    key_file: Path
    expires: float


def make_authority(directory: Path, name: str, *, ttl_s: int = AUTHORITY_TTL_S) -> Issued:
    """Make an authority in a directory that has none. Raises: ExistsError"""
    files = _files(directory, AUTHORITY)
    if files[0].exists() or files[1].exists():
        raise ExistsError("an authority is already there", path=str(files[0]))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), ttl_s)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return _write(files, key, builder.sign(key, hashes.SHA256()))


def issue(
    authority: Path,
    name: str,
    roles: Sequence[Role],
    *,
    out: Path | None = None,
    ttl_s: int = CERTIFICATE_TTL_S,
) -> Issued:
    """Issue NAME.crt and NAME.key with these roles, into `out` or beside the authority.

    Raises:  ConfigError if there is no authority, or the name or the roles will not do
    """
    if not roles:
        raise ConfigError("a certificate needs a role", hint="--role meta, storage or client")
    if not name or name == AUTHORITY or name != os.path.basename(name) or name.startswith("."):
        raise ConfigError(f"{name!r} cannot be a certificate's name", hint="use a file name")
    issuer, issuer_key = _load_authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name), issuer.subject, key.public_key(), ttl_s)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(_purposes(roles), critical=False)
    uris = [x509.UniformResourceIdentifier(ROLE_URI + role) for role in sorted(set(roles))]
    builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(signer, critical=False)
    out = authority if out is None else out
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _write(_files(out, name), key, builder.sign(issuer_key, hashes.SHA256()))


def _files(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.crt", directory / f"{name}.key"


def _name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be a certificate's name: {error}") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ttl_s: int
) -> x509.CertificateBuilder:
    if ttl_s > _TTL_S_MAX:
        raise ConfigError(f"{ttl_s} s is too long for a certificate", hint="use 3650d, say")
    now = datetime.datetime.fromtimestamp(SystemClock().wall_ns() / 1e9, datetime.UTC)
    builder = x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _CLOCK_SLACK)
    builder = builder.not_valid_after(now + datetime.timedelta(seconds=ttl_s))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _purposes(roles: Sequence[Role]) -> x509.ExtendedKeyUsage:
    """Everybody is somebody's client; those who serve have a port each."""
    serves = Role.META in roles or Role.STORAGE in roles
    server = [ExtendedKeyUsageOID.SERVER_AUTH] if serves else []
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, *server])


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    cert_file, key_file = _files(directory, AUTHORITY)
    try:
        certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot use the authority: {error}",
            hint=f"`ffs auth ca init {directory}` makes one",
            path=str(directory),
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the authority's key is of another kind", path=str(key_file))
    return certificate, key


def _write(
    files: tuple[Path, Path], key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> Issued:
    cert_file, key_file = files
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_file(key_file, secret, _SECRET_MODE)
    _write_file(cert_file, certificate.public_bytes(serialization.Encoding.PEM), _PUBLIC_MODE)
    return Issued(cert_file, key_file, certificate.not_valid_after_utc.timestamp())


def _write_file(path: Path, data: bytes, mode: int) -> None:
    draft = f"{path}.{os.getpid()}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
