//! A minimal HTTP server.

use std::{convert::Infallible, thread};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime::Builder};

/// Starts a server on its own thread. Returns its URL.
pub fn start<S, F>(state: S, respond: fn(S, Request<Incoming>) -> F) -> String
where
    S: Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a valid socket");
    let url = format!(
        "http://{}",
        listener.local_addr().expect("the listener is bound")
    );
    thread::spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a valid socket");
            serve(listener, state, respond).await;
        });
    });
    url
}

/// Serves requests with `respond` for as long as it is polled.
pub async fn serve<S, F>(listener: TcpListener, state: S, respond: fn(S, Request<Incoming>) -> F)
where
    S: Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = respond(state.clone(), request);
                async { Ok::<_, Infallible>(response.await) }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
