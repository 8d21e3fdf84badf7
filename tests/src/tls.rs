//! Throw-away certificates in the layout that libnbd, qemu and nbdkit expect
//! (`ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`), and a router's.

use crate::tools::{need, run};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// A certificate authority with a server's and a client's certificate.
pub struct Authority {
    /// The folder with all files.
    pub folder: PathBuf,
}

impl Authority {
    /// Makes one whose certificates are valid now.
    pub fn new(folder: &Path) -> Result<Self> {
        Self::make(folder, "expiration_days = 30")
    }

    /// Makes one whose own certificate has expired.
    pub fn expired(folder: &Path) -> Result<Self> {
        let dates = "activation_date = \"2020-01-01 00:00:00\"\nexpiration_date = \"2020-02-01 00:00:00\"";
        Self::make(folder, dates)
    }

    fn make(folder: &Path, dates: &str) -> Result<Self> {
        need(&["certtool"])?;
        std::fs::create_dir_all(folder)?;
        let file = |name: &str| folder.join(name).display().to_string();
        let template =
            |name: &str, text: &str| std::fs::write(folder.join(name), format!("{text}\n{dates}\n"));
        template("ca.info", "cn = harness authority\nca\ncert_signing_key")?;
        let server = "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server";
        template("server.info", &format!("{server}\nencryption_key\nsigning_key"))?;
        template("client.info", "cn = client\ntls_www_client\nencryption_key\nsigning_key")?;
        // Routers are both to each other.
        template("router.info", &format!("{server}\ntls_www_client\nencryption_key\nsigning_key"))?;
        for name in ["ca", "server", "client", "router"] {
            run(
                "certtool",
                [
                    "--generate-privkey",
                    "--key-type=rsa",
                    "--bits=2048",
                    "--outfile",
                    &file(&format!("{name}-key.pem")),
                ],
            )?;
        }
        let (ca_key, ca_cert, ca_info) = (file("ca-key.pem"), file("ca-cert.pem"), file("ca.info"));
        run(
            "certtool",
            [
                "--generate-self-signed",
                "--load-privkey",
                &ca_key,
                "--template",
                &ca_info,
                "--outfile",
                &ca_cert,
            ],
        )?;
        for name in ["server", "client", "router"] {
            let (key, info) = (file(&format!("{name}-key.pem")), file(&format!("{name}.info")));
            let out = file(&format!("{name}-cert.pem"));
            run(
                "certtool",
                [
                    "--generate-certificate",
                    "--load-ca-certificate",
                    &ca_cert,
                    "--load-ca-privkey",
                    &ca_key,
                    "--load-privkey",
                    &key,
                    "--template",
                    &info,
                    "--outfile",
                    &out,
                ],
            )?;
        }
        Ok(Self { folder: folder.into() })
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_verify_against_their_own_authority_while_it_is_valid() -> Result<()> {
        let folder = crate::tools::scratch("tls")?;
        let good = Authority::new(&folder.path().join("good"))?;
        let other = Authority::new(&folder.path().join("other"))?;
        let old = Authority::expired(&folder.path().join("old"))?;
        let verify = |authority: &Authority, of: &Authority| {
            let (ca, certificate) = (authority.file("ca-cert.pem"), of.file("server-cert.pem"));
            let arguments = ["--verify", "--load-ca-certificate", &ca.display().to_string(), "--infile"];
            let mut all: Vec<String> = arguments.map(str::to_string).to_vec();
            all.push(certificate.display().to_string());
            run("certtool", all).is_ok()
        };
        assert!(verify(&good, &good));
        assert!(!verify(&other, &good));
        assert!(!verify(&old, &old));
        Ok(())
    }
}
