//! A plain HTTP server, which costs as little as one can.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Starts one on a thread of its own, and says where it listens.
pub fn start<S, F>(state: S, answer: fn(S, Request<Incoming>) -> F) -> String
where
    S: Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("it is a socket");
    let url = format!("http://{}", listener.local_addr().expect("it listens"));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        runtime.block_on(async {
            serve(
                TcpListener::from_std(listener).expect("it is a socket"),
                state,
                answer,
            )
            .await;
        });
    });
    url
}

/// Answers every request with `answer`, for as long as it is polled.
pub async fn serve<S, F>(listener: TcpListener, state: S, answer: fn(S, Request<Incoming>) -> F)
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
            let answer = service_fn(|request| {
                let answered = answer(state.clone(), request);
                async { Ok::<_, Infallible>(answered.await) }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}
