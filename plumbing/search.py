"""Web search for the environment: a service or a local corpus, and a cache that processes share."""
import argparse
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from plumbing.chat_api import retry_after
from plumbing.cli import InputError
from plumbing.records import read_jsonl

Search = Callable[[str], str]            # query -> text of the results


class SearchFailed(InputError):
    """A search failed for good. It must not become an observation: the rollout ends with this reason."""


def search_from_args(args: argparse.Namespace) -> Search | None:
    """The search of --search and --search-cache."""
    try:
        return make_search(args.search, args.search_cache)
    except InputError:
        raise                                              # it names the file
    except OSError as error:
        raise SearchFailed(f"--search {args.search} cannot be read: {error.strerror}") from None
    except (ValueError, ImportError) as error:
        raise SearchFailed(f"--search {args.search} cannot be used: {error}") from None


def make_search(spec: str | None, cache: str | None = None) -> Search | None:
    """-> a callable, query -> text of the results (SearchFailed if it fails for good); None for "none".

    spec: `http:URL`, a Serper-style JSON API (its key in the environment: SEARCH_API_KEY), or
    `local:FILE.jsonl`, BM25 over lines {"title", "text"}. cache: an SQLite file, shared by processes.
    """
    kind, _, where = (spec or "none").partition(":")
    if kind == "none":
        return None
    name_in_cache = spec
    if kind == "local":
        search = local_search(where)
        name_in_cache += f" of {os.path.getmtime(where)}"                # another corpus has other results
    elif kind in ("http", "https"):
        url = spec if where.startswith("//") else where                  # http://host/path or http:URL
        search = http_search(url)
    else:
        raise ValueError("it is not http:URL, local:FILE.jsonl or none")
    if cache:
        return cached_search(search, name_in_cache, cache)
    return search


def pages(results: list[tuple[str, str]]) -> str:
    """[(title, snippet)] -> what the model sees."""
    if not results:
        return "No results found."
    lines = [f"Page: {i}\nTitle: {title}\nSnippet: {snippet}" for i, (title, snippet) in enumerate(results)]
    return "\n".join(lines)


# ---- the cache ----

def cached_search(search: Search, spec: str, path: str) -> Search:
    """A search whose results are kept in an SQLite file; failures are not kept.

    spec: names the search in the file, which may hold the results of several.
    """
    def query_db(statement: str, *values: str) -> tuple | None:
        try:
            with closing(sqlite3.connect(path, timeout=60)) as db, db:     # waits for others, commits
                return db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise SearchFailed(f"--search-cache {path} cannot be used ({error}): give an SQLite file, or "
                               "a new one in a folder that is there") from None

    def search_once(query: str) -> str:
        row = query_db("SELECT text FROM found WHERE spec = ? AND query = ?", spec, query)
        if row is not None:
            return row[0]
        text = search(query)
        query_db("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", spec, query, text)
        return text

    query_db("CREATE TABLE IF NOT EXISTS found (spec TEXT, query TEXT, text TEXT, PRIMARY KEY (spec, query))")
    return search_once


# ---- a service ----

def http_search(url: str, attempts: int = 12, timeout: float = 20) -> Search:
    """POST {"q": query}; titles and snippets of the reply's "organic".

    What may pass is tried again, about six minutes in all: after 1, 2, 4 ... 60 s, and not before the
    service's Retry-After.
    """
    import requests

    def search(query: str) -> str:
        headers = {"X-API-KEY": os.environ.get("SEARCH_API_KEY", "")}
        reason = ""
        wait = 0.0
        for attempt in range(attempts):
            if attempt > 0:
                print(f"search: {reason}; trying again in {wait:.0f} s", file=sys.stderr, flush=True)
                time.sleep(wait)
            wait = min(60.0, 2.0 ** attempt) * random.uniform(1, 1.5)        # not all threads at once
            try:
                reply = requests.post(url, json={"q": query}, headers=headers, timeout=timeout)
            except ValueError as error:                                      # it is no address
                reason = str(error)
                break
            except requests.RequestException as error:
                reason = type(error).__name__
                continue
            status = reply.status_code
            results = serper_results(reply) if status == 200 else None
            if results is not None:
                return pages(results)
            reason = f"HTTP {status} {reply.text[:200]!r}"
            may_pass = status >= 500 or status in (408, 429)             # timeout, too many requests
            if not may_pass:
                break
            wait = max(wait, retry_after(reply))
        where = url.split("?")[0]                          # what follows may be a key
        raise SearchFailed(f"search at {where} failed (quota, key, service or format): {reason}")

    return search


def serper_results(reply: Any) -> list[tuple[str, str]] | None:
    """requests' reply -> [(title, snippet)]; None if it is not in Serper's format."""
    try:
        content = reply.json()
    except ValueError:
        return None
    found = content.get("organic") if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(page, dict) for page in found):
        return None
    return [(page.get("title") or "", page.get("snippet") or "") for page in found]


# ---- a corpus ----

def read_corpus(path: str) -> list[tuple[str, str]]:
    """[(title, text)] of a file of JSON lines."""
    corpus = []
    for number, page in read_jsonl(path):
        for field in ("title", "text"):
            if not isinstance(page.get(field), str):
                raise SearchFailed(f'{path}, line {number}: the field "{field}" is missing or not a text')
        corpus.append((page["title"], page["text"]))
    if not corpus:
        raise SearchFailed(f"{path} is empty: it holds no page to search")
    return corpus


def local_search(path: str, results: int = 10, snippet: int = 500) -> Search:
    """BM25 over a JSON-lines corpus held in memory. snippet: characters of a page that are shown."""
    import bm25s

    def tokens(texts: str | list[str]) -> Any:
        return bm25s.tokenize(texts, show_progress=False)

    corpus = read_corpus(path)
    index = bm25s.BM25()
    index.index(tokens([f"{title} {text}" for title, text in corpus]), show_progress=False)

    def search(query: str) -> str:
        found, scores = index.retrieve(tokens(query), k=min(results, len(corpus)), show_progress=False)
        best = []
        for i, score in zip(found[0], scores[0], strict=True):
            if score > 0:
                title, text = corpus[i]
                best.append((title, text[:snippet]))
        return pages(best)

    return search
