"""Web search for the environment: backends behind one function, `make_search`, and a cache that processes share."""
import json
import os
import sqlite3
import sys
import time
from contextlib import closing, suppress

from plumbing.cli import InputError


class SearchFailed(InputError):
    """A search failed for good. It must not become an observation: the rollout ends with this reason."""


def make_search(spec, cache=None):
    """-> a callable, query -> text of the results (SearchFailed if it fails for good); None for "none".

    spec: `http:URL`, a Serper-style JSON API (its key in the environment: SEARCH_API_KEY), or
    `local:FILE.jsonl`, BM25 over lines {"title", "text"}. cache: an SQLite file, shared by processes.
    """
    kind, _, where = (spec or "none").partition(":")
    if kind == "none":
        return None
    if kind not in ("http", "https", "local"):
        raise ValueError(f"--search {spec}: not http:URL, local:FILE.jsonl or none")
    find = local_search(where) if kind == "local" else http_search(spec if where.startswith("//") else where)
    version = f" of {os.path.getmtime(where)}" if kind == "local" else ""      # another corpus, other results
    return cached(find, spec + version, cache) if cache else find


def cached(find, spec, path):
    """`find`, with its results kept in an SQLite file; failures are not kept."""
    def query_db(statement, *values):
        try:
            with closing(sqlite3.connect(path, timeout=60)) as db, db:     # waits for others, commits
                return db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise SearchFailed(f"the search cache {path}: {error}") from None

    def search(query):
        row = query_db("SELECT text FROM found WHERE spec = ? AND query = ?", spec, query)
        if row is None:
            row = [find(query)]
            query_db("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", spec, query, *row)
        return row[0]

    query_db("CREATE TABLE IF NOT EXISTS found (spec TEXT, query TEXT, text TEXT, PRIMARY KEY (spec, query))")
    return search


def pages(results):
    """[(title, snippet)] -> what the model sees."""
    lines = [f"Page: {i}\nTitle: {title}\nSnippet: {snippet}" for i, (title, snippet) in enumerate(results)]
    return "\n".join(lines) or "No results found."


def http_search(url, attempts=6, timeout=20):
    """POST {"q": query}; titles and snippets of the reply's "organic". Waits 1, 2, 4 ... s to retry."""
    import requests

    def search(query):
        headers, reason = {"X-API-KEY": os.environ.get("SEARCH_API_KEY", "")}, None
        for attempt in range(attempts):
            if reason:
                print(f"search: {reason}; trying again in {2 ** attempt // 2} s", file=sys.stderr, flush=True)
                time.sleep(2 ** attempt // 2)
            try:
                reply = requests.post(url, json={"q": query}, headers=headers, timeout=timeout)
            except requests.RequestException as error:
                reason = type(error).__name__
                continue
            reason = f"HTTP {reply.status_code} {reply.text[:200]!r}"
            if reply.status_code == 200:
                with suppress(ValueError, KeyError, TypeError, AttributeError):      # not Serper's format
                    found = reply.json()["organic"]
                    return pages([(p.get("title") or "", p.get("snippet") or "") for p in found])
            if reply.status_code < 500 and reply.status_code not in (408, 429):
                break
        where = url.split("?")[0]                          # what follows may be a key
        raise SearchFailed(f"search at {where} failed (quota, key, service or format): {reason}")
    return search


def local_search(path, results=10, snippet=500):
    """BM25 over a JSON-lines corpus held in memory."""
    import bm25s
    corpus = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                page = json.loads(line)
                corpus.append((page["title"], page["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number}: not {{"title", "text"}}: {error!r}') from None
    if not corpus:
        raise ValueError(f"{path}: no pages")
    tokens = lambda texts: bm25s.tokenize(texts, show_progress=False)
    index = bm25s.BM25()
    index.index(tokens([f"{title} {text}" for title, text in corpus]), show_progress=False)

    def search(query):
        found, scores = index.retrieve(tokens(query), k=min(results, len(corpus)), show_progress=False)
        best = [corpus[i] for i, score in zip(found[0], scores[0]) if score > 0]
        return pages([(title, text[:snippet]) for title, text in best])
    return search


def search_from_args(args):
    try:
        return make_search(args.search, args.search_cache)
    except (ValueError, OSError, ImportError, SearchFailed) as error:
        raise SearchFailed(f"--search {args.search} cannot be used: {error}") from None
