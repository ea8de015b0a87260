//! A client's connection: plain or TLS, with a watch over what arrives.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::clock;
use super::framing::FramingCheck;

/// What a connection's task and its transport tell each other. Only the connection's worker touches it; atomics
/// because a transport that may be upgraded has to be `Send`.
#[derive(Debug, Default)]
pub(super) struct IoWatch {
    /// Requests that run.
    pub active: AtomicU32,
    /// When the first byte of the next request came, 0 before.
    pub first_byte: AtomicU64,
    /// When the last request ended, or the connection was made.
    pub idle_since: AtomicU64,
    /// The last head had contradictory framing.
    pub conflict: AtomicBool,
}

/// A transport to a client.
#[derive(Debug)]
pub(super) enum ClientIo {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is known about a TLS connection.
#[derive(Clone, Debug)]
pub(super) struct TlsInfo {
    pub version: &'static str,
    pub cipher: String,
    pub alpn: Option<String>,
    pub sni: Option<String>,
}

impl ClientIo {
    pub(super) fn tls_info(&self) -> Option<TlsInfo> {
        use tokio_rustls::rustls::ProtocolVersion;
        let Self::Tls(stream) = self else { return None };
        let session = stream.get_ref().1;
        Some(TlsInfo {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "unknown",
            },
            cipher: session
                .negotiated_cipher_suite()
                .and_then(|suite| suite.suite().as_str())
                .map(|name| name.replacen("TLS13_", "TLS_", 1))
                .unwrap_or_default(),
            alpn: session
                .alpn_protocol()
                .map(|p| String::from_utf8_lossy(p).into_owned()),
            sni: session.server_name().map(str::to_owned),
        })
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
    }
}

/// A transport that notes when a request begins, and looks for contradictory framing in HTTP/1.
#[derive(Debug)]
pub(super) struct WatchedIo {
    inner: ClientIo,
    watch: Arc<IoWatch>,
    framing: Option<FramingCheck>,
}

impl WatchedIo {
    pub(super) fn new(inner: ClientIo, watch: Arc<IoWatch>, http1: bool) -> Self {
        Self {
            inner,
            watch,
            framing: http1.then(FramingCheck::default),
        }
    }
}

impl AsyncRead for WatchedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = match &mut this.inner {
            ClientIo::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            ClientIo::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            let watch = &this.watch;
            if watch.active.load(Relaxed) == 0 && watch.first_byte.load(Relaxed) == 0 {
                watch.first_byte.store(clock::now(), Relaxed);
            }
            if let Some(framing) = &mut this.framing {
                if framing.feed(read) {
                    watch.conflict.store(true, Relaxed);
                }
            }
        }
        result
    }
}

impl AsyncWrite for WatchedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            ClientIo::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            ClientIo::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            ClientIo::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            ClientIo::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            ClientIo::Plain(stream) => stream.is_write_vectored(),
            ClientIo::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            ClientIo::Plain(stream) => Pin::new(stream).poll_flush(cx),
            ClientIo::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            ClientIo::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ClientIo::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
