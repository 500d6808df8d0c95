"""A client of OpenAI-compatible chat endpoints. It survives failures of network and server, and pays once.

`chat_completion` makes one request, `ReplyCache` keeps replies, `ChatModel` joins both for many threads.
"""
import hashlib
import json
import os
import random
import re
import sqlite3
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz

import requests

from plumbing import spending
from plumbing.cli import InputError
from plumbing.records import Record

Usage = dict[str, int]                       # calls, prompt_tokens, completion_tokens

SESSION = requests.Session()
SESSION.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=256))
SESSION.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=256))

OPTIONAL = ("response_format", "seed")       # fields of a request that some servers do not take
NEW_NAME = "max_completion_tokens"           # what some servers want in place of max_tokens
EMPTY_REPLIES = 2                            # how often a reply without text or reason is asked for again
# No request will ever be answered: the key, the account, the address or the model is wrong.
NOT_ALLOWED = (401, 402, 403, 404, 405)
HOPELESS = re.compile(r"insufficient_quota|invalid_api_key|api key not valid", re.IGNORECASE)
MAY_PASS = (408, 409, 425, 429)              # worth another try, as every status from 500 on is
CUT_OFF = ("length", "max_tokens")           # the finish_reason of a reply that reached its limit of tokens
BROKEN_OFF = ("content_filter", "safety", "error", "abort")
WAIT = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")                  # "7", "1m30s", "20ms"
SECONDS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}


class TeacherDown(InputError):
    """The endpoint does not answer, refuses us, or does not serve the model."""


class BadReply(Exception):
    """The reply stayed unusable after all re-asks, or the request was refused; `raw` is the last reply."""

    def __init__(self, message: str, raw: str = "") -> None:
        super().__init__(message)
        self.raw = raw


def endpoint(url: str) -> str:
    """localhost:8000, http://localhost:8000 or its /v1/chat/completions -> http://localhost:8000/v1"""
    if "://" not in url:
        url = "http://" + url
    url = url.rstrip("/").removesuffix("/chat/completions")
    if re.search(r"/v\d+\w*(/|$)", url):                   # also …/v1beta/openai
        return url
    return url + "/v1"


def served_models(url: str, headers: dict[str, str]) -> list[str] | None:
    """The names of the models at an endpoint, None if it keeps no list; TeacherDown if nothing answers."""
    where = endpoint(url) + "/models"
    try:
        reply = SESSION.get(where, timeout=10, headers=headers)
        if not reply.ok:
            return None
        return [model["id"].removeprefix("models/") for model in reply.json()["data"]]       # models/gemini-…
    except (requests.JSONDecodeError, LookupError, TypeError, AttributeError):
        raise TeacherDown(f"{where} holds no list of models: it is no OpenAI-compatible endpoint") from None
    except (requests.RequestException, ValueError) as error:             # ValueError: what is no address
        raise TeacherDown(f"no model answers at {where} ({type(error).__name__}): start its server first, or "
                          "give its address") from None


# ---- one completion ----

def chat_completion(url: str, body: Record, *, headers: dict[str, str] | None = None, timeout: float = 600,
                    retries: int = 12, backoff: float = 0.5, optional: tuple[str, ...] = OPTIONAL,
                    refused: set[str] | None = None) -> Record:
    """choices[0] of one completion, with its "usage" and the number of "retries" added.

    What may pass is tried again, with exponential back-off, jitter and Retry-After, and is TeacherDown after
    the last try. A request that the server refuses is BadReply. Some servers do not take the `optional`
    fields, or have a new name for max_tokens: `refused` collects those without which a request was taken, and
    they are left out from then on. The content of the message is always text, "" if the model gave none
    (`no_text` says why).
    """
    where = endpoint(url) + "/chat/completions"
    refused = set() if refused is None else refused
    left_out = set(refused)
    fault = ""
    empty = 0
    wait = 0.0
    for attempt in range(retries + 1):
        time.sleep(wait)
        wait = min(60.0, backoff * 2 ** attempt) * random.uniform(0.5, 1.5)
        sent = {name: value for name, value in body.items() if name not in left_out}
        if "max_tokens" in left_out and "max_tokens" in body:
            sent[NEW_NAME] = body["max_tokens"]
        try:
            reply = SESSION.post(where, json=sent, headers=headers, timeout=(10, timeout))
        except requests.RequestException as error:
            fault = f"no reply ({type(error).__name__})"
            continue
        if reply.request.method != "POST":                   # what a redirection may make of it
            raise TeacherDown(f"{where} redirects to {reply.url}: give that address")
        choice = first_choice(reply)
        if choice is not None:
            if choice["message"]["content"] or choice.get("finish_reason") or empty == EMPTY_REPLIES:
                refused |= left_out
                return choice | {"retries": attempt}
            empty += 1
            fault = "a reply without text"
            continue
        status = status_of(reply)
        fault = "a reply that is no completion" if reply.ok else f"HTTP {status}"
        fault += f": {' '.join(reply.text.split())[:200]}"
        unknown = unknown_fields(reply.text, sent, optional) if status in (400, 422) else []
        if unknown:
            left_out.update(unknown)
        elif HOPELESS.search(reply.text) or (status in NOT_ALLOWED and "flagged" not in reply.text):
            raise TeacherDown(f"{where} does not serve {body['model']!r} ({fault}): check the address, the "
                              "model's name, the key and the account")
        elif reply.text.startswith("data:"):
            raise TeacherDown(f"{where} streams replies, which was not asked for: switch that off")
        elif status < 500 and status not in MAY_PASS:
            raise BadReply(f"the server refused this request ({fault})", reply.text)
        wait = max(wait, retry_after(reply))
    raise TeacherDown(f"{where} gave no completion of {body['model']!r} in {retries + 1} tries: {fault}")


def first_choice(reply: requests.Response) -> Record | None:
    """The first choice of a completion, its content as text, and its "usage"; None for anything else."""
    if not reply.ok:
        return None
    try:
        found = reply.json()
        choices = found["choices"] or [{}]                                      # a filter may leave none
        message = choices[0].get("message") or {}
        usage = found.get("usage")
        if not isinstance(usage, dict):
            usage = {}
        return choices[0] | {"message": message | {"content": text_of(message)}, "usage": usage}
    except (requests.JSONDecodeError, LookupError, TypeError, AttributeError):  # not the form of a completion
        return None


def status_of(reply: requests.Response) -> int:
    """The status of a reply that is no completion; some gateways answer 200 and put it into an "error"."""
    if not reply.ok:
        return reply.status_code
    try:
        code = int(reply.json()["error"]["code"])
    except (ValueError, LookupError, TypeError):           # no JSON, no error or no number
        return 502
    return code if 400 <= code < 600 else 502


def text_of(message: Record) -> str:
    """The text of a message, whose content may be text, null, or a list of parts (also of other kinds)."""
    content = message.get("content")
    if not isinstance(content, list):
        content = [content]
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
            part = part.get("text")
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)


def no_text(choice: Record, max_tokens: int | None) -> str | None:
    """Why a choice is no complete text; None if it is one."""
    message = choice["message"]
    ended = str(choice.get("finish_reason")).lower()
    if ended in CUT_OFF:
        return f"it was cut off after {max_tokens} tokens: make it shorter (or raise --teacher-max-tokens)"
    if ended in BROKEN_OFF:
        return f"the server broke it off ({ended})"
    if message["content"].strip():
        return None
    if message.get("refusal"):
        return f"it is a refusal: {str(message['refusal'])[:200]}"
    if message.get("tool_calls") or message.get("function_call"):
        return "it calls a tool, and holds no text"
    if message.get("reasoning_content") or message.get("reasoning"):
        return "it holds only thinking, and no text"
    return "it holds no text"


def unknown_fields(error: str, sent: Record, optional: tuple[str, ...]) -> list[str]:
    """The fields of a request that a server does not accept, by its error, which names them."""
    named = [name for name in optional if name in sent and name in error]
    if "max_tokens" in sent and NEW_NAME in error:
        named.append("max_tokens")
    return named


def retry_after(reply: requests.Response) -> float:
    """The seconds that a server asks to wait, at most 300; 0 if it names none.

    As "7", "1m30s", "20ms" or a date in Retry-After, or in words: "Please try again in 20ms."
    """
    words = re.search(r"try again in (\d[\d.hms]*)", reply.text)
    asked = reply.headers.get("Retry-After", words[1].rstrip(".") if words else "").strip()
    seconds = 0.0
    if re.fullmatch(rf"(?:{WAIT.pattern})+", asked):
        seconds = sum(float(number) * SECONDS[unit] for number, unit in WAIT.findall(asked))
    elif date := parsedate_tz(asked):
        seconds = mktime_tz(date) - time.time()
    return max(0.0, min(300.0, seconds))


# ---- replies that were paid before ----

class ReplyCache:
    """Replies by request, in an SQLite file (without a path, for this process only); safe in many threads."""

    def __init__(self, path: str | None) -> None:
        self.lock = threading.Lock()
        self.asking = weakref.WeakValueDictionary()         # key of a request -> the lock of those who ask it
        try:
            self.file = sqlite3.connect(path or "", timeout=60, check_same_thread=False, isolation_level=None)
            self.file.execute("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
        except sqlite3.Error as error:
            raise InputError(f"--teacher-cache {path} cannot be used ({error}): give an SQLite file, or "
                             "a new one in a folder that is there") from None

    def reply(self, body: Record, send: Callable[[Record], Record]) -> tuple[Record, bool]:
        """The reply to a request, from the file or else from send(body), and whether it was in the file.

        Threads that ask the same at the same time wait for one reply, which is sent for once.
        """
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self.lock:
            same_request = self.asking.setdefault(key, threading.Lock())
        with same_request:
            with self.lock:
                row = self.file.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
            if row is not None:
                return json.loads(row[0]), True
            reply = send(body)
            with self.lock:
                self.file.execute("REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))
            return reply, False


# ---- a model ----

def api_key(role: str) -> str | None:
    """The key of a teacher: TEACHER_API_KEY or OPENAI_API_KEY; of a judge: JUDGE_API_KEY, if set, or those.

    A JUDGE_API_KEY of any text keeps the teacher's key from a judge that needs none.
    """
    for name in (f"{role.upper()}_API_KEY", "TEACHER_API_KEY", "OPENAI_API_KEY"):
        if os.environ.get(name):
            return os.environ[name]
    return None


class ChatModel:
    """A chat model behind an OpenAI-compatible endpoint; many threads may ask it at once.

    role: "teacher" or "judge", as messages, flags and keys call it.
    """

    def __init__(self, url: str, model: str | None = None, *, role: str = "teacher", concurrency: int = 64,
                 timeout: float = 600, retries: int = 12, backoff: float = 0.5,
                 cache: str | None = None) -> None:
        self.url = url
        self.model = model
        self.role = role
        key = api_key(role)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = {"headers": self.headers, "timeout": timeout, "retries": retries, "backoff": backoff,
                     "optional": (*OPTIONAL, "temperature"),  # some models have only one temperature
                     "refused": set()}                       # filled with what the server does not take
        self.slots = threading.Semaphore(concurrency)        # requests in flight
        self.cache = ReplyCache(cache)
        self.counts = Counter()                              # calls, tokens, retries … of this process
        self.lock = threading.Lock()                         # of the counts

    def check(self) -> None:
        """TeacherDown if the model is not served; without a name, the first that is listed is taken."""
        names = served_models(self.url, self.headers)
        if not names and not self.model:
            raise TeacherDown(f"{endpoint(self.url)}/models lists no model: name one with "
                              f"--{self.role}-model")
        if names is None:                                    # no list: the name is believed
            return
        if not self.model:
            self.model = names[0]
        if self.model not in names:
            raise TeacherDown(f"{endpoint(self.url)}/models does not list the model {self.model}, but "
                              f"{', '.join(names[:5]) or 'none'}")

    def chat(self, request: Record, usage: Usage | None = None) -> tuple[str, str | None]:
        """The text of the reply to messages and sampling parameters; why it is not complete, or None.

        Calls and tokens are added to `usage`, also for a cached reply: records must not depend on restarts.
        """
        reply, cached = self.cache.reply({"model": self.model, **request}, self.send)
        spent = {name: int(reply["usage"].get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        if cached:
            self.count("cached")
        else:
            self.count("calls")
            self.count("retries", reply["retries"])
            for name, n in spent.items():
                self.count(name, n)
        if usage is not None:
            for name, n in {"calls": 1, **spent}.items():
                usage[name] = usage.get(name, 0) + n
        return reply["message"]["content"].strip(), no_text(reply, request.get("max_tokens"))

    def send(self, body: Record) -> Record:
        """One request over the network, as soon as a slot is free."""
        with self.slots:
            return chat_completion(self.url, body, **self.http)

    def count(self, name: str, n: int = 1) -> None:
        """Add to one of the counts of `summary`, and to what this process spends."""
        with self.lock:
            self.counts[name] += n
        spending.count(**{f"{self.role}_{name}": n})

    def summary(self) -> str:
        """What was asked of the model, in one line."""
        counts = [f"{n} {name.replace('_', ' ')}" for name, n in self.counts.items()]
        text = f"{self.role}: " + (", ".join(counts) or "asked nothing")
        left_out = self.http["refused"] - {"max_tokens"}
        if left_out:
            text += f"; asked without {', '.join(sorted(left_out))}, which the server does not take"
        return text
