"""A gRPC server and a client of it, by `grpcio` without generated code: every message is bytes.

`rpc.py server [PEM]` says on which port it listens, over TLS where it is given chain and key. `rpc.py client TARGET [CA]`
tries every kind of call, says `calling`, and goes on until its input ends; then says how many calls it made. It ends
with 0 when none of them ended otherwise than it should.
"""

import sys
import threading
from concurrent import futures

import grpc

PATIENCE = 30
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
cancelled = threading.Semaphore(0)


def echo(request, context):
    told = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", told.get("x-asked", "nothing")),))
    context.set_trailing_metadata((("x-trailing", "2"), ("x-raw-bin", b"\x00\xff")))
    return request


def fail(request, context):
    context.abort(grpc.StatusCode[request.decode()], "wörds: 100 % \n")


def hang(request, context):
    over = threading.Event()
    context.add_callback(over.set)
    assert over.wait(PATIENCE)
    cancelled.release()


def was_cancelled(request, context):
    return b"yes" if cancelled.acquire(timeout=PATIENCE) else b"no"


def count(request, context):
    number, size = map(int, request.split())
    for place in range(number):
        yield bytes([place % 256]) * size


def count_and_fail(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "after one")


def add(requests, context):
    return str(sum(map(len, requests))).encode()


def refuse(requests, context):
    context.abort(grpc.StatusCode.PERMISSION_DENIED, "unread")


def converse(requests, context):
    for request in requests:
        yield request


def health(request, context):
    # HealthCheckRequest for "test" or for all, HealthCheckResponse with SERVING.
    if request not in (b"", b"\x0a\x04test"):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
    return b"\x08\x01"


CALLS = {
    "unary_unary": [echo, fail, hang, was_cancelled],
    "unary_stream": [count, count_and_fail],
    "stream_unary": [add, refuse],
    "stream_stream": [converse],
}


def server(pem=None):
    handlers = {
        function.__name__: getattr(grpc, f"{kind}_rpc_method_handler")(function)
        for kind, functions in CALLS.items()
        for function in functions
    }
    running = grpc.server(futures.ThreadPoolExecutor(32), options=LIMITS)
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", handlers),))
    check = {"Check": grpc.unary_unary_rpc_method_handler(health)}
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", check),))
    if pem is None:
        port = running.add_insecure_port("127.0.0.1:0")
    else:
        text = open(pem, "rb").read()
        credentials = grpc.ssl_server_credentials([(text, text)])
        port = running.add_secure_port("127.0.0.1:0", credentials)
    running.start()
    print(port, flush=True)
    running.wait_for_termination()


class Calls:
    """The client's side, one attribute per function of the server."""

    def __init__(self, channel):
        for kind, functions in CALLS.items():
            for function in functions:
                call = getattr(channel, kind)(f"/test.Calls/{function.__name__}")
                setattr(self, function.__name__, call)


def status(code, call, *arguments, **options):
    try:
        result = call(*arguments, **{"timeout": PATIENCE, **options})
        list(result)
    except grpc.RpcError as error:
        assert error.code() == code, (error.code(), error.details(), code)
        return error
    raise AssertionError(f"no error but {result}")


def every_kind(calls):
    for size in (0, 1, 16384, 100_000, 5_000_000):
        body = bytes([size % 251]) * size
        got, call = calls.echo.with_call(body, timeout=PATIENCE, metadata=(("x-asked", "this"),))
        assert got == body, (size, len(got))
        assert dict(call.initial_metadata())["x-initial"] == "this"
        trailing = dict(call.trailing_metadata())
        assert trailing["x-trailing"] == "2" and trailing["x-raw-bin"] == b"\x00\xff", trailing
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            error = status(code, calls.fail, code.name.encode())
            assert error.details() == "wörds: 100 % \n", error.details()
            # Whatever an intermediary adds to an answer that is all head looks like the server's.
            assert not error.trailing_metadata(), error.trailing_metadata()
    counted = list(calls.count(b"1000 1000", timeout=PATIENCE))
    assert counted == [bytes([place % 256]) * 1000 for place in range(1000)]
    assert list(calls.count(b"0 0", timeout=PATIENCE)) == []
    error = status(grpc.StatusCode.DATA_LOSS, calls.count_and_fail, b"")
    assert error.details() == "after one", error
    assert calls.add(iter([b"x" * 5000] * 1000), timeout=PATIENCE) == b"5000000"
    assert calls.add(iter([]), timeout=PATIENCE) == b"0"
    status(grpc.StatusCode.PERMISSION_DENIED, calls.refuse, iter([b"x" * 100_000] * 100))
    # What ends before its time ends at the server too.
    status(grpc.StatusCode.DEADLINE_EXCEEDED, calls.hang, b"", timeout=0.2)
    assert calls.was_cancelled(b"", timeout=PATIENCE) == b"yes"
    under_way = calls.hang.future(b"", timeout=PATIENCE)
    assert calls.echo(b"after it", timeout=PATIENCE) == b"after it"
    under_way.cancel()
    assert calls.was_cancelled(b"", timeout=PATIENCE) == b"yes"
    status(grpc.StatusCode.UNIMPLEMENTED, calls.unknown, b"")


class Conversation:
    """A stream on which each message is answered before the next one is sent."""

    def __init__(self, calls):
        self.turn, self.message, self.said = threading.Semaphore(0), None, 0
        self.answers = calls.converse(self.messages())

    def messages(self):
        while True:
            self.turn.acquire()
            if self.message is None:
                return
            yield self.message

    def say(self):
        self.said += 1
        self.message = f"{self.said} ".encode() * (self.said % 3000)
        self.turn.release()
        assert next(self.answers) == self.message

    def end(self):
        self.message = None
        self.turn.release()
        assert list(self.answers) == [] and self.answers.code() == grpc.StatusCode.OK


def keep_calling(calls, over, counts):
    conversation, made = Conversation(calls), 0
    while not over.is_set():
        body = f"{made}".encode()
        assert calls.echo(body, timeout=PATIENCE) == body
        assert sum(map(len, calls.count(b"10 100", timeout=PATIENCE))) == 1000
        assert calls.add(iter([body] * 10), timeout=PATIENCE) == str(10 * len(body)).encode()
        conversation.say()
        made += 4
    conversation.end()
    counts.append(made)


def client(target, ca=None):
    if ca is None:
        channel = grpc.insecure_channel(target, LIMITS)
    else:
        credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
        channel = grpc.secure_channel(target, credentials, [*LIMITS, ("grpc.ssl_target_name_override", "localhost")])
    calls = Calls(channel)
    calls.unknown = channel.unary_unary("/test.Calls/nobody_knows")
    every_kind(calls)
    over, counts = threading.Event(), []
    with futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(keep_calling, calls, over, counts) for _ in range(8)]
        print("calling", flush=True)
        sys.stdin.read()
        over.set()
        for one in running:
            one.result()
    print(sum(counts), flush=True)


server(*sys.argv[2:]) if sys.argv[1] == "server" else client(*sys.argv[2:])
