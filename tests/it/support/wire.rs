//! A server that sends exactly the bytes that a test wants.

use std::sync::{
    Arc,
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
