//! The bearer token of every request, read from its file: trimmed, read again when that is a second ago, and at
//! once when the server does not accept it (C-11).

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use kube::client::Body;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceExt};

/// Requests are few, so a rotated token is used from the next one on; a list of many pages need not read it each time.
const FRESH: Duration = Duration::from_secs(1);

/// Why there is no token. Never holds any part of it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the token file {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the token file {} is empty", path.display())]
    Empty { path: PathBuf },
    #[error("the token file {} holds more than a token", path.display())]
    Malformed { path: PathBuf },
}

/// A token file and what was last read from it.
#[derive(Debug)]
pub struct Token {
    path: PathBuf,
    last: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Token {
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, last: Mutex::new(None) }
    }

    /// The `Authorization` header. While the file cannot be used the last token goes on being used.
    ///
    /// # Errors
    /// The file cannot be used and never could.
    pub async fn header(&self, now: Instant) -> Result<HeaderValue, TokenError> {
        let mut last = self.last.lock().await;
        if let Some((header, read)) = &*last
            && now.duration_since(*read) < FRESH
        {
            return Ok(header.clone());
        }
        self.read(&mut last, now).await
    }

    /// A header that differs from `refused`, if the file holds another token by now.
    pub async fn other_than(&self, refused: &HeaderValue, now: Instant) -> Option<HeaderValue> {
        let mut last = self.last.lock().await;
        self.read(&mut last, now).await.ok().filter(|header| header != refused)
    }

    async fn read(
        &self,
        last: &mut Option<(HeaderValue, Instant)>,
        now: Instant,
    ) -> Result<HeaderValue, TokenError> {
        match (read_header(&self.path).await, &last) {
            (Ok(header), _) => {
                *last = Some((header.clone(), now));
                Ok(header)
            }
            (Err(error), Some((header, _))) => {
                tracing::warn!(%error, "the token read before is used");
                Ok(header.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

async fn read_header(path: &Path) -> Result<HeaderValue, TokenError> {
    let path = || path.to_owned();
    let text = tokio::fs::read_to_string(path())
        .await
        .map_err(|source| TokenError::Read { path: path(), source })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(TokenError::Empty { path: path() });
    }
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut header = header
        .ok()
        .filter(|_| !token.contains(char::is_whitespace))
        .ok_or_else(|| TokenError::Malformed { path: path() })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Puts the token onto every request.
#[derive(Clone, Debug)]
pub struct TokenLayer(pub Arc<Token>);

impl<S> Layer<S> for TokenLayer {
    type Service = WithToken<S>;

    fn layer(&self, inner: S) -> WithToken<S> {
        WithToken { token: self.0.clone(), inner: Arc::new(Mutex::new(inner)) }
    }
}

/// See [`TokenLayer`].
#[derive(Debug)]
pub struct WithToken<S> {
    token: Arc<Token>,
    /// Held while a request is handed over, not while it runs.
    inner: Arc<Mutex<S>>,
}

impl<S, B> Service<Request<Body>> for WithToken<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (token, inner) = (self.token.clone(), self.inner.clone());
        Box::pin(async move {
            let header = token.header(Instant::now()).await?;
            request.headers_mut().insert(AUTHORIZATION, header.clone());
            let again = repeatable(&request);
            let response = hand_over(&inner, request).await?.await?;
            let Some(mut again) = again.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else {
                return Ok(response);
            };
            let Some(other) = token.other_than(&header, Instant::now()).await else { return Ok(response) };
            again.headers_mut().insert(AUTHORIZATION, other);
            hand_over(&inner, again).await?.await
        })
    }
}

async fn hand_over<S>(inner: &Mutex<S>, request: Request<Body>) -> Result<S::Future, BoxError>
where
    S: Service<Request<Body>, Error = BoxError>,
{
    let mut inner = inner.lock().await;
    Ok(inner.ready().await?.call(request))
}

/// A copy of a request without a body, which is all that watching needs.
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    if request.method() != Method::GET {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct TokenFile(PathBuf);

    impl TokenFile {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            Self(std::env::temp_dir().join(format!("sluice-token-{}-{n}", std::process::id())))
        }
    }

    impl Drop for TokenFile {
        fn drop(&mut self) {
            drop(fs::remove_file(&self.0));
        }
    }

    #[tokio::test]
    async fn c_11_trimmed_rotated_lost_and_back() {
        let file = TokenFile::new();
        let mut now = Instant::now();
        let token = Token::new(file.0.clone());
        let bearer = |text: &str| HeaderValue::from_str(&format!("Bearer {text}")).unwrap();
        for (state, content) in [
            ("missing", None),
            ("empty", Some("\n")),
            ("two tokens", Some("a b")),
            ("binary", Some("a\u{7}b")),
        ] {
            if let Some(text) = content {
                fs::write(&file.0, text).unwrap();
            }
            let error = token.header(now).await.expect_err(state).to_string();
            assert!(error.contains(file.0.to_str().unwrap()), "{error}");
        }
        fs::write(&file.0, " one\r\n").unwrap();
        assert_eq!(token.header(now).await.unwrap(), bearer("one"));
        assert!(token.header(now).await.unwrap().is_sensitive());
        fs::write(&file.0, "two\n").unwrap();
        assert_eq!(token.header(now).await.unwrap(), bearer("one"), "not read for every request");
        now += FRESH;
        assert_eq!(token.header(now).await.unwrap(), bearer("two"));
        fs::write(&file.0, "three").unwrap();
        assert_eq!(
            token.other_than(&bearer("two"), now).await,
            Some(bearer("three")),
            "at once when refused"
        );
        assert_eq!(token.other_than(&bearer("three"), now).await, None);
        for gone in [Some(""), None] {
            gone.map_or_else(|| fs::remove_file(&file.0).unwrap(), |text| fs::write(&file.0, text).unwrap());
            now += FRESH;
            assert_eq!(token.header(now).await.unwrap(), bearer("three"), "the last one goes on being used");
        }
    }
}
