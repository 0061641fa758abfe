//! A server that sends exactly the bytes that a test wants.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Accepts connections and counts them.
pub struct Wire {
    pub port: u16,
    connections: Arc<AtomicUsize>,
}

impl Wire {
    /// Handles each connection with `talk`, which gets its number, the first 1.
    pub async fn start<F, T>(talk: F) -> Self
    where
        F: Fn(TcpStream, usize) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::spawn(talk(stream, number));
            }
        });
        Self { port, connections }
    }

    /// Sends these bytes for the first request of each connection, and closes it.
    pub async fn answering(response: &'static [u8]) -> Self {
        Self::start(move |mut stream, _| async move {
            if read_request(&mut stream).await {
                let _ = stream.write_all(response).await;
                let _ = stream.shutdown().await;
            }
        })
        .await
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

/// Reads a request whose body is `{}`. False if the connection ended before.
pub async fn read_request(stream: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        match stream.read_buf(&mut request).await {
            Ok(read) if read > 0 => {}
            _ => return false,
        }
    }
    true
}

/// What a server does after a response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It serves further requests on the connection.
    Connection,
    /// It closes the connection after the next request, without a response.
    FirstExchange,
}

/// A server that sends the same bytes for each request, and records the head of each request.
pub struct RecordingWire {
    wire: Wire,
    heads: Arc<Mutex<Vec<String>>>,
}

impl RecordingWire {
    pub async fn start(response: &'static [u8], keep: Keep) -> Self {
        let heads = Arc::new(Mutex::new(Vec::new()));
        let recorded = heads.clone();
        let wire = Wire::start(move |stream, _| {
            serve_connection(stream, response, keep, recorded.clone())
        });
        Self {
            wire: wire.await,
            heads,
        }
    }

    pub fn url(&self) -> String {
        self.wire.url()
    }

    /// The request line and the header lines of each request.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve_connection(
    mut stream: TcpStream,
    response: &'static [u8],
    keep: Keep,
    heads: Arc<Mutex<Vec<String>>>,
) {
    while let Some(head) = read_head(&mut stream).await {
        heads.lock().unwrap().push(head);
        let _ = stream.write_all(response).await;
        if keep == Keep::FirstExchange {
            if let Some(head) = read_head(&mut stream).await {
                heads.lock().unwrap().push(head);
            }
            return;
        }
    }
}

/// Reads a request. Returns its head without the empty line; `None` if the connection ended before.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= content_length(head)
        {
            return Some(format!("{head}\r\n"));
        }
        match stream.read_buf(&mut request).await {
            Ok(read) if read > 0 => {}
            _ => return None,
        }
    }
}

fn content_length(head: &str) -> usize {
    let lowercase = head.to_ascii_lowercase();
    let (_, value) = lowercase.split_once("\r\ncontent-length: ").unwrap();
    value.lines().next().unwrap().parse().unwrap()
}
