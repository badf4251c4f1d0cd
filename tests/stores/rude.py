"""Tiny servers without manners: what real ones do on their worst days, on demand."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Rude:
    """An in-memory store that speaks just enough HTTP; subclasses know its verbs."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        #: Answers to give in place of the next ones.
        self.next: list[int] = []
        #: So many bytes of each body are kept, no more.
        self.keeps: int | None = None
        self.redirects_to: str | None = None
        self.hangs = False
        self.never_reads = False
        self.cuts_uploads = False
        self.cuts_downloads = False
        self.url = ""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((request.method, request.rel_url.raw_path))
        self.authorizations.append(request.headers.get("Authorization"))
        if self.redirects_to:
            return web.Response(status=307, headers={"Location": self.redirects_to + request.path.lstrip("/")})
        if self.hangs or self.never_reads:
            await asyncio.sleep(30)
        if self.cuts_uploads and request.method == "PUT":
            await request.content.read(1000)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        body = await request.read()
        if self.next:
            return web.Response(status=self.next.pop(0))
        return await self.answer(request, request.rel_url.raw_path, body)

    async def answer(self, request: web.BaseRequest, path: str, body: bytes) -> web.StreamResponse:
        raise NotImplementedError

    def keep(self, path: str, body: bytes) -> None:
        self.objects[path] = body if self.keeps is None else body[: self.keeps]

    async def send(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        if not self.cuts_downloads:
            return web.Response(body=body)
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Rude"]:
        runner = web.ServerRunner(web.Server(self), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            yield self
        finally:
            await runner.cleanup()


def error(status: int, code: str, message: str = "") -> web.Response:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


class RudeS3(Rude):
    def __init__(self, *, verifies: bool = True, conditional: str = "yes"):
        super().__init__()
        self.verifies = verifies
        #: yes, ignored, or refused (501).
        self.conditional = conditional
        self.says: web.Response | None = None

    async def answer(self, request, path, body):
        if self.says is not None:
            return self.says
        match request.method:
            case "PUT":
                if self.verifies and request.headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
                    return error(400, "XAmzContentSHA256Mismatch")
                if "If-None-Match" in request.headers:
                    if self.conditional == "refused":
                        return error(501, "NotImplemented")
                    if self.conditional == "yes" and path in self.objects:
                        return error(412, "PreconditionFailed")
                self.keep(path, body)
                return web.Response()
            case "HEAD" if path in self.objects:
                return web.Response(headers={"Content-Length": str(len(self.objects[path]))})
            case "GET" if path in self.objects:
                return await self.send(request, self.objects[path])
            case "DELETE":
                self.objects.pop(path, None)
                return web.Response(status=204)
        return error(404, "NoSuchKey")

    def held(self) -> dict[str, bytes]:
        return {path: body for path, body in self.objects.items() if "_canary" not in path}


class RudeDav(Rude):
    def __init__(self):
        super().__init__()
        self.folders = {"/"}
        #: A document to answer every PROPFIND with.
        self.multistatus: str | None = None

    async def answer(self, request, path, body):
        match request.method:
            case "MKCOL":
                if path in self.folders:
                    return web.Response(status=405)
                if path.rstrip("/").rpartition("/")[0] + "/" not in self.folders:
                    return web.Response(status=409)
                self.folders.add(path)
                return web.Response(status=201)
            case "PUT":
                if path.rpartition("/")[0] + "/" not in self.folders:
                    return web.Response(status=409)
                self.keep(path, body)
                return web.Response(status=201)
            case "MOVE" if path in self.objects:
                to = "/" + request.headers["Destination"].split("/", 3)[3]
                if to in self.objects:
                    return web.Response(status=412)
                self.objects[to] = self.objects.pop(path)
                return web.Response(status=201)
            case "PROPFIND" if self.multistatus is not None or path in self.objects:
                text = self.multistatus or (
                    f'<D:multistatus xmlns:D="DAV:"><D:response><D:href>{path}</D:href><D:propstat><D:prop>'
                    f"<D:resourcetype/><D:getcontentlength>{len(self.objects[path])}</D:getcontentlength>"
                    "</D:prop></D:propstat></D:response></D:multistatus>"
                )
                return web.Response(status=207, text=text, content_type="application/xml")
            case "GET" if path in self.objects:
                return await self.send(request, self.objects[path])
            case "DELETE" if path in self.objects:
                del self.objects[path]
                return web.Response(status=204)
        return web.Response(status=404)
