//! What we read from a certificate: its channel binding and its common name.

use aws_lc_rs::digest;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::time::ASN1Time;

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der)
        .ok()
        .map(|(_, certificate)| certificate)
}

/// The `tls-server-end-point` channel binding: the certificate hashed with the hash of its signature, MD5 and SHA-1
/// replaced by SHA-256 (RFC 5929 section 4.1). `None` where the signature does not name one hash, as with Ed25519;
/// PostgreSQL has no channel binding for such a certificate either (`be_tls_get_certificate_hash`).
pub(crate) fn endpoint_binding(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = parse(der)?;
    let signature = &certificate.signature_algorithm;
    let hash = if signature.algorithm == oid::OID_PKCS1_RSASSAPSS {
        let Ok(SignatureAlgorithm::RSASSA_PSS(params)) = SignatureAlgorithm::try_from(signature)
        else {
            return None;
        };
        let hash = params.hash_algorithm_oid();
        if *hash == oid::OID_NIST_HASH_SHA384 {
            &digest::SHA384
        } else if *hash == oid::OID_NIST_HASH_SHA512 {
            &digest::SHA512
        } else if *hash == oid::OID_NIST_HASH_SHA256 || *hash == oid::OID_HASH_SHA1 {
            &digest::SHA256
        } else {
            return None;
        }
    } else {
        let sha256 = [
            oid::OID_PKCS1_MD5WITHRSAENC,
            oid::OID_PKCS1_SHA1WITHRSA,
            oid::OID_PKCS1_SHA256WITHRSA,
            oid::OID_SIG_ECDSA_WITH_SHA256,
        ];
        let sha384 = [oid::OID_PKCS1_SHA384WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA384];
        let sha512 = [oid::OID_PKCS1_SHA512WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA512];
        let is_one_of = |list: &[oid::Oid<'_>]| list.contains(&signature.algorithm);
        if is_one_of(&sha256) {
            &digest::SHA256
        } else if is_one_of(&sha384) {
            &digest::SHA384
        } else if is_one_of(&sha512) {
            &digest::SHA512
        } else {
            return None;
        }
    };
    Some(digest::digest(hash, der).as_ref().to_vec())
}

/// The first common name of the subject. `None` where there is none, where it is not text, and where it holds a zero
/// byte (CVE-2009-4034: such a name is made to be misread).
pub(crate) fn common_name(der: &[u8]) -> Option<String> {
    let certificate = parse(der)?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?;
    (!name.contains('\0')).then(|| name.to_owned())
}

/// The common name, where the certificate has no alternative names at all. libpq then checks it instead.
pub(crate) fn common_name_without_alternatives(der: &[u8]) -> Option<String> {
    let certificate = parse(der)?;
    let has_alternatives = certificate.extensions().iter().any(|extension| {
        matches!(
            extension.parsed_extension(),
            ParsedExtension::SubjectAlternativeName(_)
        )
    });
    if has_alternatives {
        None
    } else {
        common_name(der)
    }
}

/// Whether the certificate is valid at this time (seconds since the Unix epoch).
pub(crate) fn is_valid_at(der: &[u8], unix_seconds: u64) -> bool {
    let time = i64::try_from(unix_seconds)
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    match (parse(der), time) {
        (Some(certificate), Some(time)) => certificate.validity().is_valid_at(time),
        _ => false,
    }
}
