//! A certificate authority for one run: the API server's certificate and the administrator's.

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// A self-signed authority that lives in memory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate chain and its private key (PKCS #8), both as PEM.
pub struct Identity {
    /// Leaf certificate.
    pub certificate: String,
    /// Private key, ECDSA P-256.
    pub key: String,
}

impl Authority {
    /// Makes a new authority called `name`.
    ///
    /// # Errors
    /// If no key can be generated.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("cannot generate the authority's key")?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).context("cannot sign the authority's certificate")?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// The authority's certificate, what stands in `ca.crt`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for `names` (DNS names or addresses).
    ///
    /// # Errors
    /// If a name is not legal in a certificate.
    pub fn server(&self, names: &[&str]) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).context("bad name in the server certificate")?;
        self.sign(params, "kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate: the API server takes the common name as user and the organisations as groups.
    ///
    /// # Errors
    /// If no key can be generated.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        self.sign(CertificateParams::default(), user, groups, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        groups: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let key = KeyPair::generate().context("cannot generate a key")?;
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}
