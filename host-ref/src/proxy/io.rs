//! A client's connection: plain or TLS, with a watch over what arrives.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use super::clock;
use super::framing::FramingCheck;

/// What a connection's task and its transport tell each other. Only the connection's worker touches it; atomics
/// because a transport that may be upgraded has to be `Send`.
#[derive(Debug, Default)]
pub(super) struct IoWatch {
    /// Requests that run.
    pub active: AtomicU32,
    /// When the first byte of the next request came, 0 before. Only of HTTP/1.1: an HTTP/2 request begins when its head
    /// is complete.
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
    closing: Closing,
}

/// How far the end of a connection is.
#[derive(Debug, Default)]
enum Closing {
    #[default]
    No,
    /// What the client still sends is read and dropped: closing over unread bytes would reset the connection and might
    /// take a reply with it that the client has not read yet.
    Lingering(Pin<Box<Sleep>>),
    Done,
}

/// How long a client that is in the middle of a request may go on sending after the reply that refused it.
const LINGER: Duration = Duration::from_secs(2);

impl WatchedIo {
    pub(super) fn new(inner: ClientIo, watch: Arc<IoWatch>, http1: bool) -> Self {
        Self {
            inner,
            watch,
            framing: http1.then(FramingCheck::default),
            closing: Closing::No,
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
            // Over HTTP/2 what comes between requests may be anything, a ping or the acknowledgement of settings.
            if let Some(framing) = &mut this.framing {
                if watch.active.load(Relaxed) == 0 && watch.first_byte.load(Relaxed) == 0 {
                    watch.first_byte.store(clock::now(), Relaxed);
                }
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
        let this = self.get_mut();
        loop {
            match &mut this.closing {
                Closing::No => {
                    let shut = match &mut this.inner {
                        ClientIo::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                        ClientIo::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
                    };
                    ready!(shut)?;
                    let midway = this.framing.as_ref().is_some_and(FramingCheck::is_midway);
                    this.closing = if midway {
                        Closing::Lingering(Box::pin(tokio::time::sleep(LINGER)))
                    } else {
                        Closing::Done
                    };
                }
                Closing::Lingering(sleep) => {
                    if sleep.as_mut().poll(cx).is_ready() {
                        this.closing = Closing::Done;
                        continue;
                    }
                    let mut space = [MaybeUninit::uninit(); 8192];
                    let mut dropped = ReadBuf::uninit(&mut space);
                    let read = match &mut this.inner {
                        ClientIo::Plain(stream) => Pin::new(stream).poll_read(cx, &mut dropped),
                        ClientIo::Tls(stream) => Pin::new(stream).poll_read(cx, &mut dropped),
                    };
                    if ready!(read).is_err() || dropped.filled().is_empty() {
                        this.closing = Closing::Done;
                    }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}
