"""Tiny servers without manners: what real ones do on their worst days, on demand."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote
from xml.etree import ElementTree

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
        body = await request.content.read()
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
        #: What it answers to a wrong hash.
        self.on_damage = (400, "XAmzContentSHA256Mismatch")
        #: What it answers to what is there already.
        self.on_taken = (412, "PreconditionFailed")
        #: What it answers to any header of this beginning.
        self.refuses: dict[str, tuple[int, str]] = {}
        #: Locks that are asked for in a put are kept: in whole puts, in uploads in parts.
        self.locks = {"whole", "parts"}
        self.knows_retention = True
        #: No lock is shorter.
        self.shortest_lock = timedelta()
        self.wants_md5 = False
        self.has_parts = True
        self.classes = {"STANDARD", "STANDARD_IA", "GLACIER"}
        #: The name under which something is kept.
        self.named: Callable[[str], str] = lambda path: path
        #: What it answers to a put below the name of an object; None: it keeps both.
        self.on_object_above: tuple[int, str] | None = None
        self.about: dict[str, dict[str, str]] = {}
        self.uploads: dict[str, tuple[dict[str, str], dict[str, bytes]]] = {}
        self.headers: list[tuple[str, str, dict[str, str]]] = []

    async def answer(self, request, path, body):
        self.headers.append((request.method, request.path_qs, dict(request.headers)))
        path = self.named(path)
        query = request.query
        if refused := self.refused(request, path, body):
            return refused
        if "retention" in query and self.knows_retention:
            if path in self.objects:
                root = ElementTree.fromstring(body)
                mode, until = (root.find(f"{{*}}{name}").text for name in ("Mode", "RetainUntilDate"))
                self.about[path] |= {"x-amz-object-lock-mode": mode, "x-amz-object-lock-retain-until-date": until}
            return web.Response()
        if "object-lock" in query and self.knows_retention:
            return document(
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"
            )
        if "uploads" in query or "uploadId" in query:
            return self.parts(request, path, body)
        return await self.whole(request, path, body)

    async def whole(self, request, path, body):
        query = request.query
        match request.method:
            case "PUT":
                self.put(path, body, self.told(request, "whole"))
                return web.Response()
            case "HEAD" if path in self.objects:
                return web.Response(headers={"Content-Length": str(len(self.objects[path]))} | self.about[path])
            case "GET" if path in self.objects:
                if self.about[path].get("x-amz-storage-class") == "GLACIER":
                    return error(403, "InvalidObjectState")
                return await self.send(request, self.objects[path])
            case "GET" if "list-type" in query:
                bucket = path.rstrip("/") + "/"
                keys = [unquote(at.removeprefix(bucket)) for at in self.objects]
                found = "".join(
                    f"<Contents><Key>{quote(key)}</Key><Size>1</Size></Contents>"
                    for key in sorted(keys)
                    if key.startswith(query.get("prefix", ""))
                )
                return document(f"<ListBucketResult><EncodingType>url</EncodingType>{found}</ListBucketResult>")
            case "DELETE":
                self.objects.pop(path, None)
                return web.Response(status=204)
        return error(404, "NoSuchKey")

    def refused(self, request, path, body):
        headers = request.headers
        if self.says is not None:
            # An answer can be sent once.
            return web.Response(status=self.says.status, body=self.says.body, content_type=self.says.content_type)
        for beginning, said in self.refuses.items():
            if any(name.lower().startswith(beginning) for name in headers):
                return error(*said)
        return self.refused_put(request, path, body) if request.method in {"PUT", "POST"} else None

    def refused_put(self, request, path, body):
        headers = request.headers
        if self.verifies and headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
            return error(*self.on_damage)
        if self.wants_md5 and ("x-amz-object-lock-mode" in headers or "retention" in request.query):
            md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
            if "uploads" not in request.query and headers.get("Content-MD5") != md5:
                return error(400, "InvalidRequest", "Content-MD5 is required with Object Lock parameters")
        if "x-amz-object-lock-mode" in headers:
            until = datetime.fromisoformat(headers["x-amz-object-lock-retain-until-date"])
            if until < datetime.now(UTC) + self.shortest_lock - timedelta(seconds=5):
                return error(403, "AccessDenied")
        if self.on_object_above and any(path.startswith(f"{at}/") for at in self.objects):
            return error(*self.on_object_above)
        if headers.get("x-amz-storage-class", "STANDARD") not in self.classes:
            return error(400, "InvalidStorageClass")
        if "If-None-Match" in headers:
            if self.conditional == "refused":
                return error(501, "NotImplemented")
            if self.conditional == "yes" and path in self.objects:
                return error(*self.on_taken)
        return None

    def told(self, request, how):
        kept = ["x-amz-storage-class"]
        if how in self.locks:
            kept += ["x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"]
        return {name: request.headers[name] for name in kept if name in request.headers}

    def put(self, path, body, about):
        self.keep(path, body)
        self.about[path] = about

    def parts(self, request, path, body):
        if not self.has_parts:
            return error(501, "NotImplemented")
        upload = request.query.get("uploadId", "")
        match request.method:
            case "POST" if "uploads" in request.query:
                upload = str(len(self.uploads))
                self.uploads[upload] = self.told(request, "parts"), {}
                return document(f"<Started><UploadId>{upload}</UploadId></Started>")
            case "PUT":
                self.uploads[upload][1][request.query["partNumber"]] = body
                sent = request.headers.get("x-amz-checksum-sha256")
                return web.Response(headers={"ETag": "e"} | ({"x-amz-checksum-sha256": sent} if sent else {}))
            case "POST":
                about, parts = self.uploads.pop(upload)
                self.put(path, b"".join(parts[number] for number in sorted(parts, key=int)), about)
                return document("<Done/>")
        self.uploads.pop(upload, None)
        return web.Response(status=204)

    def held(self) -> dict[str, bytes]:
        return {path: body for path, body in self.objects.items() if "_canary" not in path}


def document(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/xml")


class RudeDav(Rude):
    def __init__(self):
        super().__init__()
        self.folders = {"/"}
        #: A document to answer every PROPFIND with.
        self.multistatus: str | None = None
        #: Names that it takes.
        self.takes: Callable[[str], bool] = lambda name: True
        #: The name under which something is kept.
        self.named: Callable[[str], str] = lambda path: path
        #: As a proxy that moves the root shows it.
        self.shown: Callable[[str], str] = lambda path: path
        #: Folders are in their own listings.
        self.lists_itself = True
        #: What it answers to a MOVE on a name that is taken.
        self.on_taken = 412
        #: The target that it makes of a Destination's path.
        self.aimed: Callable[[str], str] = lambda path: path
        #: A MOVE onto a folder brings the file into it, and is 204.
        self.moves_into_folders = False
        #: What it answers where a file lies in the place of a folder.
        self.below_a_file = {"MKCOL": 409, "PUT": 409}
        #: What every method but these two gets there; None: what is missing is 404.
        self.else_below_a_file: int | None = None

    async def answer(self, request, path, body):
        path = self.named(path)
        if request.method == "PROPFIND" and "xml" not in request.headers.get("Content-Type", ""):
            return web.Response(status=415)
        if refused := self.refused(request.method, path):
            return web.Response(status=refused)
        match request.method:
            case "MKCOL":
                return web.Response(status=self.make(path))
            case "PUT":
                if path.rpartition("/")[0] + "/" not in self.folders:
                    return web.Response(status=409)
                self.keep(path, body)
                return web.Response(status=201)
            case "MOVE" if path in self.objects:
                return web.Response(status=self.move(path, request.headers["Destination"]))
            case "PROPFIND":
                return self.found(path, request.headers["Depth"])
            case "GET" if path in self.objects:
                return await self.send(request, self.objects[path])
            case "DELETE" if path in self.objects:
                del self.objects[path]
                return web.Response(status=204)
        return web.Response(status=404)

    def refused(self, method, path):
        if method in {"PUT", "MKCOL"} and not self.takes(unquote(path.rstrip("/").rpartition("/")[2])):
            return 403
        if any(path.startswith(f"{at}/") for at in self.objects):
            return self.below_a_file.get(method, self.else_below_a_file)
        return None

    def move(self, path, destination):
        to = self.aimed(self.named("/" + destination.split("/", 3)[3]))
        if not self.takes(unquote(to.rpartition("/")[2])):
            return 403
        if f"{to}/" in self.folders and self.moves_into_folders:
            self.objects[to + path[path.rindex("/") :]] = self.objects.pop(path)
            return 204
        if to in self.objects or f"{to}/" in self.folders:
            return self.on_taken
        self.objects[to] = self.objects.pop(path)
        return 201

    def make(self, path):
        if path in self.folders:
            return 405
        if path.rstrip("/").rpartition("/")[0] + "/" not in self.folders:
            return 409
        self.folders.add(path)
        return 201

    def found(self, path, depth):
        if self.multistatus is not None:
            return web.Response(status=207, text=self.multistatus, content_type="application/xml")
        if path in self.objects:
            listed = [path]
        elif (folder := path.rstrip("/") + "/") in self.folders:
            below = [at for at in (*self.folders, *self.objects) if at != folder and at.startswith(folder)]
            below = [at for at in below if "/" not in at[len(folder) :].rstrip("/")]
            listed = [folder] * (self.lists_itself or depth == "0") + below * (depth == "1")
        else:
            return web.Response(status=404)
        text = "".join(map(self.entry, listed))
        text = f'<D:multistatus xmlns:D="DAV:">{text}</D:multistatus>'
        return web.Response(status=207, text=text, content_type="application/xml")

    def entry(self, path):
        kind = "<D:resourcetype><D:collection/></D:resourcetype>" if path in self.folders else "<D:resourcetype/>"
        size = f"<D:getcontentlength>{len(self.objects[path])}</D:getcontentlength>" if path in self.objects else ""
        href = f"<D:href>{self.shown(path)}</D:href>"
        return f"<D:response>{href}<D:propstat><D:prop>{kind}{size}</D:prop></D:propstat></D:response>"
