"""A comment that is kept up to date on GitHub or GitLab, by a token that no line ever shows."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.errors import OptionError

_TIMEOUT_S = 30
_MOST_BYTES = 16 * 2**20
_PAGE = 100
_REF = re.compile(r"refs/pull/([0-9]+)/")
_ADVICE = {
    "github": "the job needs `permissions: pull-requests: write`; of a fork's pull request the token only reads",
    "gitlab": "GITLAB_TOKEN needs the scope api, and the role Reporter",
}


class _Author(msgspec.Struct, frozen=True):
    login: str | None = None
    id: int | None = None


class _Comment(msgspec.Struct, frozen=True):
    """A comment, as far as both hosts tell the same."""

    id: int
    body: str | None = None
    html_url: str | None = None
    user: _Author | None = None
    author: _Author | None = None


class _Refusal(msgspec.Struct, frozen=True):
    message: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where the comments of one pull request are: `comments` lists and takes them, `one` is the beginning of each.

    `edit` is the method that changes one, and `ours` says whether one is ours to change.
    """

    name: str
    comments: str
    one: str
    edit: str
    header: tuple[str, str]
    ours: Callable[[Host, _Comment], bool]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the token is for this host alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """Return None, so that it is an error."""


def github(environ: Mapping[str, str], author: str) -> Host:
    """Return the pull request of a job of GitHub Actions; raise OptionError naming the variable that is missing."""
    api = _api(environ.get("GITHUB_API_URL") or "https://api.github.com", "GITHUB_API_URL")
    repository = _wanted(environ, "GITHUB_REPOSITORY", r"[\w.-]+/[\w.-]+")
    token = _wanted(environ, "GITHUB_TOKEN", r"[\x21-\x7e]+", secret=True)
    number = _pull_request(environ)
    return Host(
        name="github",
        comments=f"{api}/repos/{repository}/issues/{number}/comments",
        one=f"{api}/repos/{repository}/issues/comments/",
        edit="PATCH",
        header=("Authorization", f"Bearer {token}"),
        # Anybody may write a comment that begins like ours.
        ours=lambda _, comment: comment.user is not None and comment.user.login == author,
    )


def gitlab(environ: Mapping[str, str], _: str) -> Host:
    """Return the merge request of a job of GitLab CI; raise OptionError naming the variable that is missing."""
    api = _api(_wanted(environ, "CI_API_V4_URL", r"\S+"), "CI_API_V4_URL")
    project = urllib.parse.quote(_wanted(environ, "CI_PROJECT_ID", r"\S+"), safe="")
    number = _wanted(environ, "CI_MERGE_REQUEST_IID", r"[0-9]+")
    token = _wanted(environ, "GITLAB_TOKEN", r"[\x21-\x7e]+", secret=True)
    notes = f"{api}/projects/{project}/merge_requests/{number}/notes"

    def ours(host: Host, comment: _Comment) -> bool:
        me = _call(host, "GET", f"{api}/user", _Author)
        return comment.author is not None and comment.author.id == me.id

    return Host(name="gitlab", comments=notes, one=f"{notes}/", edit="PUT", header=("PRIVATE-TOKEN", token), ours=ours)


HOSTS: Mapping[str, Callable[[Mapping[str, str], str], Host]] = {"github": github, "gitlab": gitlab}


def post(host: Host, marker: str, text: str, *, anew: bool) -> str:
    """Bring the comment that begins with the marker up to date, and return what was done in one line.

    Where there is none it is made, if `anew`. Raises OptionError for what the host refuses.
    """
    for found in _comments(host):
        if (found.body or "").startswith(marker) and host.ours(host, found):
            if _plain(found.body or "") == _plain(text):
                return f"nothing changed: {found.html_url or found.id}"
            changed = _call(host, host.edit, f"{host.one}{found.id}", _Comment, {"body": text})
            return f"updated: {changed.html_url or changed.id}"
    if not anew:
        return "nothing moved: no comment"
    made = _call(host, "POST", host.comments, _Comment, {"body": text})
    return f"posted: {made.html_url or made.id}"


def _plain(text: str) -> str:
    """Return text as hosts keep it: with one kind of line end, and without space at the end."""
    return text.replace("\r\n", "\n").rstrip()


def _comments(host: Host) -> Iterator[_Comment]:
    page, many = 0, _PAGE
    while many == _PAGE:
        page += 1
        found = _call(host, "GET", f"{host.comments}?per_page={_PAGE}&page={page}", tuple[_Comment, ...])
        many = len(found)
        yield from found


def _call(host: Host, method: str, url: str, kind: Any, body: Mapping[str, str] | None = None) -> Any:
    """Return what the host answers; raise OptionError with one line that does not hold the token."""
    headers = {"Accept": "application/json", "User-Agent": "pytest-infer", host.header[0]: host.header[1]}
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - see _api
    what = f"{host.name}: {method} {urllib.parse.urlsplit(url).path}"
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as answer:
            return untrusted.decode(msgspec.json.Decoder(kind), answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        advice = f" ({_ADVICE[host.name]})" if error.code in (401, 403, 404) else ""
        raise OptionError(f"{what}: {error.code} {_said(error)}{advice}") from None
    except urllib.error.URLError as error:
        raise OptionError(f"{what}: {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OptionError(f"{what}: {untrusted.failure(error)}") from None


def _said(error: urllib.error.HTTPError) -> str:
    """Return why a host refuses, in its own words where it has some."""
    try:
        with error:
            found = untrusted.decode(msgspec.json.Decoder(_Refusal), error.read(_MOST_BYTES)).message
    except (OSError, ValueError, http.client.HTTPException):
        found = None
    return " ".join(str(found or error.reason).split())[:200]


def _api(url: str, variable: str) -> str:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise OptionError(f"{variable} is no address of a web server")
    return url.rstrip("/")


def _wanted(environ: Mapping[str, str], variable: str, form: str, *, secret: bool = False) -> str:
    """Return a variable of the CI job; raise OptionError where it is missing or is none of that form."""
    value = environ.get(variable, "").strip()
    if not value:
        raise OptionError(f"--post needs {variable}, which is not set: it is for a job of a pull request")
    if not re.fullmatch(form, value):
        raise OptionError(f"{variable} cannot be used{'' if secret else f': {value!r}'}")
    return value


def _pull_request(environ: Mapping[str, str]) -> int:
    """Return the number of the pull request that a job is for."""
    found = _REF.match(environ.get("GITHUB_REF", ""))
    if found is not None:
        return int(found[1])
    path = environ.get("GITHUB_EVENT_PATH")
    try:
        event = json.loads(untrusted.text(untrusted.read(Path(path), untrusted.TEXT_BYTES))) if path else {}
        return int(event["pull_request"]["number"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise OptionError("--post github: this job is for no pull request (GITHUB_REF, GITHUB_EVENT_PATH)") from None
