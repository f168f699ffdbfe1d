"""The page where people judge, served by the program that waits for them: on 127.0.0.1, to whoever has a link.

    with Page(["Ann", "Ben"]) as page:
        page.links                  # {rater: http://127.0.0.1:PORT/#TOKEN}
        page.ask(round)             # returns when the round is over

A token is in the part of the link that browsers keep to themselves. Who looks sees outputs, left and right by luck, and
nothing of whose they are.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jevomerge.devices.signals import safe_point
from jevomerge.errors import InputError
from jevomerge.fitness.human.round import Question, Round
from jevomerge.fitness.human.votes import WON

HOST = "127.0.0.1"
LOOK = 0.2  # seconds between looks for a signal
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def require() -> None:
    """Raise InputError unless what serves the page is installed."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise InputError(
            f"people judge in a page that needs {error.name}, which is not installed: pip install 'jevomerge[people]'"
        ) from None
    del starlette, uvicorn


class Shown(NamedTuple):
    """A question that a rater has in view; an answer counts also when its round is over."""

    id: str
    round: Round
    question: Question
    since: float


class Page:
    """The page of some raters, and what each is asked."""

    def __init__(self, raters: Sequence[str], port: int = 0):
        """Bind the port; 0: one that is free.

        Raises:
            InputError: if it is not free.
        """
        self._raters = {secrets.token_urlsafe(16): rater for rater in raters}
        self._round: Round | None = None
        self._shown: dict[str, Shown] = {}  # by token
        self._news = threading.Condition()  # and the lock of both
        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise InputError(f"people: port {port} cannot be used ({error.strerror}); give another `port`") from None

    @property
    def links(self) -> dict[str, str]:
        """By rater."""
        return {r: f"http://{HOST}:{self._socket.getsockname()[1]}/#{token}" for token, r in self._raters.items()}

    def __enter__(self) -> Page:
        """Serve."""
        import uvicorn  # imported late: few need it

        config = uvicorn.Config(self._app(), log_config=None, log_level="critical", access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Serve no more."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    def ask(self, round: Round) -> None:
        """Have a round's questions answered; a signal is heeded while people think."""
        with self._news:
            self._round = round
            try:
                while not round.over:
                    safe_point()
                    self._news.wait(LOOK)
            finally:
                self._round = None

    # --- what raters do, in threads of the server ----------------------------------------------------------

    def next(self, token: str) -> dict[str, Any]:
        """What a rater sees now: the question that he had, if he has not answered; {} for nothing yet."""
        with self._news:
            round = self._round
            if round is None or round.over:
                return {}
            if token not in self._shown or self._shown[token].round is not round:
                others = [shown.question for shown in self._shown.values() if shown.round is round]
                question = round.question(others) or round.question()
                assert question is not None
                self._shown[token] = Shown(secrets.token_hex(8), round, question, time.monotonic())
            id, _, (prompt, left, right), _ = self._shown[token]
            return {
                "id": id,
                "asked": round.asked,
                "prompt": round.prompts[prompt].shown,
                "left": left.shown,
                "right": right.shown,
                "votes": round.count,
                "limit": round.limit,
            }

    def vote(self, token: str, id: str, choice: Any) -> bool:
        """A rater's answer; whether it is one to what the rater has in view."""
        with self._news:
            shown = self._shown.get(token)
            if shown is None or shown.id != id or choice not in WON:
                return False
            shown.round.vote(shown.question, choice, self._raters[token], time.monotonic() - shown.since)
            del self._shown[token]  # once it is on disk
            self._news.notify()
            return True

    def _app(self) -> Any:
        """The page, and what its script asks for; whatever has no token is refused."""
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, JSONResponse, Response
        from starlette.routing import Route

        html = files("jevomerge.fitness.human").joinpath("page.html").read_text(encoding="utf-8")

        def token_of(request: Request) -> str | None:
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            return token if token in self._raters else None

        async def page(request: Request) -> Response:
            return HTMLResponse(html, headers=HEADERS)

        def question(request: Request) -> Response:
            token = token_of(request)
            if token is None:
                return Response(status_code=401)
            return JSONResponse(self.next(token), headers=HEADERS)

        async def vote(request: Request) -> Response:
            token = token_of(request)
            if token is None:
                return Response(status_code=401)
            try:
                given = await request.json()
                known = await run_in_threadpool(self.vote, token, given["id"], given["choice"])
            except (ValueError, TypeError, LookupError):  # no JSON, or not what it should hold
                return Response(status_code=400)
            return Response(status_code=204 if known else 409)

        routes = [Route("/", page), Route("/question", question), Route("/vote", vote, methods=["POST"])]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no other site's name leads here
        return Starlette(routes=routes, middleware=[hosts])
