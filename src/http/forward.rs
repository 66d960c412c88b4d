//! What of a message goes on to the next hop (RFC 9110, section 7.6).

use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request};
use hyper::upgrade::OnUpgrade;

/// Whether a request can be answered elsewhere: HTTP/1.1 in between ends what is not HTTP, and drops trailers that were not
/// announced, without which gRPC has no outcome.
pub(super) fn can_be_forwarded(parts: &request::Parts) -> bool {
    let leaves_http = parts.method == Method::CONNECT
        || parts.headers.contains_key(UPGRADE)
        || parts.extensions.get::<OnUpgrade>().is_some();
    let content_type = parts.headers.get(CONTENT_TYPE);
    let is_grpc =
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    !leaves_http && !is_grpc
}

/// The request as it goes on, without its body.
pub(super) fn forwarded(parts: &request::Parts, peer: Option<IpAddr>) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = origin_form(&parts.uri);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    *headers = parts.headers.clone();
    strip(headers);
    // It was answered when the body was asked for.
    headers.remove(EXPECT);
    // RFC 9112, section 3.2.2: what the target says comes before what the field says. HTTP/2 has it in the target only.
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    if let Some(Ok(host)) = authority.map(HeaderValue::from_str) {
        headers.insert(HOST, host);
    }
    if let Some(Ok(peer)) = peer.map(|peer| HeaderValue::try_from(peer.to_string())) {
        headers.append(FORWARDED_FOR, peer);
    }
    request
}

/// Removes what concerns one connection only.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let known = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    for name in named.into_iter().chain(known) {
        headers.remove(name);
    }
}

/// Who asked the generation that has forwarded the request: the last one.
pub(super) fn forwarded_for(headers: &HeaderMap) -> Option<crate::observe::Client> {
    let last = headers.get_all(FORWARDED_FOR).iter().next_back()?;
    let last = last.to_str().ok()?.rsplit(',').next()?;
    let peer: IpAddr = last.trim().parse().ok()?;
    Some(peer.into())
}

fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned();
    path.map_or_else(|| Uri::from_static("/"), Uri::from)
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: request::Builder) -> request::Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_concerns_one_connection_does_not_go_on_and_the_rest_does() {
        let parts = parts(
            Request::post("http://a.test/path?query")
                .version(Version::HTTP_2)
                .header("host", "b.test")
                .header("connection", "x-private, Keep-Alive")
                .header("x-private", "1")
                .header("keep-alive", "timeout=5")
                .header("te", "trailers")
                .header("transfer-encoding", "chunked")
                .header("expect", "100-continue")
                .header("content-length", "3")
                .header("cookie", "a=b"),
        );
        let request = forwarded(&parts, None);
        assert_eq!(request.uri(), "/path?query");
        assert_eq!(request.version(), Version::HTTP_11);
        let mut fields: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        fields.sort_unstable();
        let expected = [
            ("content-length", "3"),
            ("cookie", "a=b"),
            ("host", "a.test"),
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn the_peer_is_the_last_of_those_it_was_forwarded_for() {
        let parts = parts(Request::get("/").header("x-forwarded-for", "192.0.2.1, 192.0.2.2"));
        let peer = "192.0.2.3".parse().unwrap();
        let headers = forwarded(&parts, Some(peer)).into_parts().0.headers;
        let values: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        assert_eq!(values, ["192.0.2.1, 192.0.2.2", "192.0.2.3"]);
        assert_eq!(forwarded_for(&headers), Some(peer.into()));
        let peer: IpAddr = "192.0.2.2".parse().unwrap();
        assert_eq!(forwarded_for(&parts.headers), Some(peer.into()));
        assert_eq!(forwarded_for(&HeaderMap::new()), None);
    }

    #[test]
    fn what_leaves_http_or_lives_by_trailers_is_not_forwarded() {
        for request in [
            Request::connect("a.test:443"),
            Request::get("/").header("upgrade", "websocket"),
            Request::post("/").header("content-type", "application/grpc+proto"),
        ] {
            assert!(!can_be_forwarded(&parts(request)));
        }
        assert!(can_be_forwarded(&parts(
            Request::post("/").header("te", "trailers")
        )));
    }
}
