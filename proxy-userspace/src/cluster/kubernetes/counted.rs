//! Every request to the API server, counted as client-go counts its own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::HttpBody as _;
use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

use super::is_watch;
use crate::metrics::{Exchange, Requests};

/// Put below everything that repeats requests: each attempt counts.
#[derive(Clone, Debug)]
pub struct CountLayer {
    pub requests: Requests,
    /// The server.
    pub host: String,
}

impl<S> Layer<S> for CountLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { told: self.clone(), inner }
    }
}

/// See [`CountLayer`].
#[derive(Debug)]
pub struct Counted<S> {
    told: CountLayer,
    inner: S,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.method().clone();
        let sent = request.body().size_hint().exact();
        let watches = is_watch(&request);
        let told = self.told.clone();
        let begun = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let answered = answer.as_ref().ok();
            let length = answered.and_then(|answer| answer.headers().get(CONTENT_LENGTH));
            told.requests.note(&Exchange {
                host: &told.host,
                method: method.as_str(),
                code: answered.map(|answer| answer.status().as_u16()),
                took: (!watches).then(|| begun.elapsed()),
                sent: sent.filter(|_| !watches),
                received: length.and_then(|length| length.to_str().ok()?.parse().ok()),
            });
            answer
        })
    }
}
