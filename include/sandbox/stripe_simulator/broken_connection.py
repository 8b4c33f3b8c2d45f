"""Answers that do not arrive: the connection is reset, closed or left silent instead.

ASGI has no words for that, so uvicorn's protocol lends every request its connection's transport.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Ending = Literal["reset", "close", "hang"]

#: Linger for 0 seconds: closing the socket sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class LendingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which shows every request its connection's transport."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class BrokenConnection(Response):
    """Ends the connection, after half of the body of an answer where one is given, else without a byte."""

    def __init__(self, ending: Ending, half_sent: Response | None = None) -> None:
        super().__init__()
        self._ending = ending
        self._half_sent = half_sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport: asyncio.Transport = scope["state"]["transport"]
        if self._half_sent is not None:
            await _send_half(self._half_sent, transport, send)
        if self._ending == "reset":
            _reset(transport)
        elif self._ending == "close":
            transport.close()
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:  # the simulator ends before the client has given up: still no answer
            _reset(transport)


async def _send_half(answer: Response, transport: asyncio.Transport, send: Send) -> None:
    """Returns when the half is in the kernel's hands; a reset would discard what is not."""
    await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body[: len(answer.body) // 2], "more_body": True})
    while transport.get_write_buffer_size() and not transport.is_closing():
        await asyncio.sleep(0)


def _reset(transport: asyncio.Transport) -> None:
    if transport.is_closing():
        return
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
