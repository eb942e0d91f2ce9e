"""A server that keeps the comments of one pull request as GitHub and GitLab do, as far as we ask."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "ghs_neverShown0123"


class Server(ThreadingHTTPServer):
    """Comments of one pull request, oldest first; `asked` are the requests, `refuse` the answer to all
    of them, and `broken` one as bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.comments, self.asked, self.refuse, self.broken = [], [], None, None
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.variables = {
            "GITHUB_API_URL": self.url,
            "GITHUB_REPOSITORY": "o/r",
            "GITHUB_REF": "refs/pull/5/merge",
            "GITHUB_TOKEN": TOKEN,
            "CI_API_V4_URL": self.url,
            "CI_PROJECT_ID": "g/p",
            "CI_MERGE_REQUEST_IID": "5",
            "GITLAB_TOKEN": TOKEN,
        }

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return super().__enter__()

    def __exit__(self, *raised):
        self.shutdown()
        self._thread.join()
        super().__exit__(*raised)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self):
        server, path = self.server, self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        token = self.headers.get("Authorization") or self.headers.get("PRIVATE-TOKEN")
        server.asked.append((self.command, path, token))
        if server.broken is not None:
            self.wfile.write(server.broken)
            return
        code, found = 200, None
        if server.refuse is not None:
            code, found = server.refuse, {"message": f"not with {TOKEN[:3]}…"}
        elif path.endswith("/user"):
            found = {"id": 7}
        elif self.command == "GET":
            page = int(self.path.rpartition("page=")[2])
            found = server.comments[100 * (page - 1) : 100 * page]
        elif self.command == "POST":
            found = comment_of(len(server.comments), body["body"])
            server.comments.append(found)
        else:
            found = next(one for one in server.comments if path.endswith(f"/{one['id']}"))
            found["body"] = body["body"]
        self.send_response(code)
        if 300 <= code < 400:
            self.send_header("Location", f"{server.url}/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    do_GET = do_POST = do_PATCH = do_PUT = answer  # noqa: N815 - http.server's names


def comment_of(number, body, login="github-actions[bot]", author=7):
    return {"id": number, "body": body, "user": {"login": login}, "author": {"id": author}}
