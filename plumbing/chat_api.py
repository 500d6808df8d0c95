"""A client of OpenAI-compatible chat endpoints that outlives failures of network and server."""
import random
import re
import time

import requests

from plumbing.cli import InputError


class TeacherDown(InputError):
    """The endpoint gave no usable reply after all retries."""


class BadReply(Exception):
    """The reply stayed unusable after the re-ask, or the request was refused; `raw` is the last reply."""
    def __init__(self, message, raw=""):
        super().__init__(message)
        self.raw = raw
SESSION = requests.Session()
for scheme in ("http://", "https://"):
    SESSION.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=256))


def endpoint(url):
    """localhost:8000 or http://localhost:8000 -> http://localhost:8000/v1"""
    url = url if "://" in url else "http://" + url
    return url.rstrip("/") + ("" if re.search(r"/v\d+/?$", url) else "/v1")


def chat_completion(url, body, *, headers=None, timeout=600, retries=12, backoff=0.5, refused=None):
    """choices[0] of one completion, its "usage" and the number of "retries". What may pass is tried again,
    with exponential back-off, jitter and Retry-After; then TeacherDown, or BadReply if the server refuses
    just this request. `refused` collects optional fields that the server does not know."""
    url, refused, fault = endpoint(url) + "/chat/completions", set() if refused is None else refused, ""
    for attempt in range(retries + 1):
        wait = min(60.0, backoff * 2 ** attempt) * random.uniform(0.5, 1.5)
        sent = {name: value for name, value in body.items() if name not in refused}
        try:
            reply = SESSION.post(url, json=sent, headers=headers, timeout=(10, timeout))
            fault = f"HTTP {reply.status_code}: {' '.join(reply.text.split())[:200]}"
            if reply.ok:
                found = reply.json()
                found["choices"][0]["message"]["content"] += ""           # a text, not null
                return found["choices"][0] | {"usage": found.get("usage") or {}, "retries": attempt}
            unknown = {name for name in ("response_format", "seed") if name in sent and name in reply.text}
            if reply.status_code in (400, 422) and unknown:
                refused |= unknown
            elif reply.status_code in (401, 403, 404):
                raise TeacherDown(f"{url} refuses {body['model']!r} ({fault})")
            elif reply.status_code < 500 and reply.status_code not in (408, 409, 425, 429):
                raise BadReply(f"the server refused this request ({fault})", reply.text)
            if asked := re.fullmatch(r"\d+(\.\d+)?", reply.headers.get("Retry-After", "")):
                wait = max(wait, min(300.0, float(asked[0])))
        except (requests.RequestException, ValueError, TypeError, LookupError) as error:
            fault = f"no usable reply ({type(error).__name__})"
        time.sleep(wait if attempt < retries else 0)
    raise TeacherDown(f"{url} gave no completion of {body['model']!r} in {retries + 1} tries: {fault}")
