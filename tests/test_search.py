"""How long a search waits for a service that is busy."""
import time

import pytest
import requests

from plumbing.search import SearchFailed, make_search


class Busy:
    """A service that answers 429 so many times, with these headers, then finds nothing."""

    def __init__(self, times, headers):
        self.times = times
        self.headers = headers

    def post(self, url, **_):
        reply = requests.Response()
        reply.status_code = 200
        reply._content = b'{"organic": []}'
        if self.times > 0:
            self.times -= 1
            reply.status_code = 429
            reply.headers.update(self.headers)
        return reply


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def test_a_busy_service_is_asked_for_minutes(waits, monkeypatch):
    monkeypatch.setattr(requests, "post", Busy(8, {}).post)
    assert make_search("http://127.0.0.1:9")("q") == "No results found."
    assert len(waits) == 8 and sum(waits) > 180 and max(waits) <= 90
    assert all(2 ** k <= wait <= 1.5 * 2 ** k for k, wait in enumerate(waits[:6]))

    monkeypatch.setattr(requests, "post", Busy(99, {}).post)
    with pytest.raises(SearchFailed, match="HTTP 429"):
        make_search("http://127.0.0.1:9")("q")


@pytest.mark.parametrize("asked, waited", [("7", 7), ("0.2", 1), ("100000", 300), ("soon", 1)])
def test_the_service_says_when_to_come_back(waits, monkeypatch, asked, waited):
    monkeypatch.setattr(requests, "post", Busy(1, {"Retry-After": asked}).post)
    make_search("http://127.0.0.1:9")("q")
    assert len(waits) == 1 and waited <= waits[0] <= max(waited, 1.5)
