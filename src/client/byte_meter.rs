//! Bounds the bytes that an exchange reads from its connection, whatever their framing: interim
//! responses, chunk sizes with padding, chunk extensions and trailers.
//!
//! The meter is below the HTTP library, which reads without such a bound.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::response_body::MAX_BODY_READ;

/// The most bytes before the final header section of a response.
pub(super) const MAX_BYTES_BEFORE_HEADERS: usize = 64 * 1024;
/// The most bytes after that, framing included.
const MAX_BYTES_OF_BODY: usize = MAX_BODY_READ;

/// The most bytes of a handshake or of an exchange with its TLS records: far more than the records
/// of as many bytes need, unless they carry none.
const MAX_RAW_BYTES: usize = 4 * (MAX_BYTES_BEFORE_HEADERS + MAX_BYTES_OF_BODY);

/// An endpoint sent more bytes than an exchange may read.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the response has too many bytes")]
pub(super) struct TooManyBytes;

/// Counts the bytes that are read from a connection. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteMeter(Arc<MeterState>);

#[derive(Debug, Default)]
struct MeterState {
    /// The bytes of this exchange.
    read: AtomicUsize,
    /// How many it may read.
    limit: AtomicUsize,
}

impl ByteMeter {
    /// A meter below TLS, of a connection that begins with its handshake.
    pub(super) fn raw() -> Self {
        let meter = Self::default();
        meter.start_raw_exchange();
        meter
    }

    /// Starts to count the raw bytes of an exchange.
    pub(super) fn start_raw_exchange(&self) {
        self.0.read.store(0, Ordering::Relaxed);
        self.0.limit.store(MAX_RAW_BYTES, Ordering::Relaxed);
    }

    /// Starts to count the bytes of an exchange. Its request has not been written yet.
    pub(super) fn start_exchange(&self) {
        self.0.read.store(0, Ordering::Relaxed);
        self.0
            .limit
            .store(MAX_BYTES_BEFORE_HEADERS, Ordering::Relaxed);
    }

    /// Starts to count the bytes of the body: the header section has been received.
    pub(super) fn start_body(&self) {
        let read = self.0.read.load(Ordering::Relaxed);
        let limit = read.saturating_add(MAX_BYTES_OF_BODY);
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// Whether the exchange has received nothing.
    pub(super) fn has_read_nothing(&self) -> bool {
        self.0.read.load(Ordering::Relaxed) == 0
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
    pub(super) const fn new(stream: S, meter: ByteMeter) -> Self {
        Self { stream, meter }
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
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Bytes below TLS are bounded for the handshake and for each exchange, whatever they carry.
    #[tokio::test]
    async fn raw_bytes_are_bounded() {
        let (stream, mut host) = duplex(1024);
        tokio::spawn(async move { while host.write_all(&[0; 1024]).await.is_ok() {} });
        let meter = ByteMeter::raw();
        let mut stream = MeteredStream::new(stream, meter.clone());
        for _ in 0..2 {
            let mut read = 0;
            let error = loop {
                match stream.read(&mut [0; 1024]).await {
                    Ok(count) => read += count,
                    Err(error) => break error,
                }
            };
            assert!(error.get_ref().unwrap().is::<TooManyBytes>());
            assert!(
                (MAX_RAW_BYTES..MAX_RAW_BYTES + 1024).contains(&read),
                "{read}"
            );
            meter.start_raw_exchange();
        }
    }
}
