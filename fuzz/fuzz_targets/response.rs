//! Bytes that an endpoint sends. An exchange ends, reads a bounded number of bytes in a bounded
//! number of steps, and has a status code or a failure of the endpoint.
//!
//! The first byte of the input is the size of a read, 0 for any. The second byte is the length of
//! the end that repeats without end, 0 for a stream that ends. The rest is the response.
#![no_main]

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use nano_webhooks::client::fuzzing::{Exchange, MAX_READ, exchange_over};
use nano_webhooks_core::delivery::failure::FailureKind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const MAX_EXCHANGES: usize = 3;
const MAX_EXCERPT: usize = 1024;
/// Bytes of one read, which the HTTP library bounds by the longest header section.
const MAX_LAST_READ: usize = 16 * 1024;
/// Reads that return nothing: before the request, and at the end.
const MAX_EMPTY_READS: usize = 64;
/// More than any input takes. The stream is in memory and never waits, so only a hang takes it.
const MAX_TIME: Duration = Duration::from_secs(5);

fuzz_target!(|input: &[u8]| {
    let &[read_size, repeated, ref response @ ..] = input else {
        return;
    };
    let repeated = usize::from(repeated).min(response.len());
    let counts = Arc::new(Counts::default());
    let endpoint = Endpoint {
        response: response.to_vec(),
        position: 0,
        read_size: usize::from(read_size),
        repeats_from: (repeated > 0).then_some(response.len() - repeated),
        has_request: false,
        reader: None,
        counts: counts.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let exchanges = runtime.expect("a runtime").block_on(async {
        let exchanges = exchange_over(endpoint, MAX_EXCHANGES);
        tokio::time::timeout(MAX_TIME, exchanges)
            .await
            .expect("it ends")
    });
    exchanges.iter().for_each(check);

    let (bytes, reads) = (
        counts.bytes.load(Ordering::Relaxed),
        counts.reads.load(Ordering::Relaxed),
    );
    assert!(
        bytes <= MAX_EXCHANGES * (MAX_READ + MAX_LAST_READ),
        "{bytes} bytes"
    );
    assert!(
        reads <= bytes + MAX_EMPTY_READS,
        "{reads} reads of {bytes} bytes"
    );
});

fn check(exchange: &Exchange) {
    match &exchange.outcome {
        Ok(status) => assert!(*status == 101 || (200..1000).contains(status), "{status}"),
        Err(failure) => {
            let kind = failure.kind();
            assert!(
                matches!(kind, FailureKind::InvalidResponse | FailureKind::Connect),
                "{kind:?}"
            );
            assert_eq!(exchange.body_excerpt, None);
        }
    }
    let excerpt = exchange.body_excerpt.as_deref().unwrap_or_default();
    assert!(excerpt.len() <= MAX_EXCERPT);
}

#[derive(Default)]
struct Counts {
    bytes: AtomicUsize,
    reads: AtomicUsize,
}

/// Sends a response when it has received something.
struct Endpoint {
    response: Vec<u8>,
    position: usize,
    read_size: usize,
    repeats_from: Option<usize>,
    has_request: bool,
    reader: Option<Waker>,
    counts: Arc<Counts>,
}

impl AsyncRead for Endpoint {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        if !self.has_request {
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        if self.position == self.response.len() {
            match self.repeats_from {
                Some(start) => self.position = start,
                None => return Poll::Ready(Ok(())),
            }
        }
        let rest = &self.response[self.position..];
        let mut count = rest.len().min(buffer.remaining());
        if self.read_size > 0 {
            count = count.min(self.read_size);
        }
        buffer.put_slice(&rest[..count]);
        self.position += count;
        self.counts.bytes.fetch_add(count, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endpoint {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_request = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
