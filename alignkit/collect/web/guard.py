"""Check every request before it reaches the page, and set the security headers of responses.

The threats are other pages in the same browser (CSRF, DNS rebinding), other people on the same
machine or network, and text that tries to run as a script.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT = 2**20
TOKEN_BYTES = 24  # 192 bits
LOOPBACK = ("127.0.0.1", "localhost", "::1")

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
NO_TOKEN = (
    "This page needs the link that `alignkit rank` printed when it started, token included.\n"
    "The link changes with every start; this browser keeps votes that were not sent yet.\n"
)


def new_token() -> str:
    """Return a new secret for one annotator's link."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class Guard:
    """ASGI middleware that checks host, token, origin, type and size of a request, in this order.

    `codes` maps codes, which open the page once instead of the token, to annotators.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Mapping[str, str],
        hosts: Iterable[str],
        cookie: str,
        codes: Mapping[str, str] | None = None,
    ) -> None:
        self.app = app
        self.tokens = dict(tokens)
        self.codes = dict(codes or {})
        self.hosts = {host.lower() for host in hosts}
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host", "").lower() not in self.hosts:
            return PlainTextResponse("this server does not have that name\n", 421)
        link = self._from_link(scope)
        if link is not None:
            return link
        annotator = self._annotator(_cookie(headers, self.cookie))
        if annotator is None:
            return PlainTextResponse(NO_TOKEN, 403)
        scope.setdefault("state", {})["annotator"] = annotator
        return self._refused_post(headers) if scope["method"] == "POST" else None

    def _from_link(self, scope: Scope) -> Response | None:
        """Turn the token or code of a link into a cookie and remove it from the address bar."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if code := query.get("code"):
            return self._from_code(scope, code[0])
        if not (given := query.get("token")):
            return None
        annotator = self._annotator(given[0])
        if annotator is None:
            return PlainTextResponse(NO_TOKEN, 403)
        return self._with_cookie(scope, annotator, RedirectResponse("/", 303))

    def _from_code(self, scope: Scope, given: str) -> Response:
        spent = _matching(given, {code: code for code in self.codes})
        if spent is None:
            return PlainTextResponse(NO_TOKEN, 403)
        # A browser that comes from a file is cross-site, so it would not send a strict cookie with
        # a redirect. It does send it when a page of this server refreshes.
        response = Response(status_code=200, headers={"refresh": "0; url=/"})
        return self._with_cookie(scope, self.codes.pop(spent), response)

    def _with_cookie(self, scope: Scope, annotator: str, response: Response) -> Response:
        scope.setdefault("state", {})["annotator"] = annotator
        token = self.tokens[annotator]
        response.set_cookie(self.cookie, token, httponly=True, samesite="strict", path="/")
        return response

    def _annotator(self, token: str) -> str | None:
        return _matching(token, self.tokens)

    def _refused_post(self, headers: Headers) -> Response | None:
        origin = headers.get("origin", "")
        if origin.lower() != f"http://{headers['host'].lower()}":
            return PlainTextResponse("votes are accepted only from this server's own page\n", 403)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return PlainTextResponse("votes must be JSON\n", 415)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > BODY_LIMIT:
            return PlainTextResponse("the vote is too large\n", 413)
        return None


def _matching(given: str, secret_of: Mapping[str, str]) -> str | None:
    """Return the owner of this secret. All are compared, so that timing reveals nothing."""
    sent = given.encode("utf-8", "replace")
    matches = [
        name for name, secret in secret_of.items() if secrets.compare_digest(secret.encode(), sent)
    ]
    return matches[0] if matches else None


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending
