"""__NAME__: an agent that indexes documents and searches them.

Postings are cut into blocks of a few documents each, so that adding a document changes many small blocks and
no large one: a change costs what it changes, however large the index is.
"""

import math
import re
from collections import Counter

from orun import Agent

agent = Agent("__NAME__")

WORD = re.compile(r"[a-z][a-z0-9_]{1,39}")
DOCUMENTS_PER_BLOCK = 64
TERMS_PER_DOCUMENT_MAX = 400
ID_BYTES_MAX = 300
SATURATION = 1.5


@agent.handler
def put(state, request):
    """Add or replace a document: {"id": TEXT, "text": TEXT}."""
    name, text = request["id"], request["text"]
    if not 0 < len(name.encode()) <= ID_BYTES_MAX:
        raise ValueError(f"an id has 1 to {ID_BYTES_MAX} bytes")
    _remove(state, name)
    meta = _meta(state)
    terms = dict(Counter(WORD.findall(text.lower())).most_common(TERMS_PER_DOCUMENT_MAX))
    number = meta["next"]
    for term, count in terms.items():
        key = _postings_key(term, number // DOCUMENTS_PER_BLOCK)
        state[key] = {**state.get(key, {}), name: count}
    state[f"document:{name}"] = {"number": number, "terms": terms}
    state["meta"] = {"next": number + 1, "documents": meta["documents"] + 1}
    return {"id": name, "terms": len(terms), "documents": meta["documents"] + 1}


@agent.handler
def remove(state, request):
    """Forget a document: {"id": TEXT}."""
    return {"removed": _remove(state, request["id"])}


@agent.handler(readonly=True)
def search(state, request):
    """The best documents for a query: {"query": TEXT, "limit": NUMBER}."""
    meta = _meta(state)
    scores = Counter()
    for term in set(WORD.findall(request["query"].lower())):
        blocks = range(meta["next"] // DOCUMENTS_PER_BLOCK + 1)
        found = [state.get(_postings_key(term, block), {}) for block in blocks]
        rarity = math.log(1 + meta["documents"] / (1 + sum(map(len, found))))
        for postings in found:
            for name, count in postings.items():
                scores[name] += rarity * count / (count + SATURATION)
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[: request.get("limit", 10)]
    return {"hits": [{"id": name, "score": round(score, 4)} for name, score in best]}


@agent.handler(readonly=True)
def stats(state, request):
    """How many documents there are."""
    return {"documents": _meta(state)["documents"]}


def _meta(state):
    return state.get("meta", {"next": 0, "documents": 0})


def _postings_key(term, block):
    return f"term:{term}:{block}"


def _remove(state, name):
    document = state.get(f"document:{name}")
    if document is None:
        return False
    for term in document["terms"]:
        key = _postings_key(term, document["number"] // DOCUMENTS_PER_BLOCK)
        left = {other: count for other, count in state.get(key, {}).items() if other != name}
        if left:
            state[key] = left
        else:
            del state[key]
    del state[f"document:{name}"]
    meta = _meta(state)
    state["meta"] = {**meta, "documents": meta["documents"] - 1}
    return True
