//! TLS 1.3 between two hosts that have pinned each other's certificates. Names, dates and authorities mean nothing here: a
//! certificate is one that the user has pinned, or the connection ends before a word was said.

use super::{LinkError, wire::Wire};
use crate::keys::{Fingerprint, Keys, Peer};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, DistinguishedName,
    Error, PeerMisbehaved, ServerConfig, ServerConnection, SideData, SignatureScheme, StreamOwned,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    version::TLS13,
};
use std::{io, ops::DerefMut, sync::Arc};

const PROTOCOL: &[u8] = b"floe/1";

/// Takes pinned certificates for good, and no others.
#[derive(Debug)]
struct Pinned {
    peers: Vec<Fingerprint>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn new(keys: &Keys, demand: Option<Fingerprint>, provider: &CryptoProvider) -> Result<Arc<Self>, LinkError> {
        if keys.peers().is_empty() {
            return Err(LinkError::NoPeers);
        }
        let all = keys.peers().iter().map(|peer| peer.fingerprint);
        Ok(Arc::new(Self {
            peers: all.filter(|one| demand.is_none_or(|demand| demand == *one)).collect(),
            algorithms: provider.signature_verification_algorithms,
        }))
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        match self.peers.contains(&Fingerprint::of(certificate)) {
            true => Ok(()),
            false => Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

/// No older version of TLS is spoken.
fn older_version() -> Error {
    Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)
}

/// What both kinds of verifier do with signatures.
macro_rules! takes_signatures_of_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(older_version())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.check_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    takes_signatures_of_tls13!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    takes_signatures_of_tls13!();
}

fn failed(peer: &str) -> impl Fn(io::Error) -> LinkError {
    let peer = peer.to_owned();
    move |source| LinkError::Tls {
        peer: peer.clone(),
        source,
    }
}

/// Agrees on keys as the side that connects; with the connection, who is there.
pub fn connect(
    (keys, demand): (&Keys, Option<Fingerprint>),
    wire: Wire,
    place: &str,
) -> Result<(StreamOwned<ClientConnection, Wire>, Peer), LinkError> {
    let failed = failed(place);
    let provider = aws_lc_rs::default_provider();
    let pinned = Pinned::new(keys, demand, &provider)?;
    if pinned.peers.is_empty() {
        return Err(LinkError::Unpinned(place.to_owned()));
    }
    let (certificate, key) = keys.identity();
    let build = || -> Result<ClientConnection, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(pinned)
            .with_client_auth_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        ClientConnection::new(Arc::new(config), ServerName::try_from("floe").expect("a name"))
    };
    let connection = build().map_err(|error| failed(io::Error::other(error)))?;
    agree(keys, (connection, wire), place)
}

/// Agrees on keys as the side that is connected with.
pub fn accept(keys: &Keys, wire: Wire, place: &str) -> Result<(StreamOwned<ServerConnection, Wire>, Peer), LinkError> {
    let failed = failed(place);
    let provider = aws_lc_rs::default_provider();
    let pinned = Pinned::new(keys, None, &provider)?;
    let (certificate, key) = keys.identity();
    let build = || -> Result<ServerConnection, Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(pinned)
            .with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        ServerConnection::new(Arc::new(config))
    };
    let connection = build().map_err(|error| failed(io::Error::other(error)))?;
    agree(keys, (connection, wire), place)
}

/// Agrees on keys; with the connection, who is there.
fn agree<C, S>(
    keys: &Keys,
    (connection, wire): (C, Wire),
    place: &str,
) -> Result<(StreamOwned<C, Wire>, Peer), LinkError>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    let failed = failed(place);
    let mut stream = StreamOwned::new(connection, wire);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(&failed)?;
    }
    let first = stream.conn.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
    let Some(peer) = first.and_then(|certificate| keys.peer(certificate)) else {
        return Err(failed(io::Error::other("it has shown no certificate that is pinned")));
    };
    let peer = Peer {
        name: format!("{} ({place})", peer.name),
        fingerprint: peer.fingerprint,
    };
    Ok((stream, peer))
}
