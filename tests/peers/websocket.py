"""A WebSocket server and a client of it, by Python's `websockets`.

`websocket.py server` says on which port it listens; `websocket.py client URL SECONDS` ends with 0 when everything went
as RFC 6455 says, whatever happened on the way.
"""

import asyncio
import os
import ssl
import sys
import time

import websockets


async def serve_one(connection):
    try:
        await echo(connection)
    except websockets.ConnectionClosed:
        pass


async def echo(connection):
    async for message in connection:
        if message == "close me":
            await connection.close(4321, "as you wish")
        elif message == "ping me":
            await (await connection.ping(b"are you there"))
            await connection.send("you are")
        else:
            await connection.send(message)


async def server():
    async with websockets.serve(serve_one, "127.0.0.1", 0, max_size=None, subprotocols=["echo"]) as running:
        print(running.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


async def client(url, seconds):
    context = None
    if url.startswith("wss:"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    options = dict(max_size=None, ssl=context, subprotocols=["echo"], open_timeout=20, ping_timeout=20)
    async with websockets.connect(url, **options) as connection:
        assert connection.subprotocol == "echo"
        for size in (0, 1, 125, 126, 65535, 65536, 5_000_000):
            message = os.urandom(size)
            await connection.send(message)
            assert await connection.recv() == message, size
        parts = ["frag", "men", "", "ted €"]
        await connection.send(parts)
        assert await connection.recv() == "".join(parts)
        await (await connection.ping(b"\0\xff" * 60))
        await connection.send("ping me")
        assert await connection.recv() == "you are"
        print("talking", flush=True)
        until, count = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            message = f"{count} " + "x" * (count % 70_000)
            await connection.send(message)
            assert await connection.recv() == message
            count += 1
        await connection.send("close me")
        try:
            await connection.recv()
            raise AssertionError("it did not close")
        except websockets.ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4321, "as you wish"), closed
    async with websockets.connect(url, **options) as connection:
        await connection.close(3001, "goodbye")
    print(count, flush=True)


asyncio.run(server() if sys.argv[1] == "server" else client(sys.argv[2], float(sys.argv[3])))
