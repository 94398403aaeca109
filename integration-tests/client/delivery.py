"""How long signals take from the event in the kernel to a watcher.

    delivery.py SOCKET COUNT SECONDS

Watches from the newest signal on and says "ready". Then it prints a line of microseconds for each signal, until it has COUNT of
them or none came for SECONDS.
"""

import sys
import time
from threading import Timer

import grpc
from signals import PACKAGE, Client, connect


def main(socket, count, seconds):
    with connect(socket) as channel:
        client = Client(channel)
        service = f"{PACKAGE}SignalService"
        newest = client.call(service, "ListSignals", page_size=1)["signals"]
        stream = client.stream(service, "WatchSignals", after_id=int(newest[0]["id"]) if newest else 0)
        print("ready", flush=True)
        took = []
        while len(took) < int(count):
            # A stream has no timeout for its next message.
            silence = Timer(float(seconds), stream.cancel)
            silence.start()
            try:
                response = next(stream)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.CANCELLED:
                    raise
                break
            finally:
                silence.cancel()
            if response.HasField("signal"):
                took.append(time.time_ns() // 1000 - response.signal.time.ToMicroseconds())
        print(*took, sep="\n")


main(*sys.argv[1:])
