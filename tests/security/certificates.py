"""Certificates for tests: of the cluster's authority, of a foreign one, and what nobody may use."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ffs import certificates
from ffs.config import TlsConfig
from ffs.tls import Role, Tls


class Authority:
    """An authority in a directory, and what it issues."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca_file = certificates.make_authority(directory, "test").cert_file

    def config(self, name: str, *roles: Role, ttl_s: int = 3_600) -> TlsConfig:
        """Issue a certificate and say where it is, as the configuration does."""
        issued = certificates.issue(self.directory, name, roles, ttl_s=ttl_s)
        cert_file, key_file = str(issued.cert_file), str(issued.key_file)
        return TlsConfig(ca_file=str(self.ca_file), cert_file=cert_file, key_file=key_file)

    def tls(self, name: str, *roles: Role, ttl_s: int = 3_600) -> Tls:
        """Issue a certificate and use it."""
        return Tls(self.config(name, *roles, ttl_s=ttl_s))

    def without_role(self, name: str, uris: Sequence[str] = ()) -> Tls:
        """Sign what another program would make: good for clients and servers, without our roles."""
        authority = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        authority_key = serialization.load_pem_private_key(
            (self.directory / "ca.key").read_bytes(), None
        )
        assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("meta"), *map(x509.UniformResourceIdentifier, uris)]
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        signed = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(signer, critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        both = self.directory / f"{name}.pem"
        both.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + signed.public_bytes(serialization.Encoding.PEM)
        )
        both.chmod(0o600)
        return Tls(TlsConfig(ca_file=str(self.ca_file), cert_file=str(both), key_file=str(both)))
