//! The health endpoints.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use tower_service::Service;

use crate::health::{Health, Readiness};

/// Answers by the last segment of a path, so that it can be mounted anywhere:
///
/// | request | answer |
/// |---|---|
/// | `GET /livez` | 200 `alive`, for as long as this process answers |
/// | `GET /readyz` | 200 `ready`, or 503 with the word and the reason ([`Readiness`]) |
///
/// See [the module](super#health).
impl<B> Service<Request<B>> for Health {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let asked = path.rsplit('/').next().unwrap_or_default();
        let answered = match asked {
            "livez" | "readyz" if !is_read(request.method()) => not_allowed(),
            "livez" => answer(StatusCode::OK, "alive\n".to_owned()),
            "readyz" => readiness(&self.readiness()),
            _ => answer(StatusCode::NOT_FOUND, String::new()),
        };
        ready(Ok(answered))
    }
}

/// Whether a request is about how the generation is, and not one of its work.
#[inline]
pub(super) fn is_probe(uri: &Uri) -> bool {
    let path = uri.path();
    // Most paths do not end like both of them, and are told by a byte.
    path.ends_with('z') && (path.ends_with("/livez") || path.ends_with("/readyz"))
}

fn readiness(readiness: &Readiness) -> Response<String> {
    let status = match readiness.is_ready() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer(status, format!("{readiness}\n"))
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn not_allowed() -> Response<String> {
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, String::new());
    let allowed = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn answer(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, text);
    // An answer is about this moment only, whoever stands between.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(health: &Health, method: Method, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path);
        let mut health = health.clone();
        let answer = health.call(request.body(()).unwrap()).await.unwrap();
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store");
        (answer.status().as_u16(), answer.into_body())
    }

    async fn get(health: &Health, path: &str) -> (u16, String) {
        ask(health, Method::GET, path).await
    }

    #[tokio::test]
    async fn readyz_follows_the_generation_and_livez_does_not() {
        let health = Health::default();
        let steps: [(&dyn Fn(), u16, &str); 6] = [
            (&|| {}, 503, "starting: "),
            (&|| health.serving(), 200, "ready\n"),
            (&|| health.degraded("cold"), 503, "degraded: cold\n"),
            (&|| health.restored(), 200, "ready\n"),
            (&|| health.lame_duck(), 503, "lame duck: "),
            (&|| health.stopping(), 503, "stopping: "),
        ];
        for (step, status, body) in steps {
            step();
            let answer = get(&health, "/readyz").await;
            assert_eq!(answer.0, status, "{answer:?}");
            assert!(answer.1.starts_with(body), "{answer:?}");
            assert_eq!(get(&health, "/livez").await.0, 200);
        }
    }

    #[tokio::test]
    async fn it_answers_below_any_prefix_and_nothing_else() {
        let health = Health::default();
        assert_eq!(get(&health, "/internal/livez").await.0, 200);
        assert_eq!(get(&health, "/livez/more").await.0, 404);
        assert_eq!(get(&health, "/").await.0, 404);
        assert_eq!(ask(&health, Method::HEAD, "/livez").await.0, 200);
        assert_eq!(ask(&health, Method::POST, "/readyz").await.0, 405);
    }
}
