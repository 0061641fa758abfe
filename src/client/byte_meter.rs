//! Bounds the bytes that an exchange reads from its connection, whatever their framing: interim
//! responses, chunk sizes with padding, chunk extensions and trailers.
//!
//! The meter is below the HTTP library, which reads without such a bound. A connection serves one
//! exchange after the other, and each starts with its first write after a response.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::response_body::MAX_BODY_READ;

/// The most bytes before the final header section of a response.
pub(super) const MAX_BYTES_BEFORE_HEADERS: usize = 64 * 1024;
/// The most bytes after that, framing included.
const MAX_BYTES_OF_BODY: usize = MAX_BODY_READ;

/// An endpoint sent more bytes than an exchange may read.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the response has too many bytes")]
pub(super) struct TooManyBytes;

/// Counts the bytes that are read from a connection. Clones share the count.
#[derive(Clone, Debug)]
pub(super) struct ByteMeter(Arc<MeterState>);

#[derive(Debug)]
struct MeterState {
    /// The bytes of this exchange.
    read: AtomicUsize,
    /// How many it may read.
    limit: AtomicUsize,
    /// The exchanges that have started.
    exchanges: AtomicUsize,
    /// Whether the next write starts another exchange.
    has_response: AtomicBool,
}

impl ByteMeter {
    fn new() -> Self {
        Self(Arc::new(MeterState {
            read: AtomicUsize::new(0),
            limit: AtomicUsize::new(MAX_BYTES_BEFORE_HEADERS),
            exchanges: AtomicUsize::new(0),
            has_response: AtomicBool::new(true),
        }))
    }

    /// Starts to count the bytes of the body: the header section has been received.
    pub(super) fn start_body(&self) {
        let read = self.0.read.load(Ordering::Relaxed);
        let limit = read.saturating_add(MAX_BYTES_OF_BODY);
        self.0.limit.store(limit, Ordering::Relaxed);
        self.0.has_response.store(true, Ordering::Relaxed);
    }

    /// Whether the connection had served an exchange before, and this one has received nothing.
    pub(super) fn is_reused_without_response(&self) -> bool {
        self.0.exchanges.load(Ordering::Relaxed) > 1 && self.0.read.load(Ordering::Relaxed) == 0
    }

    fn note_write(&self) {
        if self.0.has_response.swap(false, Ordering::Relaxed) {
            self.0.exchanges.fetch_add(1, Ordering::Relaxed);
            self.0.read.store(0, Ordering::Relaxed);
            self.0
                .limit
                .store(MAX_BYTES_BEFORE_HEADERS, Ordering::Relaxed);
        }
    }

    fn note_read(&self, bytes: usize) {
        self.0.read.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_exhausted(&self) -> bool {
        self.0.read.load(Ordering::Relaxed) >= self.0.limit.load(Ordering::Relaxed)
    }
}

/// A connection with a meter.
#[derive(Debug)]
pub(super) struct MeteredStream<S> {
    stream: S,
    meter: ByteMeter,
}

impl<S> MeteredStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            meter: ByteMeter::new(),
        }
    }
}

impl<S> Connection for MeteredStream<S> {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.meter.clone())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeteredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.is_exhausted() {
            return Poll::Ready(Err(io::Error::other(TooManyBytes)));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.meter.note_read(buffer.filled().len() - before);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MeteredStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.meter.note_write();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.meter.note_write();
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
