//! What an endpoint may send: how many bytes, in which form, and when its connection may end.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use nano_webhooks_core::delivery::failure::{Failure, FailureKind, TimeoutStage};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

use crate::support::{
    client::{client, client_with_timeout, post, post_two},
    wire::{Wire, read_request},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
/// The most bytes of a response before its final header section, and what the kernel's buffers hold
/// besides.
const LIMIT: usize = 64 * 1024;
const BUFFERED: usize = 8 * 1024 * 1024;

/// Sends `unit` again and again after `start`, until the connection ends. Counts the bytes.
async fn flood(start: &'static [u8], unit: Vec<u8>) -> (Wire, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let unit = Arc::new(unit);
    let wire =
        Wire::start(move |stream, _| send_without_end(stream, start, unit.clone(), count.clone()));
    (wire.await, sent)
}

async fn send_without_end(
    mut stream: TcpStream,
    start: &'static [u8],
    unit: Arc<Vec<u8>>,
    sent: Arc<AtomicUsize>,
) {
    if !read_request(&mut stream).await || stream.write_all(start).await.is_err() {
        return;
    }
    while stream.write_all(&unit).await.is_ok() {
        sent.fetch_add(unit.len(), Ordering::SeqCst);
    }
}

/// Interim responses without end are an invalid response that names the bound, and so is a header
/// section without end.
#[tokio::test]
async fn endless_heads_are_bounded() {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(40);
    let (wire, sent) = flood(b"", interim).await;
    let outcome = post(&client(), &wire.url()).await;
    assert_eq!(outcome.failure, Some(Failure::ResponseTooLarge(LIMIT)));
    assert!(sent.load(Ordering::SeqCst) < BUFFERED);
    let (wire, sent) = flood(b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n".repeat(40)).await;
    let failure = post(&client(), &wire.url()).await.failure.unwrap();
    assert_eq!(failure.kind(), FailureKind::InvalidResponse);
    assert!(sent.load(Ordering::SeqCst) < BUFFERED);
}

/// Interim responses below the bound are allowed.
#[tokio::test]
async fn interim_responses_are_skipped() {
    let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n";
    let wire = Wire::start(move |mut stream, _| async move {
        if read_request(&mut stream).await {
            let count = (LIMIT - 1) / interim.len();
            let _ = stream.write_all(&interim.repeat(count)).await;
            let _ = stream.write_all(OK).await;
        }
    });
    let outcome = post(&client(), &wire.await.url()).await;
    assert_eq!((outcome.status_code, outcome.failure), (Some(200), None));
}

/// A body whose framing has no end is not read to its end, and the status counts.
#[tokio::test]
async fn endless_bodies_are_bounded() {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (start, unit) in [
        (&chunked[..], b"0".repeat(1000)),
        (chunked, b"1;extension\r\nx\r\n".repeat(100)),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x".repeat(1000)),
    ] {
        let (wire, sent) = flood(start, unit).await;
        let outcome = post(&client(), &wire.url()).await;
        assert_eq!((outcome.status_code, outcome.failure), (Some(200), None));
        assert!(sent.load(Ordering::SeqCst) < BUFFERED);
    }
}

/// A body that is cut off or hangs hides no status.
#[tokio::test]
async fn status_decides_outcome() {
    for (response, expected) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"[..],
            None,
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (
            b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\nshort",
            Some(Failure::Status(500)),
        ),
        (
            b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            Some(Failure::Status(401)),
        ),
        (
            b"HTTP/1.1 302 X\r\nLocation: /\r\nContent-Length: 9\r\n\r\n",
            Some(Failure::Redirect(302)),
        ),
        (b"HTTP/1.1 304 X\r\n\r\n", Some(Failure::Status(304))),
    ] {
        let wire = Wire::answering(response).await;
        let outcome = post(&client(), &wire.url()).await;
        assert_eq!(outcome.failure, expected, "{response:?}");
    }
    let wire = Wire::start(|mut stream, _| async move {
        if read_request(&mut stream).await {
            let head = b"HTTP/1.1 503 X\r\nRetry-After: 7200\r\nContent-Length: 9\r\n\r\nback";
            let _ = stream.write_all(head).await;
            let _ = stream.read(&mut [0]).await;
        }
    });
    let outcome = post(&client(), &wire.await.url()).await;
    assert_eq!(outcome.failure, Some(Failure::Status(503)));
    assert_eq!(outcome.retry_after.as_deref(), Some("7200"));
    assert_eq!(outcome.body_excerpt.as_deref(), Some("back"));
}

/// A status line that does not end is a timeout.
#[tokio::test]
async fn unfinished_head_is_timeout() {
    let wire = Wire::start(|mut stream, _| async move {
        if read_request(&mut stream).await {
            let _ = stream.write_all(b"HTTP/1.1 2").await;
            let _ = stream.read(&mut [0]).await;
        }
    });
    let impatient = client_with_timeout(Duration::from_millis(300));
    let outcome = post(&impatient, &wire.await.url()).await;
    let expected = Failure::Timeout(TimeoutStage::AwaitingResponse);
    assert_eq!(outcome.failure, Some(expected));
}

/// Header sections that browsers accept are accepted.
#[tokio::test]
async fn sloppy_heads_are_accepted() {
    for head in [
        &b"HTTP/1.1 200 OK\r\nX-Folded: one\r\n two\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nX-Folded: one\r\n\ttwo\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Spaced : true\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nMy Header: 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    ] {
        let wire = Wire::answering(head).await;
        let outcome = post(&client(), &wire.url()).await;
        assert_eq!((outcome.status_code, outcome.failure), (Some(200), None));
    }
    let unclear = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabc";
    let wire = Wire::answering(unclear).await;
    let failure = post(&client(), &wire.url()).await.failure;
    assert_eq!(failure, Some(Failure::InvalidResponse));
}

/// A status is not hidden by many or long headers, up to a limit that the failure names.
#[tokio::test]
async fn many_headers_are_read() {
    for (count, value, expected) in [
        (110, 1, None),
        (20, 1_500, None),
        (1_100, 1, Some(Failure::ResponseTooLarge(64 * 1024))),
        (40, 4_000, Some(Failure::ResponseTooLarge(64 * 1024))),
    ] {
        let mut head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_owned();
        for number in 0..count {
            write!(head, "X-{number}: {}\r\n", "x".repeat(value)).unwrap();
        }
        head.push_str("\r\n");
        let wire = Wire::answering(head.leak().as_bytes()).await;
        let outcome = post(&client(), &wire.url()).await;
        assert_eq!(outcome.failure, expected, "{count} {value}");
    }
}

/// A server that says that it closes an idle connection gets the request over another one.
#[tokio::test]
async fn request_timeout_on_idle_connection_is_resent() {
    let wire = Wire::start(|mut stream, _| async move {
        if read_request(&mut stream).await {
            let _ = stream.write_all(OK).await;
            if stream.read(&mut [0]).await.is_ok_and(|read| read > 0) {
                let closing = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
                let _ = stream.write_all(closing).await;
            }
        }
    });
    let wire = wire.await;
    let client = client();
    post_two(&client, &wire.url()).await;
    let outcome = post(&client, &wire.url()).await;
    assert_eq!((outcome.status_code, outcome.failure), (Some(200), None));
    assert_eq!(wire.connections(), 3);
}

/// A request on an idle connection that the endpoint closes without a response is sent again over a
/// new connection, once.
#[tokio::test]
async fn stale_connection_is_replaced() {
    let wire = Wire::start(|mut stream, _| async move {
        if read_request(&mut stream).await {
            let _ = stream.write_all(OK).await;
            // Ends the connection when the next request arrives.
            let _ = stream.read(&mut [0]).await;
        }
    });
    let wire = wire.await;
    let client = client();
    post_two(&client, &wire.url()).await;
    for expected in 3..=7 {
        let outcome = post(&client, &wire.url()).await;
        assert_eq!((outcome.status_code, outcome.failure), (Some(200), None));
        assert_eq!(wire.connections(), expected);
    }
}

/// A new connection that ends without a response fails the attempt, and a reused one that ends
/// within a response does too: the endpoint may have accepted the event.
#[tokio::test]
async fn other_ended_connections_are_failures() {
    let wire = Wire::answering(b"").await;
    let outcome = post(&client(), &wire.url()).await;
    assert_eq!(outcome.failure, Some(Failure::Connect));
    assert_eq!(wire.connections(), 1);

    let wire = Wire::start(|mut stream, _| async move {
        if read_request(&mut stream).await {
            let _ = stream.write_all(OK).await;
        }
        if read_request(&mut stream).await {
            let _ = stream.write_all(b"HTTP/1.1 2").await;
        }
    });
    let wire = wire.await;
    let client = client();
    let first = post_two(&client, &wire.url()).await;
    assert!(first.iter().all(|outcome| outcome.failure.is_none()));
    let cut = timeout(Duration::from_mins(1), post(&client, &wire.url())).await;
    assert_eq!(cut.unwrap().failure, Some(Failure::Connect));
    assert_eq!(wire.connections(), 2);
}

/// A server whose workers each serve one connection until the client closes it gets all requests,
/// more than it has workers, in a burst and afterward from another process.
#[tokio::test]
async fn servers_with_few_workers_are_not_starved() {
    for workers in [1, 4] {
        let free = Arc::new(Semaphore::new(workers));
        let wire = Wire::start(move |mut stream, _| {
            let free = free.clone();
            async move {
                let _worker = free.acquire().await.unwrap();
                while read_request(&mut stream).await {
                    let _ = stream.write_all(OK).await;
                }
            }
        });
        let url = wire.await.url();
        let [burst, other] = [client(), client()];
        for outcome in join_all((0..32).map(|_| post(&burst, &url))).await {
            assert_eq!(outcome.failure, None);
        }
        assert_eq!(post(&other, &url).await.failure, None);
    }
}
