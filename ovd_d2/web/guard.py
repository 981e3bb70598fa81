"""What reaches the page and the endpoints, and what browsers may do with the answers."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# What the page needs of gradio; its other routes (proxy, code editor, run by name) do not answer.
PAGE = ("", "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
PAGE_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/custom_component/",
                "/gradio_api/heartbeat/", "/gradio_api/upload_progress")  # fmt: skip
PAGE_CALLS = ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data",
              "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/startup-events",
              "/gradio_api/app_id", "/gradio_api/info")  # fmt: skip
FILES = "/gradio_api/file="
OWN = ("/v1/", "/healthz", "/openapi.json")
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_MARGIN = 64 << 10  # of a multipart body around its file


class Guard:
    """ASGI middleware: caps bodies, hides routes that nobody needs, sets headers.

    Args:
        app: what answers.
        max_bytes: of a body; a larger one is refused with 413.
        may_store: whether another upload can be kept.
    """

    def __init__(self, app: Any, max_bytes: int, may_store: Callable[[], bool]) -> None:
        self.app = app
        self.max_bytes = max_bytes + _MARGIN
        self.may_store = may_store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            status, sentence = refused
            answer = JSONResponse({"error": sentence}, status_code=status)
            await answer(scope, receive, send_with_headers)
            return
        await self.app(scope, self._capped(receive), send_with_headers)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence, if the request is turned away unread."""
        path, headers = scope["path"], dict(scope["headers"])
        if not _is_known(path):
            return 404, "There is nothing here."
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "The header content-length is no number."
        if int(length[:20]) > self.max_bytes:
            return 413, f"The request has more than {self.max_bytes} bytes: send a smaller file."
        if path == "/gradio_api/upload" and not self.may_store():
            return 503, "Too many uploads are kept: try again later."
        is_form = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        if path in ("/v1/predict", "/v1/ground") and scope["method"] == "POST" and not is_form:
            return 415, "Send a form (multipart/form-data) with the image as its field file."
        return None

    def _capped(self, receive: Receive) -> Receive:
        """``receive`` that counts: bodies without a length cannot be longer either."""
        total = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.max_bytes:
                raise HTTPException(413, f"The request has more than {self.max_bytes} bytes.")
            return message

        return counted


def _is_known(path: str) -> bool:
    if path.startswith(FILES):  # files that the page has made, no addresses
        return "://" not in path
    return path in PAGE or path in PAGE_CALLS or path.startswith((*PAGE_FOLDERS, *OWN))
