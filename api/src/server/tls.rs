//! TLS without a proxy, with a certificate that can be replaced while the server runs.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// The protocols over TLS, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [HTTP2, b"http/1.1"];

/// HTTP/2, as ALPN names it.
const HTTP2: &[u8] = b"h2";

/// A certificate and its key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no {what} in PEM", path.display())]
    Lacks {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The key belongs to another certificate.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The TLS library does not take them.
    #[error("the certificate in {} and its key cannot be used: {why}", certificate.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// Why not.
        why: rustls::Error,
    },
}

/// TLS 1.2 and 1.3 with the certificate of two files. Clones share it.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    served: Arc<Served>,
}

impl Tls {
    /// Reads the certificate chain and its key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let content = files.read()?;
        let provider = Arc::new(ring::default_provider());
        let identity = RwLock::new(files.identity(&content, &provider)?);
        let served = Arc::new(Served {
            files,
            content: RwLock::new(content),
            identity,
            provider: provider.clone(),
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| TlsError::Unusable { certificate: certificate.to_owned(), why })?
            .with_no_client_auth()
            .with_cert_resolver(served.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), served })
    }

    /// Reads the files again if they have changed, and returns whether they had. New connections get the new
    /// certificate; if it cannot be used, the old one.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let Served { files, content, identity, provider } = &*self.served;
        let found = files.read()?;
        if *content.read().unwrap_or_else(PoisonError::into_inner) == found {
            return Ok(false);
        }
        let fresh = files.identity(&found, provider)?;
        *identity.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        *content.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(true)
    }

    /// The handshake. Its caller must set a timeout.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.acceptor.accept(stream).await
    }
}

/// Whether a client has chosen HTTP/2.
pub fn is_http2<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

/// The certificate that new connections get.
struct Served {
    files: Files,
    content: RwLock<PemFiles>,
    identity: RwLock<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.identity.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for Served {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("files", &self.files).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// The content of both files.
#[derive(PartialEq, Eq)]
struct PemFiles {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(&self) -> Result<PemFiles, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
        };
        Ok(PemFiles { certificate: read(&self.certificate)?, key: read(&self.key)? })
    }

    fn identity(
        &self,
        content: &PemFiles,
        provider: &CryptoProvider,
    ) -> Result<Arc<CertifiedKey>, TlsError> {
        let lacks = |path: &Path, what| TlsError::Lacks { path: path.to_owned(), what };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&content.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| lacks(&self.certificate, "certificate"))?;
        if chain.is_empty() {
            return Err(lacks(&self.certificate, "certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(&content.key)
            .map_err(|_| lacks(&self.key, "private key"))?;
        let identity = CertifiedKey::from_der(chain, key, provider).map_err(|why| match why {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::Mismatch { certificate: self.certificate.clone(), key: self.key.clone() }
            }
            why => TlsError::Unusable { certificate: self.certificate.clone(), why },
        })?;
        Ok(Arc::new(identity))
    }
}
