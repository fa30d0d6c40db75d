"""The programs that are measured: agents for orun, and the same work without orun as the baseline."""

from __future__ import annotations

AGENT = """
import time
from orun import Agent

agent = Agent("bench")

@agent.handler
def add(state, request):
    state["total"] = total = state.get("total", 0) + 1
    return {"total": total, "data": request["data"]}

@agent.handler
def sleep(state, request):
    time.sleep(0.010)
    state["total"] = total = state.get("total", 0) + 1
    return {"total": total}

@agent.handler
def compute(state, request):
    end = time.perf_counter() + 0.010
    while time.perf_counter() < end:
        pass
    state["total"] = total = state.get("total", 0) + 1
    return {"total": total}

@agent.handler
def fill(state, request):
    for n in range(request["first"], request["first"] + request["count"]):
        state[f"block-{n:06}"] = {"n": n, "text": f"{n:08}" * 120}
    return {}

@agent.handler
def touch(state, request):
    for n in range(request["first"], request["first"] + request["count"]):
        state[f"block-{n:06}"]["n"] += 1
    return {}

@agent.handler(readonly=True)
def total(state, request):
    return {"total": state.get("total", 0)}
"""

HEAVY_AGENT = """
from orun import Agent

agent = Agent("heavy")
DATA = {n: (b"%d " % n) * 150 for n in range(@COUNT@)}

@agent.handler
def add(state, request):
    state["total"] = total = state.get("total", 0) + 1
    return {"total": total, "data": request["data"]}

@agent.handler
def read(state, request):
    return {"bytes": sum(len(text) for text in DATA.values())}
"""
"""About 200 MB of ordinary Python objects, made when the program is loaded."""

BARE_HEAVY = """
import sys
DATA = {n: (b"%d " % n) * 150 for n in range(@COUNT@)}
import asyncio, msgpack
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.read()
"""

BARE = '''
"""The same handlers behind the same protocol on one asyncio loop; state in a file that is read at the start."""
import asyncio, os, sys, time
from orun.worker import wire

path, state_file = sys.argv[1:]
state = wire.unpack(open(state_file, "rb").read()) if os.path.exists(state_file) else {}

def add(state, request):
    state["total"] = total = state.get("total", 0) + 1
    return {"total": total, "data": request["data"]}

def total(state, request):
    return {"total": state.get("total", 0)}

def sleep(state, request):
    time.sleep(0.010)
    return add(state, {"data": None})

def compute(state, request):
    end = time.perf_counter() + 0.010
    while time.perf_counter() < end:
        pass
    return add(state, {"data": None})

HANDLERS = {"add": add, "sleep": sleep, "compute": compute, "total": total}

class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.decoder = wire.Decoder(1 << 24)

    def data_received(self, data):
        replies = []
        for body in self.decoder.feed(data):
            seq, handler, payload, _ = wire.unpack(body)
            replies.append(wire.encode([seq, True, HANDLERS[handler](state, payload)]))
        self.transport.write(b"".join(replies))

async def main():
    if os.path.exists(path):
        os.unlink(path)
    await asyncio.get_running_loop().create_unix_server(Connection, path, backlog=1024)
    await asyncio.Event().wait()

asyncio.run(main())
'''

BARE_HTTP = '''
"""A bare uvicorn application that parses JSON, adds one and answers JSON: no worker behind it."""
import asyncio, json, socket, sys
from uvicorn import Config, Server

state = {}

async def app(scope, receive, send):
    message = await receive()
    request = json.loads(message["body"])
    state["total"] = total = state.get("total", 0) + 1
    body = json.dumps({"total": total, "data": request["data"]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})

config = Config(app, lifespan="off", log_level="error", access_log=False, ws="none", http="httptools")
sock = socket.socket(fileno=int(sys.argv[1]))
asyncio.run(Server(config).serve([sock]))
'''
