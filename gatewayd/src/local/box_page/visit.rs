//! A request so far: who asks, from where, in which language; and what makes a request one of this page's.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};

use super::form::Fields;
use super::lockout::Client;
use super::pages::layout;
use super::server::Peer;
use super::session::Token;
use super::staff::Person;
use super::words::{Language, Words};
use super::{Front, lock, photo};
use crate::local::is_ours;

/// The visitor's token.
const TOKEN: &str = "__Host-kinara";
/// That somebody has logged in here before.
const BROWSER: &str = "__Host-kinara-browser";
/// The language chosen.
const LANGUAGE: &str = "__Host-kinara-language";
/// A year, seconds.
const YEAR_S: u32 = 31_536_000;
/// How long a request may take, its body included.
const REQUEST: Duration = Duration::from_mins(1);
/// Bytes of a form.
const MOST_FORM: usize = 16 << 10;
/// Bytes around a photo in its form.
const AROUND_PHOTO: usize = 16 << 10;

/// See the module's text.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    /// From where.
    pub peer: IpAddr,
    /// The browser's token.
    pub token: Token,
    /// In which language.
    pub language: Language,
    /// Who, when logged in.
    pub person: Option<Person>,
    /// The path, for coming back after the language was changed.
    pub path: String,
    /// The query.
    pub query: Fields,
    browser: String,
}

impl Visit {
    /// The texts.
    pub fn words(&self) -> &'static Words {
        self.language.words()
    }

    /// As whom the lockout counts this visitor when they try this person's PIN.
    pub fn client(&self, front: &Front, id: uuid::Uuid) -> Client {
        front.secret.browser(id, &self.browser).unwrap_or_else(|| Client::stranger(self.peer))
    }
}

/// The outermost layer: refuses what does not come by a name of this box or from this page, finds out who
/// asks, and says to the browser what it must not do with the answer.
pub(super) async fn attend(State(front): State<Arc<Front>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
    let mut response = if !is_ours(&host) {
        let text = "Use the box's IP address, or a name in .local.\n";
        (StatusCode::MISDIRECTED_REQUEST, text).into_response()
    } else if request.method() == Method::POST && !from_this_page(headers, &host) {
        (StatusCode::FORBIDDEN, "This form was not sent by the box's own page.\n").into_response()
    } else {
        let (visit, is_new) = visit(&front, &request);
        let cookie = is_new.then(|| cookie(TOKEN, visit.token.as_str(), None));
        let words = visit.words();
        request.extensions_mut().insert(visit);
        let mut response = match tokio::time::timeout(REQUEST, next.run(request)).await {
            Ok(response) => response,
            Err(_) => (StatusCode::REQUEST_TIMEOUT, words.all.busy).into_response(),
        };
        if let Some(cookie) = cookie.filter(|_| !response.headers().contains_key(header::SET_COOKIE)) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        response
    };
    protect(response.headers_mut());
    response
}

fn visit(front: &Front, request: &Request) -> (Visit, bool) {
    let headers = request.headers();
    let uri = request.uri();
    let query = Fields::query(uri.query().unwrap_or_default());
    let sent = cookie_of(headers, TOKEN).and_then(Token::parse);
    let by_person = query.text("auto").is_empty();
    let person = sent.as_ref().and_then(|token| {
        let now_us = front.clock.boottime_us();
        let still =
            |person: &Person| front.person(person.id).is_some_and(|now| now.verifier == person.verifier);
        lock(&front.sessions).who(token, now_us, by_person, still)
    });
    let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let language = cookie_of(headers, LANGUAGE)
        .and_then(Language::of_tag)
        .unwrap_or_else(|| Language::preferred(accepted));
    let is_new = sent.is_none();
    let visit = Visit {
        peer: request.extensions().get::<Peer>().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0),
        token: sent.unwrap_or_else(|| Token::draw(&mut rand::rng())),
        language,
        person,
        path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        query,
        browser: cookie_of(headers, BROWSER).unwrap_or_default().to_owned(),
    };
    (visit, is_new)
}

/// Browsers say where a form comes from; one that says nothing is no browser of our days.
fn from_this_page(headers: &HeaderMap, host: &str) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let site = text(HeaderName::from_static("sec-fetch-site")).is_none_or(|site| site == "same-origin");
    let origin = text(header::ORIGIN).is_none_or(|origin| {
        origin.strip_prefix("https://").is_some_and(|from| from.eq_ignore_ascii_case(host))
    });
    site && origin
}

fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "geolocation=(), microphone=(), payment=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn cookie_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(|line| {
            line.split(';').find_map(|pair| pair.trim().split_once('=').filter(|(known, _)| *known == name))
        })
        .map(|(_, value)| value)
}

fn cookie(name: &str, value: &str, lasts_s: Option<u32>) -> HeaderValue {
    let lasts = lasts_s.map(|s| format!("; Max-Age={s}")).unwrap_or_default();
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Strict{lasts}");
    HeaderValue::from_str(&text).expect("names, digits and hexadecimal digits are good in a header")
}

/// The cookie of a login, or of a visitor who has logged out.
pub(super) fn token_cookie(token: &Token) -> HeaderValue {
    cookie(TOKEN, token.as_str(), None)
}

/// The cookie of a browser in which somebody has logged in.
pub(super) fn browser_cookie(value: &str) -> HeaderValue {
    cookie(BROWSER, value, Some(YEAR_S))
}

/// The cookie of a chosen language.
pub(super) fn language_cookie(language: Language) -> HeaderValue {
    cookie(LANGUAGE, language.tag(), Some(YEAR_S))
}

impl FromRequestParts<Arc<Front>> for Visit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Front>) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().expect("every request has passed `attend`"))
    }
}

/// A visit of somebody who is logged in; everybody else is led to the login.
#[derive(Debug)]
pub(super) struct Attended {
    /// The visit.
    pub visit: Visit,
    /// Who.
    pub person: Person,
}

impl FromRequestParts<Arc<Front>> for Attended {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, front: &Arc<Front>) -> Result<Self, Response> {
        let Ok(visit) = Visit::from_request_parts(parts, front).await;
        match visit.person.clone() {
            Some(person) => Ok(Self { visit, person }),
            None => {
                Err(Redirect::to(if front.set_up() { "/login?ended=1" } else { "/setup" }).into_response())
            }
        }
    }
}

/// The fields of a form that this page has made for this visitor.
#[derive(Debug)]
pub(super) struct Form(pub Fields);

/// The same, with room for a photo.
#[derive(Debug)]
pub(super) struct PhotoForm(pub Fields);

impl FromRequest<Arc<Front>> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, front: &Arc<Front>) -> Result<Self, Response> {
        read(request, front, MOST_FORM).await.map(Self)
    }
}

impl FromRequest<Arc<Front>> for PhotoForm {
    type Rejection = Response;

    async fn from_request(request: Request, front: &Arc<Front>) -> Result<Self, Response> {
        read(request, front, photo::MOST_BYTES + AROUND_PHOTO).await.map(Self)
    }
}

async fn read(request: Request<Body>, front: &Arc<Front>, most: usize) -> Result<Fields, Response> {
    let visit = request.extensions().get::<Visit>().cloned().expect("every request has passed `attend`");
    let words = visit.words();
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let kind = kind.to_owned();
    let Ok(body) = to_bytes(request.into_body(), most).await else {
        let page = layout::notice(front, &visit, words.all.too_large_title, words.all.too_large);
        return Err((StatusCode::PAYLOAD_TOO_LARGE, page).into_response());
    };
    Fields::read(&kind, &body)
        .filter(|fields| front.secret.proves(&visit.token, fields.text("proof")))
        .ok_or_else(|| {
            let page = layout::notice(front, &visit, words.all.expired_title, words.all.expired);
            (StatusCode::FORBIDDEN, page).into_response()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn a_form_from_another_site_is_refused_by_what_the_browser_says() {
        let host = "10.0.0.7:8443";
        for (from, good) in [
            (&[("origin", "https://10.0.0.7:8443"), ("sec-fetch-site", "same-origin")][..], true),
            (&[], true),
            (&[("origin", "https://evil.example")], false),
            (&[("origin", "http://10.0.0.7:8443")], false),
            (&[("origin", "null")], false),
            (&[("origin", "https://10.0.0.7:9000")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
        ] {
            assert_eq!(from_this_page(&headers(from), host), good, "{from:?}");
        }
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let headers = headers(&[("cookie", "a=1; __Host-kinara-language=hi; __Host-kinara=xyz")]);
        assert_eq!(cookie_of(&headers, TOKEN), Some("xyz"));
        assert_eq!(cookie_of(&headers, LANGUAGE), Some("hi"));
        assert_eq!(cookie_of(&headers, "kinara"), None);
    }

    #[test]
    fn cookies_are_for_this_page_over_https_only_and_no_script_reads_them() {
        let text = token_cookie(&Token::draw(&mut rand::rng()));
        let text = text.to_str().unwrap();
        for word in ["__Host-", "; Secure", "; HttpOnly", "; SameSite=Strict", "; Path=/"] {
            assert!(text.contains(word), "{text}");
        }
        assert!(!text.contains("Domain"));
    }
}
